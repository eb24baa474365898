"""The batch on which the checks run."""

import torch

from detdistill.data import EvalLoader, open_data
from detdistill.recipe import DataConfig
from detdistill.types import Batch, Targets

Scene = tuple[Batch, Targets]


def scene(classes: int, size: tuple[int, int] = (96, 128), count: int = 2, cut: bool = True) -> Scene:
    """A batch of `count` built-in pictures of shapes with its targets.

    size: (height, width) in pixels into which the pictures are fitted. classes: labels are below this number.
    cut: True cuts the last picture to three quarters of its sides, so that the batch has padding.
    """
    config = DataConfig(path=f"shapes:{max(count, 4)}", image_size=size, flip=0.0)
    loader = EvalLoader(open_data(config).split("train"), config, batch_size=count)
    batch, targets = next(iter(loader))
    boxes, labels = list(targets.boxes), [labels % classes for labels in targets.labels]
    if cut:
        height, width = (batch.sizes[-1] * 3 // 4).tolist()
        batch.images[-1, :, height:] = 0
        batch.images[-1, :, :, width:] = 0
        batch.sizes[-1] = torch.tensor([height, width])
        boxes[-1] = boxes[-1].minimum(boxes[-1].new_tensor([width, height, width, height]))
        kept = (boxes[-1][:, 2:] - boxes[-1][:, :2]).amin(1) > 2  # a box whose visible part is too thin is dropped
        boxes[-1], labels[-1] = boxes[-1][kept], labels[-1][kept]
    return batch, Targets(tuple(boxes), tuple(labels))
