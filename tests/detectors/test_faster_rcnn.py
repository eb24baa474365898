"""Faster R-CNN: equal to torchvision's own forward, and able to continue from boxes and pyramids that are not its own."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as host
from torchvision.ops import MultiScaleRoIAlign

from detdistill.detectors.images import host_sizes
from detdistill.detectors.torchvision import shared as rows
from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN, faster_rcnn
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, Need, Pyramid, Targets

CLASSES = ("disc", "square", "cross")
STRIDES = (8, 16, 32, 64)
ALL = Need(predictions=True, proposals=True)


def build(seed: int = 0, classes: tuple[str, ...] = CLASSES, strides: tuple[int, ...] = STRIDES) -> FasterRCNN:
    torch.manual_seed(seed)
    config = ModelConfig(strides=strides, channels=32, backbone_weights="none", score_threshold=0.05)
    return faster_rcnn(config, "mobilenetv2_035", classes)


def padded(batch: Batch, height: int, width: int) -> Batch:
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
def nothing() -> Targets:
    return Targets((torch.zeros(0, 4),) * 2, (torch.zeros(0, dtype=torch.int64),) * 2)


def host_images(batch: Batch) -> list[Tensor]:
    return [
        image[:, :height, :width] for image, (height, width) in zip(batch.images, host_sizes(batch.sizes), strict=True)
    ]


def host_targets(targets: Targets) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(targets.boxes, targets.labels, strict=True)]


def unresized(model: host.FasterRCNN) -> host.FasterRCNN:
    model.transform.resize = lambda image, target: (image, target)
    return model


# ---- equal to the library


def test_losses_are_the_hosts(batch: Batch, targets: Targets) -> None:
    theirs, ours = unresized(build().model).train(), build().train()
    theirs.roi_heads.fg_bg_sampler.batch_size_per_image = ours.model.roi_heads.fg_bg_sampler.batch_size_per_image = 64
    torch.manual_seed(1)
    expected = theirs(host_images(batch), host_targets(targets))
    torch.manual_seed(1)
    losses = ours.observe(batch, targets).losses
    assert {f"loss_{name}" for name in losses} == set(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[f"loss_{name}"], rtol=1e-5, atol=0)
    for name, value in ours.model.state_dict().items():  # batch norm saw the same rows as well
        torch.testing.assert_close(value, theirs.state_dict()[name])


def test_detections_are_the_hosts(batch: Batch) -> None:
    theirs, ours = unresized(build().model).eval(), build().eval()
    with torch.no_grad():
        expected = theirs(host_images(batch))
    for mine, image in zip(ours.detect(batch), expected, strict=True):
        assert len(mine.boxes) > 10
        torch.testing.assert_close(mine.boxes, image["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(mine.scores, image["scores"], rtol=1e-5, atol=1e-6)
        assert torch.equal(mine.labels, image["labels"] - 1)


def test_a_pretrained_models_columns_are_found(batch: Batch, targets: Targets) -> None:
    """Category ids as columns, with gaps: the scores of the classes that were asked for stay the host's."""
    model = unresized(build(classes=("any",) * 90).model).eval()
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
    translate = {3: 0, 90: 1, 17: 2}
    for mine, image in zip(detector.detect(batch), expected, strict=True):
        kept = [index for index, label in enumerate(image["labels"].tolist()) if label in translate]
        assert 10 < len(kept) < len(image["labels"])
        assert [translate[int(image["labels"][index])] for index in kept] == mine.labels.tolist()
        torch.testing.assert_close(mine.boxes, image["boxes"][kept])
        torch.testing.assert_close(mine.scores, image["scores"][kept])
    asked = []
    select = model.roi_heads.select_training_samples
    with patch.object(
        model.roi_heads, "select_training_samples", lambda boxes, host: asked.extend(host) or select(boxes, host)
    ):
        detector.observe(batch, targets)
    assert [own["labels"].tolist() for own in asked] == [[3, 17, 90], [90]]


def on_a_pyramid() -> host.FasterRCNN:
    return host.FasterRCNN(host.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None), 4)


