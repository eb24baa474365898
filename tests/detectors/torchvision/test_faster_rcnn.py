"""Faster R-CNN: equal to torchvision's own forward, and it classifies boxes on pyramids of another detector."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as host
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detdistill.detectors.images import host_sizes
from detdistill.detectors.torchvision import roi_head, shared
from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN, faster_rcnn
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, Need, Pyramid, Targets
from tests.detectors.builders import spread_scores

CLASSES = ("disc", "square", "cross")
STRIDES = (8, 16, 32, 64)
ALL = Need(predictions=True, proposals=True)


def build(seed: int = 0, classes: tuple[str, ...] = CLASSES, strides: tuple[int, ...] = STRIDES) -> FasterRCNN:
    """A small Faster R-CNN with random weights."""
    torch.manual_seed(seed)
    config = ModelConfig(strides=strides, channels=32, backbone_weights="none", score_threshold=0.05)
    return faster_rcnn(config, "mobilenetv2_035", classes)


def padded(batch: Batch, height: int, width: int) -> Batch:
    """The batch padded to (height, width)."""
    rows, columns = batch.images.shape[-2:]
    return replace(batch, images=torch.nn.functional.pad(batch.images, (0, width - columns, 0, height - rows)))


@pytest.fixture
def batch() -> Batch:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(7))
    images[1, :, 48:] = 0
    images[1, :, :, 80:] = 0
    sizes = torch.tensor([[64, 96], [48, 80]])
    return Batch(images, sizes, sizes, torch.arange(2), ("a.jpg", "b.jpg"))


@pytest.fixture
def targets() -> Targets:
    first = torch.tensor([[4.0, 5.0, 40.0, 50.0], [50.0, 10.0, 90.0, 40.0], [2.0, 2.0, 14.0, 12.0]])
    return Targets((first, torch.tensor([[10.0, 8.0, 44.0, 40.0]])), (torch.tensor([0, 2, 1]), torch.tensor([1])))


@pytest.fixture
def no_targets() -> Targets:
    return Targets((torch.zeros(0, 4),) * 2, (torch.zeros(0, dtype=torch.int64),) * 2)


def host_images(batch: Batch) -> list[Tensor]:
    return [
        image[:, :height, :width] for image, (height, width) in zip(batch.images, host_sizes(batch.sizes), strict=True)
    ]


def host_targets(targets: Targets) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(targets.boxes, targets.labels, strict=True)]


def without_resizing(model: host.FasterRCNN) -> host.FasterRCNN:
    """The model of torchvision, whose transform then keeps the size of images."""
    model.transform.resize = lambda image, target: (image, target)
    return model


# ---- equal to the library


def test_losses_equal_the_hosts(batch: Batch, targets: Targets) -> None:
    model, detector = without_resizing(build().model).train(), build().train()
    for roi_heads in (model.roi_heads, detector.model.roi_heads):
        roi_heads.fg_bg_sampler.batch_size_per_image = 64
    torch.manual_seed(1)
    expected = model(host_images(batch), host_targets(targets))
    torch.manual_seed(1)
    losses = detector.observe(batch, targets).losses
    assert {f"loss_{name}" for name in losses} == set(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[f"loss_{name}"], rtol=1e-5, atol=0)
    for name, value in detector.model.state_dict().items():  # the statistics of batch norm are equal too
        torch.testing.assert_close(value, model.state_dict()[name])


def test_detections_equal_the_hosts(batch: Batch) -> None:
    model, detector = without_resizing(build().model).eval(), build().eval()
    with torch.no_grad():
        expected = model(host_images(batch))
    for image, host_image in zip(detector.detect(batch), expected, strict=True):
        assert len(image.boxes) > 10
        torch.testing.assert_close(image.boxes, host_image["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(image.scores, host_image["scores"], rtol=1e-5, atol=1e-6)
        assert torch.equal(image.labels, host_image["labels"] - 1)


def test_columns_select_classes_of_the_host(batch: Batch, targets: Targets) -> None:
    """Columns are category ids, with gaps. The scores of the selected classes equal the host's."""
    model = without_resizing(build(classes=("any",) * 90).model).eval()
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.05, 10_000
    model.roi_heads.box_predictor.cls_score.bias.data[[3, 90, 17, 50]] += 3
    detector = FasterRCNN(model, CLASSES, STRIDES, columns=(3, 90, 17)).eval()
    with torch.no_grad():
        expected = model(host_images(batch))
        output = detector.observe(batch, need=ALL)
        levels = dict(zip(("8", "16", "32"), output.pyramids["neck"].levels, strict=False))
        logits, _ = model.roi_heads.box_predictor(
            model.roi_heads.box_head(model.roi_heads.box_roi_pool(levels, list(output.proposals.boxes), []))
        )
    scores = logits.softmax(-1)[:, [3, 90, 17]].view(*output.proposals.valid.shape, 3)
    torch.testing.assert_close(output.stages[-1].scores()[output.proposals.valid], scores[output.proposals.valid])
    label_of_column = {3: 0, 90: 1, 17: 2}
    for image, host_image in zip(detector.detect(batch), expected, strict=True):
        host_labels = host_image["labels"].tolist()
        kept = [index for index, label in enumerate(host_labels) if label in label_of_column]
        assert 10 < len(kept) < len(host_labels)
        assert [label_of_column[host_labels[index]] for index in kept] == image.labels.tolist()
        torch.testing.assert_close(image.boxes, host_image["boxes"][kept])
        torch.testing.assert_close(image.scores, host_image["scores"][kept])
    received = []
    select = model.roi_heads.select_training_samples
    with patch.object(
        model.roi_heads, "select_training_samples", lambda boxes, host: received.extend(host) or select(boxes, host)
    ):
        detector.observe(batch, targets)
    assert [image_targets["labels"].tolist() for image_targets in received] == [[3, 17, 90], [90]]


