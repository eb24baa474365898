"""Where two detectors disagree: GID's selection."""

import torch
from torchvision.ops import box_iou, nms

from detdistill.geometry import disagreement, general_instances, strongest


def boxes_of(count: int, seed: int = 0, spread: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], 1)


def test_disagreement_by_hand():
    # First row: classes differ by .1 and .4, the teacher is best and larger there. Second: the student's best .9 beats the teacher's .8,
    # but in the class that differs most, by .5, the teacher is larger. Third: all alike.
    student = torch.tensor([[0.2, 0.3], [0.9, 0.3], [0.5, 0.5]])
    teacher = torch.tensor([[0.1, 0.7], [0.6, 0.8], [0.5, 0.5]])
    boxes = torch.zeros(3, 4), torch.ones(3, 4)
    scores, chosen, labels = disagreement((student, teacher), boxes)
    torch.testing.assert_close(scores, torch.tensor([0.4, 0.5, 0.0]))
    assert labels.tolist()[:2] == [1, 1]
    assert chosen[:, 0].tolist() == [1, 0, 0]
    assert disagreement((student, teacher), boxes, side="difference")[1][:, 0].tolist() == [1, 1, 1]


def test_the_strongest_are_those_of_a_full_suppression():
    for seed in range(5):
        boxes, scores = boxes_of(300, seed, spread=60.0), torch.rand(300, generator=torch.Generator().manual_seed(seed))
        every = nms(boxes, scores, 0.3)
        for most in (1, 5, 10, 400):
            assert strongest(scores, boxes, most, 0.3, pool=4).tolist() == every[:most].tolist()


def test_instances_are_valid_within_their_image_and_apart():
    boxes = torch.stack([boxes_of(200, seed) for seed in (1, 2)])
    scores = torch.rand(2, 200, generator=torch.Generator().manual_seed(3))
    valid = torch.ones(2, 200, dtype=torch.bool)
    valid[0, :100] = False
    sizes = torch.tensor([[160, 160], [30, 60]])
    cut, (first, second) = general_instances(scores, boxes, valid, sizes, most=10, overlap=0.3)
    assert len(first) == 10 and first.min() >= 100
    assert len(second) > 1 and (boxes[1, second, 2:] > torch.tensor([60.0, 30])).any()
    assert (cut[1, second, 2:] <= torch.tensor([60.0, 30])).all() and (cut[1, second, :2] >= 0).all()
    for own in (cut[0, first], cut[1, second]):
        assert (box_iou(own, own) - torch.eye(len(own))).max() <= 0.3
    crowded = boxes_of(1).expand(1, 50, 4)
    _, only = general_instances(scores[:1, :50], crowded, valid[:1, :50].fill_(True), sizes[:1], 10, 0.3)
    assert only[0].tolist() == [int(scores[0, :50].argmax())]


def test_nothing_valid_and_boxes_without_area_are_no_instances():
    scores, boxes = torch.rand(1, 20), boxes_of(20)[None]
    sizes = torch.tensor([[200, 200]])
    nothing = torch.zeros(1, 20, dtype=torch.bool)
    assert [len(own) for own in general_instances(scores, boxes, nothing, sizes, 10, 0.3)[1]] == [0]
    points = boxes[..., :2].repeat(1, 1, 2)
    assert [len(own) for own in general_instances(scores, points, ~nothing, sizes, 10, 0.3)[1]] == [0]
