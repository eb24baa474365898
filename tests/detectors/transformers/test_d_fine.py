"""D-FINE against the forward of transformers: edges, stages in eval mode, losses. Shared tests: test_hybrid.py."""

from dataclasses import fields

import pytest
import torch
from transformers.loss.loss_d_fine import DFineLoss

from detdistill.detectors.queries.stages import with_assignments
from detdistill.detectors.transformers.criterion import host_labels
from detdistill.detectors.transformers.d_fine import DFINE, Refined
from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.types import EdgeInfo, Need, Predictions, QuerySet
from tests.detectors.builders import make_batch, make_targets
from tests.detectors.transformers.hybrid import (
    CLASSES,
    CLOSE,
    assert_same_gradients,
    build,
    frame_of,
    host_forward,
    observe,
    perturb,
)

TERMS = {"classification": "loss_vfl", "box": "loss_bbox", "giou": "loss_giou", "fgl": "loss_fgl", "ddf": "loss_ddf"}


def plain(stage: Refined) -> Predictions:
    """The stage without its initial boxes."""
    return Predictions(**{item.name: getattr(stage, item.name) for item in fields(Predictions)})


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("denoising", [0, 6])
def test_training_losses_equal_the_hosts(layers: int, denoising: int):
    detector = perturb(build("d_fine", decoder_layers=layers, num_denoising=denoising)).train()
    batch, targets = make_batch(), make_targets()
    expected, output = host_forward(detector, batch, targets), observe(detector, batch, targets)
    torch.testing.assert_close(sum(output.losses.values()), expected.loss, **CLOSE)
    suffixes = {"": "", "_encoder": f"_aux_{layers - 1}", "_pre": "_aux_0", "_denoising_pre": "_dn_0"}
    suffixes |= {f"_{i}": f"_aux_{i + 1}" for i in range(layers - 2)}
    suffixes |= {f"_denoising_{i}": f"_dn_{i + 1}" for i in range(layers - 1)}
    host_losses = {}
    for name, host_name in TERMS.items():
        for suffix, host_suffix in suffixes.items():
            if host_name + host_suffix in expected.loss_dict:
                host_losses[name + suffix] = expected.loss_dict[host_name + host_suffix]
    assert output.losses.keys() == host_losses.keys() and len(host_losses) == len(expected.loss_dict)
    for name, value in output.losses.items():
        torch.testing.assert_close(value, host_losses[name], **CLOSE)


def test_training_gradients_equal_the_hosts():
    assert_same_gradients(perturb(build("d_fine")).train(), make_batch(), make_targets())


def test_training_stages_equal_the_hosts():
    """One stage per layer. The host's lists of boxes and logits start with those of the initial boxes."""
    detector, batch, targets = perturb(build("d_fine")).train(), make_batch(), make_targets()
    expected, output = host_forward(detector, batch, targets), observe(detector, batch, targets)
    noisy = expected.logits.shape[1] - 12
    assert noisy == 12 and expected.intermediate_logits.shape[1] == 4 and len(output.stages) == 3
    for index, stage in enumerate(output.stages):
        torch.testing.assert_close(stage.logits, expected.intermediate_logits[:, index + 1, noisy:], **CLOSE)
        boxes = to_relative(stage.boxes, frame_of(batch))
        torch.testing.assert_close(boxes, expected.intermediate_reference_points[:, index + 1, noisy:], **CLOSE)
        torch.testing.assert_close(
            stage.edges.flatten(2), expected.intermediate_predicted_corners[:, index, noisy:], **CLOSE
        )
        torch.testing.assert_close(stage.initial, expected.initial_reference_points[:, index, noisy:], **CLOSE)
        torch.testing.assert_close(stage.embeddings, expected.intermediate_hidden_states[index][:, noisy:], **CLOSE)


def test_every_layer_gives_a_stage_in_eval_mode():
    """The host's decoder returns all layers in training mode only. The mode changes nothing else in it."""
    detector, batch = perturb(build("d_fine")).eval(), make_batch(96, 128)
    with torch.no_grad():
        output, last = observe(detector, batch), host_forward(detector, batch)
        detector.model.model.decoder.training = True
        expected = host_forward(detector, batch)
    assert last.intermediate_logits.shape[1] == 1
    for index, stage in enumerate(output.stages):
        torch.testing.assert_close(stage.logits, expected.intermediate_logits[:, index + 1], **CLOSE)
        boxes = to_relative(stage.boxes, frame_of(batch))
        torch.testing.assert_close(boxes, expected.intermediate_reference_points[:, index + 1], **CLOSE)