def host_with_fpn() -> host.FasterRCNN:
    return host.FasterRCNN(host.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None), 4)


def host_with_one_level() -> host.FasterRCNN:
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 16, stride=16), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
    backbone.out_channels = 16
    anchors = host.rpn.AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    pool = MultiScaleRoIAlign(["0"], 3, 2)
    model = host.FasterRCNN(backbone, 4, rpn_anchor_generator=anchors, box_roi_pool=pool)
    spread_scores(model)
    return model


@pytest.mark.parametrize(("make", "strides"), [(host_with_fpn, (4, 8, 16, 32, 64)), (host_with_one_level, (16,))])
def test_a_model_that_torchvision_built_is_adapted_unchanged(
    make: Callable[[], host.FasterRCNN], strides: tuple[int, ...], batch: Batch, targets: Targets
) -> None:
    torch.manual_seed(0)
    model = without_resizing(make()).eval()
    detector = FasterRCNN(copy.deepcopy(model), CLASSES, strides).eval()
    with torch.no_grad():
        for image, host_image in zip(detector.detect(batch), model(host_images(batch)), strict=True):
            assert len(image.boxes) > 10
            torch.testing.assert_close(image.boxes, host_image["boxes"], rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(image.scores, host_image["scores"])
        torch.manual_seed(1)
        expected = model.train()(host_images(batch), host_targets(targets))
        torch.manual_seed(1)
        for name, value in detector.train().observe(batch, targets).losses.items():
            torch.testing.assert_close(value, expected[f"loss_{name}"], rtol=1e-5, atol=0)


def test_the_state_dict_is_the_hosts_with_a_prefix() -> None:
    source, detector = build(0), build(1)
    assert {name.removeprefix("model.") for name in source.state_dict()} == set(source.model.state_dict())
    detector.model.load_state_dict(source.model.state_dict())
    assert all(torch.equal(value, detector.state_dict()[name]) for name, value in source.state_dict().items())


# ---- stages and assignments


def test_stages_agree_with_their_proposals(batch: Batch, targets: Targets) -> None:
    detector = build().eval()
    output = detector.observe(batch, targets)
    rpn, roi = output.stages
    assert rpn.layout is not None
    assert rpn.logits.shape == (2, sum(rpn.layout.counts), 1)
    assert roi.logits.shape == (*output.proposals.boxes.shape[:2], 3)
    assert torch.equal(roi.valid, output.proposals.valid)
    for index, boxes in enumerate(targets.boxes):
        matches = roi.assignment.matched[index]
        positive = matches >= 0
        pairs = zip(output.proposals.boxes[index][positive], matches[positive], strict=True)
        overlap = torch.stack([_iou(box, boxes[match]) for box, match in pairs])
        assert (overlap >= 0.5).all()
        assert set(matches[positive].tolist()) == set(range(len(boxes)))  # the ground truth is among the proposals
    assert roi.assignment.num_positives == (roi.assignment.matched >= 0).sum()
    assert not (roi.assignment.positive & ~roi.assignment.valid).any()
    anchors = torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors])
    assignment = output.assign(targets)
    assert set(assignment.matched[0].tolist()) == {-2, -1, 0, 1, 2}
    best = [int(torch.stack([_iou(anchor, box) for anchor in anchors]).argmax()) for box in targets.boxes[0]]
    assert assignment.matched[0, best].tolist() == [0, 1, 2]
    num_sampled = rpn.assignment.valid.sum(1)
    assert (num_sampled <= 256).all()
    assert (rpn.assignment.valid <= assignment.valid).all()


