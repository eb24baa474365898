"""LD's valuable region, against hand values and a slow loop."""

import pytest
import torch

from detdistill.geometry import square_anchors, valuable_region


def squares(*corners: float, side: float = 4.0) -> torch.Tensor:
    """Boxes (n, 4) whose left upper corners are (x, 0)."""
    left = torch.tensor(corners)
    return torch.stack([left, torch.zeros_like(left), left + side, torch.full_like(left, side)], dim=-1)


def test_by_hand():
    # A box of 4 x 4 and the same moved right by 0, 1, 2, 3: IoU 1, 3/5, 1/3, 1/7. All four are candidates (fewer than nine on the level):
    # mean 0.5190, unbiased deviation 0.3719, threshold 0.8909, a quarter of it 0.2227. Less shift^2 / ((4 + shift)^2 + 16), which is
    # 1/41, 4/52, 9/65: DIoU 1, 0.5756, 0.2564, 0.0044, so the second and third are the ring. Intersection over the anchor's area, 1, 3/4,
    # 1/2, 1/4, less the same: 1, 0.7256, 0.4231, 0.1115: the same ring.
    anchors, box = squares(0, 1, 2, 3), squares(0)
    expected = torch.tensor([0, 3 / 5, 1 / 3, 0])
    for region in ("diou", "iof_compat"):
        torch.testing.assert_close(valuable_region([anchors], box, region=region), expected)
    torch.testing.assert_close(
        valuable_region([anchors], box, gamma=0.5), torch.tensor([0, 3 / 5, 0, 0])
    )  # 0.4231 < 0.4454
    assert valuable_region([anchors], box, region="inside").tolist() == [
        1,
        1,
        0,
        0,
    ]  # centres at 2, 3, 4, 5: strictly inside


def test_the_published_region_leaves_out_small_anchors_inside_a_large_box():
    box = torch.tensor([[0.0, 0, 64, 64]])
    anchors = [square_anchors(8, 8, 8, octave=4.0)[:, :, 0].reshape(-1, 4)]
    published, right = (valuable_region(anchors, box, region=region) for region in ("iof_compat", "diou"))
    within = ((anchors[0][:, :2] >= 0) & (anchors[0][:, 2:] <= 64)).all(1)
    assert published[within].sum() == 0  # covered wholly: 1 less a little, beyond the threshold
    assert right[within].sum() > 0
    assert not torch.equal(published > 0, right > 0)


@pytest.mark.parametrize("region", ["iof_compat", "diou"])
def test_slow_loop(region: str):
    generator = torch.Generator().manual_seed(3)
    anchors = [square_anchors(96 // s, 96 // s, s)[:, :, 0].reshape(-1, 4) for s in (8, 16, 32)]
    corners = torch.rand(5, 2, 2, generator=generator) * 96
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 4], dim=1)
    every = torch.cat(anchors).tolist()
    weights = [0.0] * len(every)
    for box in boxes.tolist():
        near, plain = [], []
        for own in every:
            width = max(0.0, min(own[2], box[2]) - max(own[0], box[0]))
            height = max(0.0, min(own[3], box[3]) - max(own[1], box[1]))
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (own, box)]
            hull = (max(own[2], box[2]) - min(own[0], box[0])) ** 2 + (max(own[3], box[3]) - min(own[1], box[1])) ** 2
            apart = sum((own[i] + own[i + 2] - box[i] - box[i + 2]) ** 2 / 4 for i in (0, 1))
            plain.append(width * height / (sum(areas) - width * height))
            near.append((plain[-1] if region == "diou" else width * height / areas[0]) - apart / hull)
        first, candidates = 0, []
        for level in anchors:
            places = range(first, first + len(level))
            key = [sum((every[p][i] + every[p][i + 2] - box[i] - box[i + 2]) ** 2 for i in (0, 1)) for p in places]
            candidates += [p for _, p in sorted(zip(key, places, strict=True))[:9]]
            first += len(level)
        threshold = sum(torch.std_mean(torch.tensor([plain[p] for p in candidates], dtype=torch.float64))).item()
        for place, value in enumerate(near):
            if 0.25 * threshold <= value < threshold:
                weights[place] = max(weights[place], plain[place])
    found = valuable_region(anchors, boxes, region=region)
    assert 0 < (found > 0).sum() < len(found)
    torch.testing.assert_close(found, torch.tensor(weights), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("region", ["iof_compat", "diou", "inside"])
def test_without_boxes_or_anchors_there_is_no_region(region: str):
    anchors, boxes = squares(0, 1), squares(0)
    assert valuable_region([anchors, anchors[:0]], boxes[:0], region=region).tolist() == [0, 0]
    assert valuable_region([anchors[:0]], boxes, region=region).shape == (0,)
