"""Distances as distributions under every dense head: the box is the expectation, the rest of the head is as it was."""

import copy

import pytest
import torch

from detdistill.errors import UserError
from detdistill.geometry import centers, to_boxes
from detdistill.run.pairing import build_methods
from detdistill.testing import check_detector
from detdistill.types import DetectorOutput, Need
from tests.detectors.builders import DENSE, scene, shake, tiny

OPTIONAL = ("retinanet", "fcos", "atss")
BINS = 9


def look(head: str, **options: object) -> tuple[torch.nn.Module, DetectorOutput]:
    detector = shake(tiny(head, edges=True, edge_bins=BINS, **options)).eval()
    with torch.no_grad():
        return detector, detector.observe(scene()[0], need=Need(predictions=True))


@pytest.mark.parametrize("head", DENSE)
def test_boxes_lie_at_the_expected_distances_in_strides(head: str):
    detector, output = look(head)
    stage = output.stages[0]
    rows = stage.logits.shape[:2]
    assert detector.info.edges.bins == BINS
    assert stage.edges.shape == (*rows, 4, BINS)
    shares = stage.edges.double().softmax(-1)
    assert shares.amax() > 2 / BINS  # not the uniform beginning
    distances = (shares * torch.arange(BINS)).sum(-1)
    sizes = list(stage.layout.counts)
    strides = torch.tensor(stage.layout.strides).repeat_interleave(torch.tensor(sizes))
    points = centers(torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors]))
    torch.testing.assert_close(
        stage.boxes.double(), to_boxes(points.double(), distances * strides[:, None]), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_the_hosts_code_decodes_to_the_same_boxes(head: str):
    detector, output = look(head)
    stage = output.stages[0]
    anchors = torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors])
    for deltas, boxes in zip(stage.deltas, stage.boxes, strict=True):
        decoded = detector.model.box_coder.decode(deltas, anchors if head == "fcos" else [anchors])
        torch.testing.assert_close(decoded.reshape(-1, 4), boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("head", OPTIONAL)
def test_it_is_a_detector_whose_losses_fall(head: str):
    detector = tiny(head, edges=True, edge_bins=BINS)
    check_detector(detector)
    batch, targets = scene()
    optimizer = torch.optim.Adam(detector.parameters(), lr=2e-3)
    history = []
    for _ in range(12):
        losses = detector.observe(batch, targets).losses
        assert (
            losses.keys() == tiny(head).observe(batch, targets).losses.keys() or history
        )  # the head's own, without distribution focal
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert torch.tensor(history).isfinite().all()
    assert history[-1] < 0.9 * history[0]
    trained = next(module for name, module in detector.named_modules() if name.endswith(("bbox_reg", "head.regressor")))
    assert trained.out_channels % BINS == 0
    assert trained.weight.grad.abs().amax() > 0


@pytest.mark.parametrize("head", OPTIONAL)
def test_a_box_of_no_size_stays_finite(head: str):
    detector = tiny(head, edges=True, edge_bins=BINS)
    last = next(module for name, module in detector.named_modules() if name.endswith(("bbox_reg", "head.regressor")))
    with torch.no_grad():
        last.bias.view(-1, BINS)[:, 0] = (
            1e4  # all of the mass on distance 0: in single precision nothing is left for the others
        )
    output = detector.observe(*scene())
    sum(output.losses.values()).backward()
    assert all(term.isfinite() for term in output.losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


@pytest.mark.parametrize("head", OPTIONAL)
def test_crosskd_carries_distributions_through_the_towers(head: str):
    student, teacher = (shake(tiny(head, seed, edges=True, edge_bins=BINS)) for seed in (0, 1))
    (method,) = build_methods({"crosskd": {"box": "edges"}}, student.info, teacher.info)
    batch, targets = scene()
    with torch.no_grad():
        lesson = teacher.eval().observe(batch, need=method.need)
    term = method(student.observe(batch, targets, method.student_need), lesson, targets)["box"]
    term.backward()
    assert term > 0
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.backbone_parameters())
    with pytest.raises(UserError, match="needs equal distance distributions"):
        build_methods({"crosskd": {"box": "edges"}}, student.info, tiny(head).info)


def test_gfl_always_has_them():
    plain, asked = tiny("gfl"), tiny("gfl", edges=True)
    assert plain.info == asked.info
    states = (copy.copy(detector.state_dict()) for detector in (plain, asked))
    one, two = states
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("head", ["faster_rcnn", "deformable_detr"])
@pytest.mark.parametrize(
    ("options", "told"), [({"edges": True}, "model.edges"), ({"norm": "group"}, "model.norm group")]
)
def test_heads_without_towers_refuse(head: str, options: dict[str, object], told: str):
    with pytest.raises(UserError, match=f"{told}: {head} has no towers"):
        tiny(head, **options)