def on_one_level() -> host.FasterRCNN:
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 16, stride=16), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
    backbone.out_channels = 16
    anchors = host.rpn.AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    pool = MultiScaleRoIAlign(["0"], 3, 2)
    return host.FasterRCNN(backbone, 4, rpn_anchor_generator=anchors, box_roi_pool=pool)


@pytest.mark.parametrize(("make", "strides"), [(on_a_pyramid, (4, 8, 16, 32, 64)), (on_one_level, (16,))])
def test_a_model_of_the_librarys_own_is_taken_as_it_is(
    make: Callable[[], host.FasterRCNN], strides: tuple[int, ...], batch: Batch, targets: Targets
) -> None:
    torch.manual_seed(0)
    theirs = unresized(make()).eval()
    ours = FasterRCNN(copy.deepcopy(theirs), CLASSES, strides).eval()
    with torch.no_grad():
        for mine, image in zip(ours.detect(batch), theirs(host_images(batch)), strict=True):
            assert len(mine.boxes) > 10
            torch.testing.assert_close(mine.boxes, image["boxes"], rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(mine.scores, image["scores"])
        torch.manual_seed(1)
        expected = theirs.train()(host_images(batch), host_targets(targets))
        torch.manual_seed(1)
        for name, value in ours.train().observe(batch, targets).losses.items():
            torch.testing.assert_close(value, expected[f"loss_{name}"], rtol=1e-5, atol=0)


def test_state_dict_is_the_hosts() -> None:
    ours, other = build(0), build(1)
    assert {name.removeprefix("model.") for name in ours.state_dict()} == set(ours.model.state_dict())
    other.model.load_state_dict(ours.model.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ours.state_dict().items())


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
        own = roi.assignment.matched[index]
        proposals = output.proposals.boxes[index][own >= 0]
        overlap = torch.stack([_iou(box, boxes[match]) for box, match in zip(proposals, own[own >= 0], strict=True)])
        assert (overlap >= 0.5).all()
        assert set(own[own >= 0].tolist()) == set(range(len(boxes)))  # the ground truth is among its proposals
    assert roi.assignment.num_positives == (roi.assignment.matched >= 0).sum()
    assert not (roi.assignment.positive & ~roi.assignment.valid).any()
    anchors = torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors])
    whole = output.assign(targets)
    assert set(whole.matched[0].tolist()) == {-2, -1, 0, 1, 2}
    best = [int(torch.stack([_iou(anchor, box) for anchor in anchors]).argmax()) for box in targets.boxes[0]]
    assert whole.matched[0, best].tolist() == [0, 1, 2]
    drawn = rpn.assignment.valid.sum(1)
    assert (drawn <= 256).all()
    assert (rpn.assignment.valid <= whole.valid).all()


def _iou(first: Tensor, second: Tensor) -> Tensor:
    overlap = (torch.minimum(first[2:], second[2:]) - torch.maximum(first[:2], second[:2])).clamp(min=0).prod()
    return overlap / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - overlap)


def test_boxes_are_those_of_the_likeliest_class(batch: Batch) -> None:
    detector = build().eval()
    output = detector.observe(batch, need=ALL)
    roi, proposals = output.stages[-1], output.proposals.boxes
    spot = roi.logits.argmax(-1)
    code = roi.deltas.gather(2, spot[..., None, None].expand(-1, -1, 1, 4))[:, :, 0] / torch.tensor(
        [10.0, 10.0, 5.0, 5.0]
    )
    size = proposals[..., 2:] - proposals[..., :2]
    center = (proposals[..., :2] + proposals[..., 2:]) / 2 + code[..., :2] * size
    size = size * code[..., 2:].exp()
    expected = torch.cat([center - size / 2, center + size / 2], -1)
    torch.testing.assert_close(roi.boxes[roi.valid], expected[roi.valid], rtol=1e-5, atol=1e-4)


