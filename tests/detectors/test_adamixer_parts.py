"""AdaMixer's arithmetic by hand: boxes, sampling, mixing, attention, and one stage against a plain loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from detdistill.detectors.adamixer import criterion
from detdistill.detectors.adamixer.boxes import log_iof, position_embedding, refine, sides, to_boxes, to_xyzr
from detdistill.detectors.adamixer.criterion import set_terms
from detdistill.detectors.adamixer.decoder import Sizes, Stage
from detdistill.detectors.adamixer.mixing import Mixing, mix
from detdistill.detectors.adamixer.neck import ChannelMapping
from detdistill.detectors.adamixer.sampling import Sampling, level_weights, place, sample_levels
from detdistill.types import Assignment, Predictions, Targets

TINY = Sizes(groups=2, in_points=3, out_points=4, heads=2, ffn=12)


def ramp(rows: int, columns: int, stride: int) -> torch.Tensor:
    """(1, 4, rows, columns): x and y of each cell's middle in pixels, then 1 and 2."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) * stride, (torch.arange(columns) + 0.5) * stride, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x), torch.full_like(x, 2)])[None].double()


def test_xyzr_by_hand_and_back():
    box = torch.tensor([10.0, 20.0, 26.0, 84.0])  # 16 wide, 64 high
    xyzr = to_xyzr(box)
    torch.testing.assert_close(xyzr, torch.tensor([18.0, 52.0, 5.0, 2.0]))
    torch.testing.assert_close(sides(xyzr), torch.tensor([16.0, 64.0]))
    corner, size = torch.rand(50, 2, dtype=torch.double) * 300, torch.rand(50, 2, dtype=torch.double) * 200 + 1
    boxes = torch.cat([corner, corner + size], -1)
    torch.testing.assert_close(to_boxes(to_xyzr(boxes)), boxes)
    assert to_xyzr(torch.tensor([5.0, 5.0, 5.0, 5.0])).isfinite().all()


def test_refinement_by_hand():
    before = torch.tensor([18.0, 52.0, 5.0, 2.0])
    after = refine(before, torch.tensor([0.5, -0.25, 1.0, -2.0]))
    torch.testing.assert_close(after, torch.tensor([34.0, 44.0, 6.0, 0.0]))
    torch.testing.assert_close(to_boxes(after), torch.tensor([2.0, 12.0, 66.0, 76.0]))


def test_overlap_by_hand():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 20, 20], [50, 50, 60, 60]]])
    share = torch.tensor([[[1, 0.5, 1, 0], [0.5, 1, 1, 0], [0.25, 0.25, 1, 0], [0, 0, 0, 1]]])
    torch.testing.assert_close(log_iof(boxes), (share + 1e-7).log())


def test_position_embedding_by_hand():
    found = position_embedding(torch.tensor([500.0, 200.0, 7.0, -1.0]), 16)
    wanted = [
        part for v in (0.5, 0.2, 7.0, -1.0) for part in (math.sin(v), math.cos(v), math.sin(v / 100), math.cos(v / 100))
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_points_are_placed_in_sides_and_octaves():
    xyzr = torch.tensor([[[18.0, 52.0, 5.0, 2.0]]])
    offsets = torch.tensor([0.5, -0.25, -1.0]).expand(1, 1, 2, 3, 3)
    torch.testing.assert_close(place(offsets, xyzr), torch.tensor([26.0, 36.0, 4.0]).expand(1, 1, 2, 3, 3))


def test_level_weights_by_hand():
    far, near = math.exp(-4 / 2), math.exp(-1 / 2)
    wanted = torch.tensor([far, near, 1, near]) / (far + 2 * near + 1)
    torch.testing.assert_close(level_weights(torch.tensor([[4.0]]), (4, 8, 16, 32)), wanted[None, None])


def test_a_ramp_in_pixels_reads_its_own_coordinates_on_every_level():
    levels, strides = [ramp(16, 24, 4), ramp(8, 12, 8)], (4, 8)
    points = torch.tensor(
        [[[[37.0, 21.5, 2.3], [50.25, 44.0, 3.0]], [[8.0, 30.0, 2.0], [70.0, 12.0, 9.0]]]], dtype=torch.double
    )[:, None]
    found = sample_levels(levels, strides, points)
    assert found.shape == (1, 1, 2, 2, 2)  # two groups of two points, each with two channels
    torch.testing.assert_close(found[0, 0, 0], points[0, 0, 0, :, :2])  # the first group reads x and y
    torch.testing.assert_close(found[0, 0, 1], torch.tensor([[1.0, 2.0]] * 2, dtype=torch.double))


def test_levels_are_blended_by_z_and_nothing_lies_off_the_map():
    levels = [torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 2, 2), 10.0)]
    points = torch.tensor([[8.0, 8.0, 2.0], [8.0, 8.0, 2.5], [-8.0, 8.0, 2.0], [40.0, 8.0, 2.0]])[None, None, None]
    found = sample_levels(levels, (4, 8), points)[0, 0, 0, :, 0]
    fine = 1 / (1 + math.exp(-0.5))  # z is on the first level, and an octave from the second
    torch.testing.assert_close(found, torch.tensor([fine + 10 * (1 - fine), 5.5, 0.0, 0.0]))


