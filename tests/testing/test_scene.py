"""The batch on which the checks run."""

import torch

from detdistill.testing import scene


def test_the_batch_is_padded_and_its_boxes_lie_inside():
    batch, targets = scene(2, (96, 128), count=3)
    assert batch.images.shape == (3, 3, 96, 128)
    assert batch.images[-1, :, int(batch.sizes[-1, 0]) :].sum() == 0
    assert (batch.sizes[-1] < batch.sizes[0]).all()
    for boxes, labels, (height, width) in zip(targets.boxes, targets.labels, batch.sizes.tolist(), strict=True):
        assert len(boxes)
        assert boxes.min() >= 0
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert set(labels.tolist()) <= {0, 1}
