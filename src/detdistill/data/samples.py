"""Batches from a data set of the user's own, whose samples have the form that torchvision's detection models take."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from detdistill.data.batch import collate
from detdistill.data.examples import Example
from detdistill.errors import UserError
from detdistill.types import Batch, Targets

Sample = tuple[Tensor, Mapping[str, Any]]


def collate_samples(samples: Sequence[Sample]) -> tuple[Batch, Targets]:
    """One batch and its targets; a `collate_fn` for torch's DataLoader.

    samples: (image, target) each. image: (3, H, W) RGB, uint8 in 0..255 or float in 0..1. target: `boxes` (G, 4), xyxy
    in pixels of the image, and `labels` (G,), class indices from 0; optionally `image_id`, an integer. G may be 0.
    Images are padded with zeros at the right and the bottom to multiples of 32. Raises UserError for a sample that is
    none.
    """
    examples = [_example(index, *sample) for index, sample in enumerate(samples)]
    dtypes = {example.image.dtype for example in examples}
    if len(dtypes) > 1:
        raise UserError(f"collate: images are {' and '.join(sorted(map(str, dtypes)))}; give all of them one type")
    batch = collate(examples)
    assert not isinstance(batch, UserError)
    return batch


def _example(index: int, image: Any, target: Mapping[str, Any]) -> Example:
    name = f"sample {index} of the batch"
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != 3:
        kind = f"of shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise UserError(f"collate, {name}: the image is {kind}; give a tensor (3, H, W), RGB")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise UserError(f"collate, {name}: the image is {image.dtype}; give uint8 in 0..255 or float in 0..1")
    missing = [key for key in ("boxes", "labels") if key not in target]
    if missing:
        raise UserError(
            f"collate, {name}: the target has no {', '.join(missing)}; it has {', '.join(target) or 'nothing'}"
        )
    given, labels = target["boxes"], torch.as_tensor(target["labels"], dtype=torch.int64).reshape(-1)
    if isinstance(given, tv_tensors.BoundingBoxes) and given.format != tv_tensors.BoundingBoxFormat.XYXY:
        raise UserError(f"collate, {name}: the boxes are {given.format.value}; convert them to XYXY")
    boxes = torch.as_tensor(given, dtype=torch.float32).as_subclass(Tensor).reshape(-1, 4)
    height, width = image.shape[-2:]
    _check_boxes(name, boxes, labels, height, width)
    number = int(target.get("image_id", index))
    return Example(image.as_subclass(Tensor), boxes, labels, (height, width), number, str(number))


def _check_boxes(name: str, boxes: Tensor, labels: Tensor, height: int, width: int) -> None:
    """Raises UserError unless the boxes (G, 4) lie in the image and have one label each, from 0."""
    if len(boxes) != len(labels):
        raise UserError(f"collate, {name}: {len(boxes)} boxes and {len(labels)} labels; give one label per box")
    if len(labels) and int(labels.min()) < 0:
        raise UserError(
            f"collate, {name}: a label is {int(labels.min())}; labels count from 0 in the order of the classes"
        )
    limit = boxes.new_tensor([width, height, width, height]) + 1  # one pixel for rounding
    fits = (boxes >= -1).all(1) & (boxes <= limit).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    if not bool(fits.all()):
        wrong = [round(side, 1) for side in boxes[~fits][0].tolist()]
        size = f"the image of {height} x {width} pixels (height x width)"
        raise UserError(f"collate, {name}: {wrong} is no box x1, y1, x2, y2 in {size}; convert or remove it")