def test_images_queries_and_groups_are_not_mixed_up():
    """Each reads its own image, place and channels: against a loop over everything."""
    torch.manual_seed(0)
    levels, strides = [torch.randn(2, 6, 5, 7), torch.randn(2, 6, 3, 4)], (8, 16)
    points = torch.rand(2, 3, 2, 4, 3) * torch.tensor([56.0, 40.0, 2.0]) + torch.tensor([0.0, 0.0, 3.0])
    found = sample_levels(levels, strides, points)
    for index in torch.cartesian_prod(*map(torch.arange, (2, 3, 2, 4))).tolist():
        image, _, group, _ = index
        wanted = _look(levels, strides, points[tuple(index)], image, slice(3 * group, 3 * group + 3))
        torch.testing.assert_close(found[tuple(index)], wanted, rtol=1e-4, atol=1e-5)


def _look(levels, strides, point, image, channels):
    """The plain way: bilinear by hand on every level."""
    x, y, z = point.tolist()
    logits = [-((z - math.log2(stride)) ** 2) / 2 for stride in strides]
    total = torch.zeros(channels.stop - channels.start)
    for level, stride, logit in zip(levels, strides, logits, strict=True):
        column, row = x / stride - 0.5, y / stride - 0.5
        left, top = math.floor(column), math.floor(row)
        for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= i < level.shape[2] and 0 <= j < level.shape[3]:
                share = (1 - abs(row - i)) * (1 - abs(column - j)) * math.exp(logit) / sum(map(math.exp, logits))
                total = total + share * level[image, channels, i, j]
    return total


def test_the_first_points_lie_in_the_box_at_half_its_size():
    sampling = Sampling(16, 4, 5)
    offsets = sampling.offsets(torch.randn(3, 16)).detach().unflatten(-1, (4, 5, 3))
    assert (offsets == offsets[:1]).all()
    assert (offsets[..., 2] == -1).all()
    assert 0 < float(offsets[..., :2].abs().amax()) <= 0.5
    assert len(offsets[0, ..., 0].unique()) == 20


