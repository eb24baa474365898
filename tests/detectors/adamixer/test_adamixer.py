"""AdaMixer as a detector."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from detdistill.detectors.adamixer import criterion
from detdistill.detectors.adamixer.adamixer import adamixer
from detdistill.detectors.adamixer.boxes import to_xyzr
from detdistill.detectors.build import build as build_by_name
from detdistill.detectors.queries import matching
from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.queries.stages import with_assignments
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.testing import check_detector, learn
from detdistill.types import Need, QuerySet
from tests.detectors.builders import make_batch, make_targets, tiny

CLASSES = ("disc", "square", "star")
SMALL = {"groups": 2, "in_points": 6, "out_points": 8, "heads": 4, "ffn": 48}
EVERYTHING = Need(pyramids=frozenset({"neck"}), predictions=True, queries=True)
WHOLE = torch.tensor([[[0.0, 0, 96, 64]], [[0.0, 0, 64, 48]]])  # valid areas of the images of `make_batch`, xyxy


def build(
    strides: tuple[int, ...] = (8, 16, 32),
    backbone: str = "mobilenetv2_035",
    weights: str = "none",
    queries: int = 9,
    channels: int = 32,
    depth: int | None = 3,
    **sizes: int,
) -> QueryDetector:
    """A small detector with seeded weights. sizes: fields of `Sizes`."""
    torch.manual_seed(0)
    config = ModelConfig(
        strides=strides,
        channels=channels,
        queries=queries,
        decoder_layers=depth,
        backbone_weights=weights,
        score_threshold=0.0,
    )
    return adamixer(config, backbone, CLASSES, **SMALL | sizes)


def perturb(detector: QueryDetector) -> QueryDetector:
    """The detector with random weights where the published initial weights are zero.

    With the published weights boxes do not move, and neither points nor mixing depend on the content.
    """
    with torch.no_grad():
        for stage in detector.model.decoder.stages:
            for weight in (
                stage.bbox_embed.weight,
                stage.bbox_embed.bias,
                stage.sampling.offsets.weight,
                stage.mixing.generator.weight,
            ):
                weight.normal_(std=0.1)
    return detector


def random_boxes(count: int) -> torch.Tensor:
    """Random boxes cx cy w h in 0..1, (2, count, 4)."""
    center, size = torch.rand(2, 2, count, 2, generator=torch.Generator().manual_seed(2))
    return torch.cat([0.2 + center * 0.6, 0.1 + size * 0.3], -1)


def test_the_output_has_all_parts():
    detector = build().eval()
    output = detector.observe(make_batch(96, 128), make_targets(), EVERYTHING)
    assert [tuple(stage.boxes.shape) for stage in output.stages] == [(2, 9, 4)] * 3
    assert [tuple(stage.logits.shape) for stage in output.stages] == [(2, 9, 3)] * 3
    assert [tuple(stage.embeddings.shape) for stage in output.stages] == [(2, 9, 32)] * 3
    assert set(output.pyramids) == {"neck"}
    assert [tuple(level.shape) for level in output.pyramids["neck"].levels] == [
        (2, 32, 12, 16),
        (2, 32, 6, 8),
        (2, 32, 3, 4),
    ]
    names = {f"{name}{suffix}" for name in ("classification", "box", "giou") for suffix in ("", "_0", "_1")}
    assert set(output.losses) == names
    assert detector.info.queries.width == 32
    assert len(build(depth=None).model.decoder.stages) == 6


def test_it_passes_check_detector():
    check_detector(perturb(build()))


def test_it_is_built_by_name():
    config = ModelConfig(
        name="adamixer:mobilenetv2_035",
        strides=(8, 16),
        channels=32,
        queries=5,
        decoder_layers=1,
        backbone_weights="none",
    )
    assert build_by_name(config, CLASSES).info.kind == "adamixer"


def test_initial_weights_are_the_published_ones():
    detector = build().eval()
    with torch.no_grad():
        output = detector.observe(make_batch(96, 128), need=EVERYTHING)
    for stage in output.stages:  # the regression starts at zero
        torch.testing.assert_close(stage.boxes, WHOLE.expand(2, 9, 4), rtol=0, atol=1e-4)
    for stage in detector.model.decoder.stages:
        assert stage.class_embed.bias.sigmoid().tolist() == pytest.approx([0.01] * len(CLASSES))
    content = output.queries.own.content
    assert torch.equal(content[0], content[1])
    torch.testing.assert_close(content[0], F.layer_norm(detector.model.decoder.content.weight, (32,)))
    for stage in detector.model.decoder.stages:
        assert ((stage.overlap >= 0) & (stage.overlap <= 4)).all()
        assert stage.overlap.std() > 0


def test_redecoding_the_detectors_own_queries_gives_the_same_stages():
    output = perturb(build()).eval().observe(make_batch(96, 128), need=EVERYTHING)
    relative = torch.tensor([[[48.0, 32, 96, 64]], [[32.0, 24, 64, 48]]]) / torch.tensor([128.0, 96, 128, 96])
    for reference in (None, relative.expand(2, 9, 4)):  # None means the valid area
        redecoded = output.queries.redecode(replace(output.queries.own, reference=reference))
        for first, second in zip(output.stages, redecoded, strict=True):
            torch.testing.assert_close(first.logits, second.logits, rtol=0, atol=1e-4)
            torch.testing.assert_close(first.boxes, second.boxes, rtol=0, atol=1e-3)
    assert float((output.stages[0].boxes - output.stages[2].boxes).detach().abs().max()) > 1


def test_boxes_start_from_the_reference():
    detector = build().eval()
    queries = detector.observe(make_batch(96, 128), need=EVERYTHING).queries
    reference = torch.tensor([0.5, 0.25, 0.25, 0.5]).expand(2, 9, 4)
    stages = queries.redecode(replace(queries.own, reference=reference))
    torch.testing.assert_close(stages[-1].boxes, torch.tensor([48.0, 0, 80, 48]).expand(2, 9, 4), rtol=0, atol=1e-3)


def test_a_stage_refines_the_box_before_and_gives_it_no_gradient():
    detector = perturb(build()).eval()
    stages = detector.observe(make_batch(), need=EVERYTHING).stages
    first, last = detector.model.decoder.stages[0], detector.model.decoder.stages[2]
    weights = [last.bbox_embed.weight, first.bbox_embed.weight]
    last_gradient, first_gradient = torch.autograd.grad(
        stages[2].boxes.sum(), weights, allow_unused=True, retain_graph=True
    )
    assert last_gradient.any()
    assert first_gradient is None
    through_content = torch.autograd.grad(stages[2].logits.sum(), first.feed_forward[0].weight)[0]
    assert through_content.any()
    before = to_xyzr(stages[1].boxes.detach())
    levels = detector.observe(make_batch()).pyramids["neck"].levels
    _, _, delta = last(stages[1].embeddings, before, levels, (8, 16, 32))
    center = before[..., :2] + delta[..., :2] * before[..., 2:3].exp2()
    torch.testing.assert_close((stages[2].boxes[..., :2] + stages[2].boxes[..., 2:]) / 2, center, rtol=1e-4, atol=1e-2)


def test_gradients_of_a_teachers_queries_reach_the_student_only():
    student, teacher = perturb(build(strides=(16, 32))), build(queries=14)
    batch = make_batch()
    with torch.no_grad():
        teacher_output = teacher.eval().observe(batch, need=Need(queries=True))
    output = student.observe(batch, need=Need(queries=True))
    assert output.stages == ()  # its own queries were not decoded
    stages = output.queries.redecode(teacher_output.queries.own)
    assert [tuple(stage.boxes.shape) for stage in stages] == [(2, 14, 4)] * 3
    assigned = with_assignments(stages, output.queries.match(stages, make_targets()))
    sum(output.queries.criterion(assigned, make_targets()).values()).backward()
    for part in (student.model.backbone, student.model.neck, student.model.decoder.stages):
        assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in part.parameters())
    assert student.model.decoder.content.weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_queries_that_cannot_be_decoded_are_refused():
    queries = build().observe(make_batch(), need=Need(queries=True)).queries
    content = queries.own.content
    with pytest.raises(ValueError, match="32 wide; got 16"):
        queries.redecode(QuerySet(content[..., :16]))
    with pytest.raises(ValueError, match="got no content"):
        queries.redecode(QuerySet(reference=random_boxes(9)))
    with pytest.raises(ValueError, match="starts from boxes"):
        queries.redecode(QuerySet(content, reference=random_boxes(9)[..., :2]))


def test_sampled_queries_are_seeded_and_have_the_scale_of_the_learned_ones():
    queries = build().eval().observe(make_batch(), need=Need(queries=True)).queries
    first, same, different = [queries.sample(50, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(first.content, same.content)
    assert not torch.equal(first.content, different.content)
    assert torch.equal(first.content[0], first.content[1])
    scale = queries.own.content.std(-1).mean().expand(2, 50)
    torch.testing.assert_close(first.content.std(-1), scale, rtol=1e-3, atol=0)
    assert queries.redecode(first)[-1].boxes.shape == (2, 50, 4)


def test_every_parameter_gets_a_gradient():
    """From different boxes: for equal boxes, as in the first stage, the bias of the attention has no effect."""
    detector = perturb(build())
    queries = detector.observe(make_batch(), need=Need(queries=True)).queries
    stages = queries.redecode(replace(queries.own, reference=random_boxes(9)))
    assigned = with_assignments(stages, queries.match(stages, make_targets()))
    sum(queries.criterion(assigned, make_targets()).values()).backward()
    parameters = detector.named_parameters()
    untrained = [name for name, value in parameters if value.grad is None or not bool(value.grad.any())]
    assert untrained == []


def test_a_few_steps_lower_the_loss():
    rows = learn(build(), None, [], (make_batch(), make_targets()), steps=10, lr=1e-3)
    assert rows[-1]["total"] < 0.8 * rows[0]["total"]


def test_more_padding_changes_nothing_in_the_decoder():
    """Group norm and convolutions depend on padding, as published. Points, boxes, levels and matches do not."""
    detector = perturb(build()).eval()
    near = detector.family.encode(detector.family.neck(make_batch()))
    canvas = (128, 192)
    wider = tuple(
        F.pad(level, (0, canvas[1] // stride - level.shape[3], 0, canvas[0] // stride - level.shape[2]))
        for level, stride in zip(near.maps, (8, 16, 32), strict=True)
    )
    far = replace(near, maps=wider, canvas=canvas)
    for reference in (None, random_boxes(9)):
        near_queries = replace(detector.family.queries(near), reference=reference)
        far_queries = near_queries
        if reference is not None:
            far_queries = replace(near_queries, reference=reference / 2)  # relative to a canvas twice as large
        near_stages = detector.family.decode(near_queries, near)
        far_stages = detector.family.decode(far_queries, far)
        for near_stage, far_stage in zip(near_stages, far_stages, strict=True):
            torch.testing.assert_close(near_stage.boxes, far_stage.boxes, rtol=0, atol=3e-3)
            torch.testing.assert_close(near_stage.logits, far_stage.logits, rtol=0, atol=1e-4)
        near_assignments = detector.family.match(near_stages, near, make_targets())
        far_assignments = detector.family.match(far_stages, near, make_targets())
        for first, second in zip(near_assignments, far_assignments, strict=True):
            assert torch.equal(first.matched, second.matched)


def test_padding_and_its_content_do_not_change_the_first_boxes():
    detector = build().eval()
    near, far = make_batch(64, 96), make_batch(128, 192)
    junk = far.images.clone()
    junk[:, :, 64:], junk[:, :, :, 96:], junk[1, :, 48:], junk[1, :, :, 64:] = 200, 99, 50, 25
    batches = (near, far, replace(far, images=junk))
    stages = [detector.observe(batch, need=Need(predictions=True)).stages[-1] for batch in batches]
    torch.testing.assert_close(stages[0].boxes, stages[1].boxes, rtol=0, atol=1e-4)
    assert torch.equal(stages[1].logits, stages[2].logits)


def test_every_stage_matches_each_ground_truth_with_one_query():
    output = perturb(build()).observe(make_batch(), make_targets())
    for stage in output.stages:
        matched = stage.assignment.matched
        assert sorted(matched[0][matched[0] >= 0].tolist()) == [0, 1]
        assert sorted(matched[1][matched[1] >= 0].tolist()) == [0]
        assert float(stage.assignment.num_positives) == 3
        assert stage.assignment.valid.all()


def test_matching_costs_equal_the_weights_of_the_losses():
    detector = build()
    costs = detector.family.matcher
    assert (costs.classification, costs.box, costs.giou) == (2, 5, 2)
    assert costs == replace(costs, **criterion.WEIGHTS, alpha=criterion.ALPHA, gamma=criterion.GAMMA)


def test_the_normalizer_is_averaged_over_processes(monkeypatch: pytest.MonkeyPatch):
    detector = build().eval()
    one_process = detector.observe(make_batch(), make_targets()).losses
    for module in (criterion, matching):
        # As if a second process had three times the objects.
        monkeypatch.setattr(module, "mean_over_processes", lambda count: 2 * count)
    two_processes = detector.observe(make_batch(), make_targets()).losses
    for name, value in one_process.items():
        torch.testing.assert_close(two_processes[name], value / 2)


def test_images_without_objects_give_finite_losses_and_gradients():
    detector = build()
    losses = detector.observe(make_batch(), make_targets(empty=True)).losses
    assert losses["box"].item() == losses["giou_0"].item() == 0
    assert losses["classification"].item() > 0
    sum(losses.values()).backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in detector.parameters())


def test_predictions_that_are_not_finite_give_nan_losses():
    detector = build()
    with torch.no_grad():
        detector.model.decoder.stages[0].class_embed.bias[1] = float("nan")
        detector.model.decoder.stages[1].bbox_embed.bias[2] = float("inf")
    losses = detector.observe(make_batch(), make_targets()).losses
    assert losses["classification_0"].isnan()
    assert losses["box_1"].isnan()


def test_levels_have_the_strides_of_the_config():
    for strides in ((4, 8, 16, 32), (8, 16, 32, 64, 128), (32,)):
        neck = build(strides=strides, depth=1).eval().observe(make_batch(128, 128)).pyramids["neck"]
        assert neck.strides == strides
        assert [level.shape[-1] for level in neck.levels] == [128 // stride for stride in strides]


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="twice the one before"):
        build(strides=(8, 32))
    with pytest.raises(UserError, match="no map of stride 1"):
        build(strides=(1, 2, 4, 8))
    with pytest.raises(UserError, match="channels 36: adamixer needs a multiple of 8"):
        build(channels=36)
    with pytest.raises(UserError, match="multiple of 24"):
        build(groups=3)


def test_backbone_weights_are_loaded_and_their_norms_are_frozen(tmp_path):
    torch.manual_seed(5)
    source = timm.create_model("mobilenetv2_035", pretrained=False)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    detector = tiny("adamixer", backbone_weights=str(tmp_path / "backbone.safetensors")).train()
    backbone = detector.model.backbone
    assert torch.equal(backbone.conv_stem.weight, source.conv_stem.weight)
    before = backbone.bn1.running_mean.clone()
    detector.observe(make_batch(), make_targets())
    assert torch.equal(backbone.bn1.running_mean, before)
    assert not backbone.bn1.weight.requires_grad
    assert backbone.conv_stem.weight.requires_grad
    fresh = tiny("adamixer").train()
    assert fresh.model.backbone.bn1.training
    assert fresh.state_dict().keys() == detector.state_dict().keys()  # a run can be rebuilt without the file of weights
    assert len(fresh.backbone_parameters()) == len(list(backbone.parameters()))


def test_boxes_stay_in_single_precision_under_autocast():
    detector = perturb(build()).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector.observe(make_batch(), make_targets())
    assert output.stages[-1].boxes.dtype == output.stages[-1].logits.dtype == torch.float32
    assert all(value.isfinite() and value.dtype == torch.float32 for value in output.losses.values())
    sum(output.losses.values()).backward()
