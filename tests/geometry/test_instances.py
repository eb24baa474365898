"""GID's selection of instances where two detectors disagree."""

import torch
from torchvision.ops import box_iou, nms

from detdistill.geometry import disagreement, general_instances, strongest


def random_boxes(count: int, seed: int = 0, spread: float = 100.0) -> torch.Tensor:
    """(count, 4) boxes with sides of 5 to 45 pixels, whose first corners are in 0..spread."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], 1)


def test_disagreement_by_hand():
    # First row: the classes differ by .1 and .4; the teacher has the best score and is larger in the second class.
    # Second row: the student's best score .9 is above the teacher's .8, but in the class that differs most, by .5, the
    # teacher is larger. Third row: all scores are equal.
    student = torch.tensor([[0.2, 0.3], [0.9, 0.3], [0.5, 0.5]])
    teacher = torch.tensor([[0.1, 0.7], [0.6, 0.8], [0.5, 0.5]])
    boxes = torch.zeros(3, 4), torch.ones(3, 4)
    scores, chosen, labels = disagreement((student, teacher), boxes)
    torch.testing.assert_close(scores, torch.tensor([0.4, 0.5, 0.0]))
    assert labels.tolist()[:2] == [1, 1]
    assert chosen[:, 0].tolist() == [1, 0, 0]
    assert disagreement((student, teacher), boxes, side="difference")[1][:, 0].tolist() == [1, 1, 1]


def test_the_strongest_equal_a_full_suppression():
    for seed in range(5):
        boxes = random_boxes(300, seed, spread=60.0)
        scores = torch.rand(300, generator=torch.Generator().manual_seed(seed))
        survivors = nms(boxes, scores, 0.3)
        for limit in (1, 5, 10, 400):
            assert strongest(scores, boxes, limit, 0.3, pool=4).tolist() == survivors[:limit].tolist()


def test_instances_are_valid_clipped_to_their_image_and_do_not_overlap_much():
    boxes = torch.stack([random_boxes(200, seed) for seed in (1, 2)])
    scores = torch.rand(2, 200, generator=torch.Generator().manual_seed(3))
    valid = torch.ones(2, 200, dtype=torch.bool)
    valid[0, :100] = False
    sizes = torch.tensor([[160, 160], [30, 60]])
    clipped, (first, second) = general_instances(scores, boxes, valid, sizes, limit=10, iou_threshold=0.3)
    assert len(first) == 10 and first.min() >= 100
    assert len(second) > 1 and (boxes[1, second, 2:] > torch.tensor([60.0, 30])).any()
    assert (clipped[1, second, 2:] <= torch.tensor([60.0, 30])).all() and (clipped[1, second, :2] >= 0).all()
    for instances in (clipped[0, first], clipped[1, second]):
        assert (box_iou(instances, instances) - torch.eye(len(instances))).max() <= 0.3
    equal_boxes = random_boxes(1).expand(1, 50, 4)
    _, rows = general_instances(scores[:1, :50], equal_boxes, valid[:1, :50].fill_(True), sizes[:1], 10, 0.3)
    assert rows[0].tolist() == [int(scores[0, :50].argmax())]


def test_invalid_boxes_and_boxes_without_area_are_no_instances():
    scores, boxes = torch.rand(1, 20), random_boxes(20)[None]
    sizes = torch.tensor([[200, 200]])
    none_valid = torch.zeros(1, 20, dtype=torch.bool)
    assert [len(rows) for rows in general_instances(scores, boxes, none_valid, sizes, 10, 0.3)[1]] == [0]
    points = boxes[..., :2].repeat(1, 1, 2)
    assert [len(rows) for rows in general_instances(scores, points, ~none_valid, sizes, 10, 0.3)[1]] == [0]