def _iou(first: Tensor, second: Tensor) -> Tensor:
    overlap = (torch.minimum(first[2:], second[2:]) - torch.maximum(first[:2], second[:2])).clamp(min=0).prod()
    return overlap / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - overlap)


def test_boxes_are_those_of_the_most_likely_class(batch: Batch) -> None:
    detector = build().eval()
    output = detector.observe(batch, need=ALL)
    roi, proposals = output.stages[-1], output.proposals.boxes
    best = roi.logits.argmax(-1)
    deltas = roi.deltas.gather(2, best[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    deltas = deltas / torch.tensor([10.0, 10.0, 5.0, 5.0])
    size = proposals[..., 2:] - proposals[..., :2]
    center = (proposals[..., :2] + proposals[..., 2:]) / 2 + deltas[..., :2] * size
    size = size * deltas[..., 2:].exp()
    expected = torch.cat([center - size / 2, center + size / 2], -1)
    torch.testing.assert_close(roi.boxes[roi.valid], expected[roi.valid], rtol=1e-5, atol=1e-4)


def test_the_mode_changes_neither_types_nor_proposals(batch: Batch, targets: Targets) -> None:
    """torchvision keeps 2000 proposals in training and 1000 in evaluation, and returns losses in training only."""
    detector = build(strides=(4, 8, 16, 32, 64)).eval()
    rpn = detector.model.rpn
    rpn._pre_nms_top_n, rpn._post_nms_top_n = {"training": 60, "testing": 20}, {"training": 30, "testing": 10}
    with torch.no_grad():
        without_targets = detector.observe(batch, need=ALL)
        assert without_targets.proposals.boxes.shape[1] == 10
        with_targets = detector.observe(batch, targets)
        assert with_targets.proposals.boxes.shape[1] == 33  # 30 and the ground truth
        assert len(with_targets.losses) == 4
        for module in (rpn, detector.model.roi_heads):
            module.train()  # changes nothing else, because they contain no norms
        torch.testing.assert_close(detector.observe(batch, need=ALL).proposals.boxes, without_targets.proposals.boxes)
        assert rpn.training
        assert detector.detect(batch)


def test_it_runs_only_as_far_as_needed(batch: Batch) -> None:
    detector = build().eval()
    calls = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in (("rpn", detector.model.rpn.head), ("roi", detector.model.roi_heads.box_head))
    ]
    output = detector.observe(batch, need=Need(pyramids=frozenset({"neck"})))
    assert (calls, output.stages, output.proposals) == ([], (), None)
    output = detector.observe(batch, need=Need(classify=True))
    assert (calls, output.stages, output.proposals.boxes.shape) == ([], (), (2, 0, 4))
    output.proposals.classify(torch.tensor([[[4.0, 4, 40, 40]]]).expand(2, 1, 4))
    assert calls.pop() == "roi"
    output = detector.observe(batch, need=Need(proposals=True))
    assert (calls, len(output.stages)) == (["rpn"], 1)
    output = detector.observe(batch, need=Need(predictions=True))
    assert (calls, len(output.stages)) == (["rpn", "rpn", "roi"], 2)
    for handle in handles:
        handle.remove()


# ---- the continuation


def test_classify_on_the_own_proposals_equals_the_stage(batch: Batch, targets: Targets) -> None:
    detector = build().eval()
    for output in (detector.observe(batch, need=ALL), detector.observe(batch, targets)):
        classified = output.proposals.classify(output.proposals.boxes)
        stage = output.stages[-1]
        for name in ("logits", "boxes", "background", "deltas", "embeddings"):
            torch.testing.assert_close(getattr(classified, name), getattr(stage, name))
        assert torch.equal(classified.valid, stage.valid)


def test_classify_of_a_frozen_teacher_gives_a_gradient_to_the_students_pyramid(batch: Batch, targets: Targets) -> None:
    teacher, student = build(0).eval().requires_grad_(False), build(1).train()
    with torch.no_grad():
        teacher_output = teacher.observe(batch, need=ALL)
    student_output = student.observe(batch, targets)
    boxes = student_output.proposals.boxes
    crossed = teacher_output.proposals.classify(boxes, student_output.pyramids["neck"])
    assert torch.equal(crossed.valid, student_output.proposals.valid)
    (crossed.logits.square().sum() + crossed.deltas.square().sum() + crossed.boxes.square().sum()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in student.model.roi_heads.parameters())
    assert all(parameter.grad is None for parameter in student.model.rpn.parameters())
    gradients = [parameter.grad for parameter in student.backbone_parameters() if parameter.grad is not None]
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
    uncrossed = teacher_output.proposals.classify(boxes)
    assert not torch.allclose(uncrossed.logits, crossed.logits)
    on_teacher_pyramid = teacher_output.proposals.classify(boxes, teacher_output.pyramids["neck"])
    torch.testing.assert_close(on_teacher_pyramid.logits, uncrossed.logits)


def test_classify_matches_levels_by_stride_and_skips_boxes_without_area(batch: Batch) -> None:
    detector = build().eval()
    output = detector.observe(batch, need=ALL)
    neck, boxes = output.pyramids["neck"], output.proposals.boxes[:, :5].clone()
    boxes[0, 2] = 0
    stage = output.proposals.classify(boxes)
    assert stage.valid[0].tolist() == [True, True, False, True, True]
    assert not stage.logits[0, 2].any()
    finer = Pyramid((torch.zeros(2, 32, 16, 24), *neck.levels[:3]), (4, 8, 16, 32), neck.sizes)
    torch.testing.assert_close(output.proposals.classify(boxes, finer).logits, stage.logits)
    message = r"reads 32 channels at strides \(8, 16, 32\), but the pyramid has .*\{16: 32, 32: 32\}"
    with pytest.raises(ValueError, match=message):
        output.proposals.classify(boxes, Pyramid(neck.levels[1:3], (16, 32), neck.sizes))
    no_boxes = output.proposals.classify(boxes[:, :0])
    assert no_boxes.logits.shape == (2, 0, 3)


# ---- frame, padding, empty input, training


def test_more_padding_changes_no_box(batch: Batch) -> None:
    detector = build().eval()
    torch.nn.init.zeros_(detector.model.rpn.head.bbox_pred.weight)  # the boxes of the RPN are then the anchors
    with torch.no_grad():
        small = detector.observe(padded(batch, 64, 128), need=ALL)
        large = detector.observe(padded(batch, 128, 192), need=ALL)
    for anchors, large_anchors in zip(small.pyramids["neck"].anchors, large.pyramids["neck"].anchors, strict=True):
        assert torch.equal(anchors, large_anchors[: anchors.shape[0], : anchors.shape[1]])
    small_stage, large_stage = small.stages[0], large.stages[0]
    assert torch.equal(small_stage.boxes[small_stage.valid], large_stage.boxes[large_stage.valid])
    assert (small.proposals.boxes[1] <= torch.tensor([80.0, 48.0, 80.0, 48.0])).all()  # xyxy in the valid (48, 80)


def test_scales_of_the_levels_are_declared_and_not_inferred(batch: Batch) -> None:
    """torchvision would infer them from the map's size and the largest image, here 21 pixels of 64, and keep them."""
    detector = build().eval()
    sizes = torch.full((2, 2), 21)
    with patch.object(roi_head, "roi_align", wraps=roi_align) as pooled:
        detector.observe(replace(batch, sizes=sizes), need=ALL)
    assert [call.args[3] for call in pooled.call_args_list] == [1 / 8, 1 / 16, 1 / 32]


def test_losses_without_objects_are_finite(batch: Batch, no_targets: Targets) -> None:
    detector = build().train()
    output = detector.observe(batch, no_targets)
    total = sum(output.losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert output.losses["rpn_box_reg"] == output.losses["box_reg"] == 0
    assert output.stages[1].assignment.num_positives == 2  # at least one per image
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_losses_without_proposals_are_finite(batch: Batch, no_targets: Targets) -> None:
    detector = build().eval()
    detector.model.rpn.score_thresh = 1.1
    output = detector.observe(batch, no_targets)
    assert output.stages[-1].logits.shape == (2, 0, 3)
    assert torch.isfinite(sum(output.losses.values()))
    assert [len(image.boxes) for image in detector.detect(batch)] == [0, 0]


def test_counts_are_averaged_over_processes(batch: Batch, targets: Targets) -> None:
    """If the other of two processes has no rows, the mean count is half the local count, and the local loss doubles."""
    detector = build().eval()
    torch.manual_seed(3)
    single = detector.observe(batch, targets).losses
    torch.manual_seed(3)
    with patch.object(shared, "mean_over_processes", lambda count: count / 2):
        one_of_two = detector.observe(batch, targets).losses
    for name, value in single.items():
        torch.testing.assert_close(one_of_two[name], 2 * value)


def test_training_lowers_the_losses(batch: Batch, targets: Targets) -> None:
    detector = build().train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(12):
        torch.manual_seed(5)
        loss = sum(detector.observe(batch, targets).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert all(math.isfinite(total) for total in totals)
    assert totals[-1] < 0.7 * totals[0]
    backbone = {id(parameter) for parameter in detector.backbone_parameters()}
    assert backbone == {id(parameter) for name, parameter in detector.named_parameters() if ".body." in name}


def test_boxes_are_in_single_precision_under_autocast(batch: Batch, targets: Targets) -> None:
    detector = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector.observe(batch, targets)
        classified = output.proposals.classify(output.proposals.boxes)
    assert {level.dtype for level in output.pyramids["neck"].anchors} == {torch.float32}
    for stage in (*output.stages, classified):
        assert stage.boxes.dtype == stage.logits.dtype == torch.float32
    assert torch.isfinite(sum(output.losses.values()))


def test_info_describes_the_detector() -> None:
    info = build(strides=(4, 8, 16, 32, 64)).info
    assert (info.kind, info.activation) == ("faster_rcnn", "softmax")
    assert info.towers is info.queries is None
    assert (info.strides, info.channels, info.grid.anchors_per_cell) == ((4, 8, 16, 32, 64), {"neck": 32}, 3)
    assert [level[1] for level in info.cell_anchors] == [(32, 32), (64, 64), (128, 128), (256, 256), (512, 512)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ("a", "b")}, r"2 classes with columns \[1, 2, 3\] do not fit a predictor of 4 columns"),
        ({"columns": (0, 1, 2)}, "give each class a column from 1 to 3"),
        ({"columns": (1, 1, 2)}, "give each class a column from 1 to 3"),
        ({"columns": (1, 2, 4)}, "give each class a column from 1 to 3"),
        ({"strides": (8, 16)}, "anchors for 4 levels; give 4 strides"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FasterRCNN(build().model, **({"classes": CLASSES, "strides": STRIDES} | arguments))
