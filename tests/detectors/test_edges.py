"""Edge distributions in every dense detector: the box is at the expected distances, and nothing else changes."""

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


def detector_and_output(head: str, **options: object) -> tuple[torch.nn.Module, DetectorOutput]:
    """A detector with edge distributions, and its output on the scene."""
    detector = shake(tiny(head, edges=True, edge_bins=BINS, **options)).eval()
    with torch.no_grad():
        return detector, detector.observe(scene()[0], need=Need(predictions=True))


def box_predictor(detector: torch.nn.Module) -> torch.nn.Conv2d:
    """The convolution that predicts the edge distributions."""
    names = ("bbox_reg", "head.regressor")
    return next(module for name, module in detector.named_modules() if name.endswith(names))


@pytest.mark.parametrize("head", DENSE)
def test_boxes_lie_at_the_expected_distances_in_strides(head: str):
    detector, output = detector_and_output(head)
    stage = output.stages[0]
    rows = stage.logits.shape[:2]
    assert detector.info.edges.bins == BINS
    assert stage.edges.shape == (*rows, 4, BINS)
    probabilities = stage.edges.double().softmax(-1)
    assert probabilities.amax() > 2 / BINS  # the distributions are not uniform
    distances = (probabilities * torch.arange(BINS)).sum(-1)
    strides = torch.tensor(stage.layout.strides).repeat_interleave(torch.tensor(stage.layout.counts))
    points = centers(torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors]))
    expected = to_boxes(points.double(), distances * strides[:, None])
    torch.testing.assert_close(stage.boxes.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_deltas_of_the_host_decode_to_the_same_boxes(head: str):
    detector, output = detector_and_output(head)
    stage = output.stages[0]
    anchors = torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors])
    for deltas, boxes in zip(stage.deltas, stage.boxes, strict=True):
        decoded = detector.model.box_coder.decode(deltas, anchors if head == "fcos" else [anchors])
        torch.testing.assert_close(decoded.reshape(-1, 4), boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("head", OPTIONAL)
def test_it_passes_check_detector_and_its_losses_fall(head: str):
    detector = tiny(head, edges=True, edge_bins=BINS)
    check_detector(detector)
    batch, targets = scene()
    names_without_edges = tiny(head).observe(batch, targets).losses.keys()
    optimizer = torch.optim.Adam(detector.parameters(), lr=2e-3)
    history = []
    for _ in range(12):
        losses = detector.observe(batch, targets).losses
        assert losses.keys() == names_without_edges  # there is no distribution focal loss
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert torch.tensor(history).isfinite().all()
    assert history[-1] < 0.9 * history[0]
    predictor = box_predictor(detector)
    assert predictor.out_channels % BINS == 0
    assert predictor.weight.grad.abs().amax() > 0


@pytest.mark.parametrize("head", OPTIONAL)
def test_losses_are_finite_for_boxes_without_area(head: str):
    detector = tiny(head, edges=True, edge_bins=BINS)
    with torch.no_grad():  # in single precision, the probability of any distance but 0 is then 0
        box_predictor(detector).bias.view(-1, BINS)[:, 0] = 1e4
    output = detector.observe(*scene())
    sum(output.losses.values()).backward()
    assert all(term.isfinite() for term in output.losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


@pytest.mark.parametrize("head", OPTIONAL)
def test_crosskd_compares_edge_distributions(head: str):
    student, teacher = (shake(tiny(head, seed, edges=True, edge_bins=BINS)) for seed in (0, 1))
    (method,) = build_methods({"crosskd": {"box": "edges"}}, student.info, teacher.info)
    batch, targets = scene()
    with torch.no_grad():
        teacher_output = teacher.eval().observe(batch, need=method.need)
    student_output = student.observe(batch, targets, method.student_need)
    term = method(student_output, teacher_output, targets)["box"]
    term.backward()
    assert term > 0
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.backbone_parameters())
    with pytest.raises(UserError, match="needs equal distance distributions"):
        build_methods({"crosskd": {"box": "edges"}}, student.info, tiny(head).info)


def test_gfl_always_has_edge_distributions():
    by_default, by_option = tiny("gfl"), tiny("gfl", edges=True)
    assert by_default.info == by_option.info
    state = by_option.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in by_default.state_dict().items())


@pytest.mark.parametrize("head", ["faster_rcnn", "deformable_detr"])
@pytest.mark.parametrize(("options", "field"), [({"edges": True}, "model.edges"), ({"norm": "group"}, "model.norm")])
def test_detectors_without_towers_refuse_the_options(head: str, options: dict[str, object], field: str):
    with pytest.raises(UserError, match=f"{field}: {head} has no such option"):
        tiny(head, **options)