def standardized(values: list[float]) -> torch.Tensor:
    """As a layer norm has it, in plain numbers."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
    return torch.tensor([(value - mean) / spread for value in values])


def test_mixing_by_hand():
    samples = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    spatial = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    first = standardized([2, 1, 4, 3]).clamp(min=0)  # channels swapped, over points and channels together
    a, b, c, d = first.tolist()
    assert (a, b) == (0, 0)
    wanted = standardized([c, d, a, b, a + c, b + d]).clamp(min=0).view(3, 2)
    torch.testing.assert_close(mix(samples, swap, spatial), wanted)

    mixing = Mixing(4, groups=2, in_points=2, out_points=3)
    assert not mixing.generator.weight.any()
    with torch.no_grad():  # the second group leaves channels as they are
        mixing.generator.bias.copy_(
            torch.cat([swap.flatten(), spatial.flatten(), torch.eye(2).flatten(), spatial.flatten()])
        )
        mixing.project.weight.zero_()
        mixing.project.bias.zero_()
        for output, (group, point, channel) in enumerate([(0, 0, 1), (0, 2, 0), (1, 0, 1), (1, 2, 0)]):
            mixing.project.weight[output, (group * 3 + point) * 2 + channel] = 1
    content = torch.randn(1, 1, 4)
    found = mixing(samples.expand(1, 1, 2, 2, 2), content)[0, 0] - content[0, 0]
    plain = mix(samples, torch.eye(2), spatial)
    torch.testing.assert_close(
        found, torch.stack([wanted[0, 1], wanted[2, 0], plain[0, 1], plain[2, 0]]), rtol=1e-4, atol=1e-5
    )


def test_gradients_of_sampling_mixing_and_boxes():
    torch.manual_seed(1)
    levels = [
        torch.randn(1, 4, 4, 6, dtype=torch.double, requires_grad=True),
        torch.randn(1, 4, 2, 3, dtype=torch.double, requires_grad=True),
    ]
    offsets = (torch.rand(1, 2, 2, 2, 3, dtype=torch.double) - 0.5).requires_grad_()
    xyzr = torch.tensor([[[20.0, 15.0, 3.7, 0.3], [27.0, 18.0, 3.1, -0.4]]], dtype=torch.double, requires_grad=True)

    def sampled(fine, coarse, offsets, xyzr):
        return sample_levels([fine, coarse], (8, 16), place(offsets, xyzr))

    assert torch.autograd.gradcheck(sampled, (*levels, offsets, xyzr))
    parts = [torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((2, 3, 2), (2, 2, 2), (2, 4, 3))]
    assert torch.autograd.gradcheck(mix, parts)
    delta = torch.randn(1, 2, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda xyzr, delta: to_boxes(refine(xyzr, delta)), (xyzr, delta))


def test_attention_keeps_to_overlapping_boxes():
    torch.manual_seed(0)
    stage = Stage(8, 3, TINY).eval()
    xyzr = to_xyzr(torch.tensor([[[0.0, 0, 40, 40], [10, 10, 50, 50], [100, 100, 140, 140]]]))
    content, other = torch.randn(1, 3, 8), torch.randn(1, 1, 8)
    changed = torch.cat([content[:, :2], other], 1)
    with torch.no_grad():
        for tau, seen in ((0.0, True), (4.0, False)):
            stage.overlap.fill_(tau)
            difference = (stage.attend(content, xyzr) - stage.attend(changed, xyzr)).abs().amax(-1)[0]
            assert bool(difference[0] > 1e-4) is seen


def test_a_stage_equals_a_plain_loop():
    torch.manual_seed(0)
    stage = Stage(8, 3, TINY).eval()
    with torch.no_grad():  # the published start hides what hangs on the content
        for weight in (stage.sampling.offsets.weight, stage.mixing.generator.weight, stage.bbox_embed.weight):
            weight.normal_(std=0.2)
    levels, strides = [torch.randn(1, 8, 6, 8), torch.randn(1, 8, 3, 4)], (8, 16)
    xyzr = to_xyzr(torch.tensor([[[4.0, 6, 40, 44], [10, 2, 60, 30], [20, 20, 50, 40]]]))
    content = torch.randn(1, 3, 8)
    with torch.no_grad():
        state, logits, delta = stage(content, xyzr, levels, strides)
        for query in range(3):
            wanted = _plain_stage(stage, content[0], xyzr[0], query, levels, strides)
            torch.testing.assert_close(state[0, query], wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                logits[0, query], stage.class_embed(stage.classify(wanted)), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(delta[0, query], stage.bbox_embed(stage.regress(wanted)), rtol=1e-4, atol=1e-5)


def _plain_stage(stage, content, xyzr, query, levels, strides):
    """One query through one stage, heads and groups one after another."""
    boxes = to_boxes(xyzr)
    placed = content + torch.stack([position_embedding(row, 8) for row in xyzr])
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (
            F.linear(placed, weight[rows], bias[rows])
            for weight, bias in zip(
                stage.attention.in_proj_weight.chunk(3), stage.attention.in_proj_bias.chunk(3), strict=True
            )
        )
        bias = stage.overlap[head] * log_iof(boxes[None])[0, query]
        heads.append((k @ q[query] / math.sqrt(4) + bias).softmax(0) @ v)
    value = stage.norms[0](placed[query] + stage.attention.out_proj(torch.cat(heads)))
    offsets = stage.sampling.offsets(value).view(2, 3, 3)
    weights = stage.mixing.generator(value).view(2, 4 * 4 + 4 * 3)
    mixed = []
    for group in range(2):
        points = [place(offset.view(1, 1, 1, 1, 3), xyzr[query].view(1, 1, 4)).flatten() for offset in offsets[group]]
        samples = torch.stack([_look(levels, strides, point, 0, slice(4 * group, 4 * group + 4)) for point in points])
        channel, spatial = weights[group, :16].view(4, 4), weights[group, 16:].view(4, 3)
        mixed.append(mix(samples, channel, spatial).flatten())
    value = stage.norms[1](value + stage.mixing.project(torch.cat(mixed)))
    return stage.norms[2](value + stage.feed_forward(value))


def test_the_neck_shares_one_norm_and_pools_what_the_backbone_lacks():
    neck = ChannelMapping((3, 5), 8, extra=2)
    maps = [torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6)]
    levels = neck(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3), (2, 8, 1, 2)]
    last = neck.convolutions[1](maps[1])
    torch.testing.assert_close(levels[2], neck.norm(F.avg_pool2d(last, 3, 2, 1)))
    assert sum(parameter.numel() for parameter in neck.parameters()) == 3 * 8 + 8 + 5 * 8 + 8 + 16


def stage_of(boxes: list[list[float]], logits: torch.Tensor, matched: list[int], valid: list[bool]) -> Predictions:
    assignment = Assignment(torch.tensor([matched]), torch.tensor([valid]), torch.tensor(1.0))
    rows = torch.ones(1, len(boxes), dtype=torch.bool)
    return Predictions(logits[None], "sigmoid", torch.tensor([boxes]), rows, assignment=assignment)


def test_terms_by_hand(monkeypatch: pytest.MonkeyPatch):
    boxes = [[10.0, 10, 50, 30], [0, 0, 100, 50], [0, 0, 12, 10]]
    logits = torch.tensor([[0.0, 1.0], [-1.0, 0.5], [2.0, 2.0]])
    targets = Targets((torch.tensor([[0.0, 0, 10, 10], [20, 10, 60, 30]]),), (torch.tensor([0, 1]),))
    frame = torch.tensor([[50, 100]])
    stage = stage_of(boxes, logits, [1, -1, 0], [True, True, False])  # the third is left out, matched as it is

    def focal(logit: float, wanted: bool) -> float:
        p = 1 / (1 + math.exp(-logit))
        return -0.25 * (1 - p) ** 2 * math.log(p) if wanted else -0.75 * p**2 * math.log(1 - p)

    terms = set_terms([stage, stage], frame, targets)
    assert list(terms) == ["classification_0", "box_0", "giou_0", "classification", "box", "giou"]
    classification = 2 * (focal(0, False) + focal(1, True) + focal(-1, False) + focal(0.5, False)) / 2
    assert float(terms["classification"]) == pytest.approx(classification, rel=1e-5)
    assert float(terms["box"]) == pytest.approx(5 * (0.1 + 0.1) / 2)  # both corners are 10 of 100 pixels to the left
    assert float(terms["giou"]) == pytest.approx(2 * (1 - 600 / 1000) / 2)  # the hull is the union
    assert float(terms["giou_0"]) == float(terms["giou"])
    monkeypatch.setattr(criterion, "mean_over_processes", lambda count: 2 * count)
    assert float(set_terms([stage], frame, targets)["box"]) == pytest.approx(5 * 0.2 / 4)


def test_a_box_that_is_not_finite_is_told_though_nothing_is_matched():
    stage = stage_of([[0.0, 0.0, float("inf"), 1.0]], torch.zeros(1, 2), [-1], [True])
    terms = set_terms(
        [stage], torch.tensor([[50, 100]]), Targets((torch.zeros(0, 4),), (torch.zeros(0, dtype=torch.long),))
    )
    assert terms["box"].isnan()
    assert terms["giou"].isnan()