def test_edges_are_left_top_right_bottom_from_the_initial_box():
    detector, batch = perturb(build("d_fine")).eval(), make_batch()
    assert detector.info.edges == EdgeInfo(33, (0.5, 4.0))
    stage = observe(detector, batch).stages[1]
    assert stage.edges.shape == (2, 12, 4, 33)
    step = 3 ** (2 / 30)  # bins of arXiv:2410.13842, equation 3, with up 0.5 and reg_scale 4
    inner = [step**i - 1 for i in range(1, 16)]
    bins = torch.tensor([-4.0, *(-value for value in reversed(inner)), 0.0, *inner, 4.0])
    assert len(bins) == 33
    left, top, right, bottom = (stage.edges.softmax(-1) @ bins).unbind(-1)
    x, y, width, height = stage.initial.unbind(-1)
    sides = [
        x - (2 + left) * width / 4,
        y - (2 + top) * height / 4,
        x + (2 + right) * width / 4,
        y + (2 + bottom) * height / 4,
    ]
    boxes = torch.stack(sides, -1) * torch.tensor([96.0, 64, 96, 64])
    torch.testing.assert_close(stage.boxes, boxes, rtol=0, atol=1e-3)


def test_the_criterion_trains_each_layer_by_its_own_distances():
    """The expected terms are the host's losses of its training outputs, with the pairing of the published code.

    Each layer's distances go with the scores and boxes of the same layer.
    """
    detector, batch, targets = perturb(build("d_fine")).train(), make_batch(), make_targets()
    host = host_forward(detector, batch, targets)
    rows = slice(host.denoising_meta_values["dn_num_split"][0], None)
    labels, loss = host_labels(targets, frame_of(batch)), DFineLoss(detector.model.config)
    logits, boxes = (
        host.intermediate_logits[:, 1:, rows],
        host.intermediate_reference_points[:, 1:, rows].clamp(0, 1),
    )
    corners, initial = host.intermediate_predicted_corners[:, :, rows], host.initial_reference_points[:, :, rows]
    output = observe(detector, batch, targets)
    terms = output.queries.criterion(output.stages, targets)
    assert len(terms) == 5 * 3
    for index, suffix in enumerate(("_0", "_1", "")):
        outputs = {
            "logits": logits[:, index],
            "pred_boxes": boxes[:, index],
            "pred_corners": corners[:, index],
            "ref_points": initial[:, index],
        }
        outputs |= {"teacher_corners": corners[:, -1], "teacher_logits": logits[:, -1]}
        for kind in loss.losses:
            for key, value in loss.get_loss(kind, outputs, labels, loss.matcher(outputs, labels), 3).items():
                name = next(name for name, host_name in TERMS.items() if host_name == key)
                torch.testing.assert_close(terms[name + suffix], loss.weight_dict[key] * value, **CLOSE)


def test_the_last_layer_but_one_is_not_trained_on_labels():
    """As in the host. Without denoising queries, its class scores get no gradient."""
    detector = perturb(build("d_fine", num_denoising=0)).train()
    sum(observe(detector, make_batch(), make_targets()).losses.values()).backward()
    untrained = [name for name, value in detector.named_parameters() if value.requires_grad and value.grad is None]
    assert untrained
    prefixes = ("model.model.decoder.class_embed.1.", "model.model.decoder.lqe_layers.1.")
    assert all(name.startswith(prefixes) for name in untrained)


def test_the_criterion_accepts_redecoded_stages():
    detector, batch, targets = perturb(build("d_fine")).train(), make_batch(), make_targets()
    queries = observe(detector, batch, need=Need(queries=True)).queries
    query_set = QuerySet(torch.randn(2, 20, 32), reference=torch.rand(2, 20, 4) * 0.4 + 0.3)
    stages = queries.redecode(query_set)
    stages = with_assignments(stages, queries.match(stages, targets))
    terms = queries.criterion(stages, targets)
    assert terms.keys() == {name + part for name in TERMS for part in ("_0", "_1", "")}
    assert terms["ddf"].item() == 0 < terms["ddf_0"].item()  # the last layer is the teacher of DDF
    (terms["fgl"] + terms["ddf_0"]).backward()
    assert detector.model.model.decoder.bbox_embed[0].layers[-1].weight.grad.abs().sum() > 0
    plain_terms = queries.criterion([plain(stage) for stage in stages], targets)
    expected = {name + part for name in ("classification", "box", "giou") for part in ("_0", "_1", "")}
    assert plain_terms.keys() == expected
    for name, value in plain_terms.items():
        torch.testing.assert_close(value, terms[name])


def test_boxes_with_negative_sides_are_trained_as_in_the_host():
    detector, batch, targets = build("d_fine"), make_batch(), make_targets()
    torch.manual_seed(1)  # noise for which some boxes have negative sides
    perturb(detector, scale=1.5).train()
    output = observe(detector, batch, targets)
    sides = torch.stack([stage.boxes[..., 2:] - stage.boxes[..., :2] for stage in output.stages])
    assert (sides < 0).any()
    torch.testing.assert_close(sum(output.losses.values()), host_forward(detector, batch, targets).loss, **CLOSE)


def test_a_model_that_stops_before_its_last_layer_is_refused():
    model = build("d_fine").model
    model.config.eval_idx = 1
    with pytest.raises(UserError, match="eval_idx 1 is not supported"):
        DFINE(model, CLASSES, (8, 16, 32))