def test_mode_changes_neither_types_nor_proposals(batch: Batch, targets: Targets) -> None:
    """torchvision keeps 2000 proposals in training and 1000 in evaluation, and returns losses in training only."""
    detector = build(strides=(4, 8, 16, 32, 64)).eval()
    rpn = detector.model.rpn
    rpn._pre_nms_top_n, rpn._post_nms_top_n = {"training": 60, "testing": 20}, {"training": 30, "testing": 10}
    with torch.no_grad():
        plain = detector.observe(batch, need=ALL)
        assert plain.proposals.boxes.shape[1] == 10
        taught = detector.observe(batch, targets)
        assert taught.proposals.boxes.shape[1] == 33  # 30 and the ground truth
        assert len(taught.losses) == 4
        for layer in (rpn, detector.model.roi_heads):
            layer.train()  # the flags alone: no norm is below these two
        torch.testing.assert_close(detector.observe(batch, need=ALL).proposals.boxes, plain.proposals.boxes)
        assert rpn.training
        assert detector.detect(batch)


def test_it_stops_where_the_need_ends(batch: Batch) -> None:
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


def test_classify_repeats_its_own_stage(batch: Batch, targets: Targets) -> None:
    detector = build().eval()
    for output in (detector.observe(batch, need=ALL), detector.observe(batch, targets)):
        again = output.proposals.classify(output.proposals.boxes)
        own = output.stages[-1]
        for name in ("logits", "boxes", "background", "deltas", "embeddings"):
            torch.testing.assert_close(getattr(again, name), getattr(own, name))
        assert torch.equal(again.valid, own.valid)


def test_classify_goes_through_frozen_parts_into_anothers_pyramid(batch: Batch, targets: Targets) -> None:
    teacher, student = build(0).eval().requires_grad_(False), build(1).train()
    with torch.no_grad():
        lesson = teacher.observe(batch, need=ALL)
    mine = student.observe(batch, targets)
    crossed = lesson.proposals.classify(mine.proposals.boxes, mine.pyramids["neck"])
    assert torch.equal(crossed.valid, mine.proposals.valid)
    (crossed.logits.square().sum() + crossed.deltas.square().sum() + crossed.boxes.square().sum()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in student.model.roi_heads.parameters())
    assert all(parameter.grad is None for parameter in student.model.rpn.parameters())
    assert (
        sum(parameter.grad.abs().sum() for parameter in student.backbone_parameters() if parameter.grad is not None) > 0
    )
    own = lesson.proposals.classify(mine.proposals.boxes)
    assert not torch.allclose(own.logits, crossed.logits)
    repeated = lesson.proposals.classify(mine.proposals.boxes, lesson.pyramids["neck"])
    torch.testing.assert_close(repeated.logits, own.logits)


def test_classify_takes_levels_by_stride_and_leaves_out_empty_rows(batch: Batch) -> None:
    detector = build().eval()
    output = detector.observe(batch, need=ALL)
    neck, boxes = output.pyramids["neck"], output.proposals.boxes[:, :5].clone()
    boxes[0, 2] = 0
    own = output.proposals.classify(boxes)
    assert own.valid[0].tolist() == [True, True, False, True, True]
    assert not own.logits[0, 2].any()
    finer = Pyramid((torch.zeros(2, 32, 16, 24), *neck.levels[:3]), (4, 8, 16, 32), neck.sizes)
    torch.testing.assert_close(output.proposals.classify(boxes, finer).logits, own.logits)
    with pytest.raises(
        ValueError, match=r"reads 32 channels at strides \(8, 16, 32\), the pyramid has .*\{16: 32, 32: 32\}"
    ):
        output.proposals.classify(boxes, Pyramid(neck.levels[1:3], (16, 32), neck.sizes))
    none = output.proposals.classify(boxes[:, :0])
    assert none.logits.shape == (2, 0, 3)


# ---- frame, padding, empty input, training


def test_padding_moves_no_box(batch: Batch) -> None:
    detector = build().eval()
    torch.nn.init.zeros_(detector.model.rpn.head.bbox_pred.weight)  # then RPN boxes are the anchors
    with torch.no_grad():
        near, far = (detector.observe(padded(batch, *size), need=ALL) for size in ((64, 128), (128, 192)))
    for before, after in zip(near.pyramids["neck"].anchors, far.pyramids["neck"].anchors, strict=True):
        assert torch.equal(before, after[: before.shape[0], : before.shape[1]])
    first, second = near.stages[0], far.stages[0]
    assert torch.equal(first.boxes[first.valid], second.boxes[second.valid])
    assert (near.proposals.boxes[1] <= torch.tensor([80.0, 48.0, 80.0, 48.0])).all()  # xyxy within the valid (48, 80)


def test_scales_are_declared_not_inferred(batch: Batch) -> None:
    """torchvision would take the stride for the ratio of the map to the largest image, here 21 pixels of 64, and keep it for good."""
    detector = build().eval()
    sizes = torch.full((2, 2), 21)
    detector.observe(replace(batch, sizes=sizes), need=ALL)
    assert detector.model.roi_heads.box_roi_pool.scales == [1 / 8, 1 / 16, 1 / 32]


def test_no_objects_give_finite_losses(batch: Batch, nothing: Targets) -> None:
    detector = build().train()
    output = detector.observe(batch, nothing)
    total = sum(output.losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert output.losses["rpn_box_reg"] == output.losses["box_reg"] == 0
    assert output.stages[1].assignment.num_positives == 2  # one an image
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_no_proposals_give_finite_losses(batch: Batch, nothing: Targets) -> None:
    detector = build().eval()
    detector.model.rpn.score_thresh = 1.1
    output = detector.observe(batch, nothing)
    assert output.stages[-1].logits.shape == (2, 0, 3)
    assert torch.isfinite(sum(output.losses.values()))
    assert [len(image.boxes) for image in detector.detect(batch)] == [0, 0]


def test_counts_are_averaged_over_processes(batch: Batch, targets: Targets) -> None:
    """As if the other process had no rows: the mean count halves, so the local mean counts twice."""
    detector = build().eval()
    torch.manual_seed(3)
    alone = detector.observe(batch, targets).losses
    torch.manual_seed(3)
    with patch.object(rows, "mean_over_processes", lambda count: count / 2):
        shared = detector.observe(batch, targets).losses
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], 2 * value)


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
    body = {id(parameter) for parameter in detector.backbone_parameters()}
    assert body == {id(parameter) for name, parameter in detector.named_parameters() if ".body." in name}


def test_half_precision_keeps_boxes_single(batch: Batch, targets: Targets) -> None:
    detector = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector.observe(batch, targets)
        again = output.proposals.classify(output.proposals.boxes)
    assert {level.dtype for level in output.pyramids["neck"].anchors} == {torch.float32}
    for part in (*output.stages, again):
        assert part.boxes.dtype == part.logits.dtype == torch.float32
    assert torch.isfinite(sum(output.losses.values()))


def test_info_is_known_before_any_image() -> None:
    info = build(strides=(4, 8, 16, 32, 64)).info
    assert (info.kind, info.activation) == ("faster_rcnn", "softmax")
    assert info.towers is info.queries is None
    assert (info.strides, info.channels, info.grid.anchors_per_cell) == ((4, 8, 16, 32, 64), {"neck": 32}, 3)
    assert [level[1] for level in info.cell_anchors] == [(32, 32), (64, 64), (128, 128), (256, 256), (512, 512)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"classes": ("a", "b")}, r"2 classes with columns \[1, 2, 3\] don't fit a predictor of 4 columns"),
        ({"columns": (0, 1, 2)}, "give each class a column from 1 to 3"),
        ({"columns": (1, 1, 2)}, "give each class a column from 1 to 3"),
        ({"columns": (1, 2, 4)}, "give each class a column from 1 to 3"),
        ({"strides": (8, 16)}, "anchors for 4 levels; give 4 strides"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        FasterRCNN(build().model, **({"classes": CLASSES, "strides": STRIDES} | wrong))
