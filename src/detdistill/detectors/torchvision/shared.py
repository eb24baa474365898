"""What the torchvision adapters have in common: host frames, host columns, host lists."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models import detection as host
from torchvision.models.detection.image_list import ImageList

from detdistill.detectors.images import host_sizes, normalize
from detdistill.distributed import mean_over_processes
from detdistill.geometry import centers
from detdistill.types import Batch, Detections, Pyramid, Targets, required


class Columns(nn.Module):
    """Shared class order to the host's class columns. Weights trained on COCO have a column per category id, with gaps; ours have none.

    No buffer is saved: which column a class has is known from the classes.
    """

    index: Tensor

    def __init__(self, columns: Sequence[int], host_columns: int):
        super().__init__()
        self.register_buffer("index", torch.tensor(list(columns)), persistent=False)
        self.identity = list(columns) == list(range(host_columns))
        self.host_columns = host_columns

    def select(self, logits: Tensor) -> Tensor:
        """(..., host columns) to (..., K)."""
        return logits if self.identity else logits.index_select(-1, self.index)


def distributional(regressor: nn.Conv2d, bins: int) -> nn.Conv2d:
    """A fresh predictor of `bins` logits for each value that `regressor` gives. All bins begin alike, so that a side begins at their middle."""
    layer = nn.Conv2d(regressor.in_channels, regressor.out_channels * bins, regressor.kernel_size[0], padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(required(layer.bias))
    return layer


def host_targets(targets: Targets) -> list[dict[str, Tensor]]:
    """The list of dicts that torchvision asks for; labels in the shared class order, to go with selected columns."""
    return [{"boxes": boxes, "labels": labels} for boxes, labels in zip(targets.boxes, targets.labels, strict=True)]


def to_detections(found: list[dict[str, Tensor]]) -> tuple[Detections, ...]:
    """torchvision's detections as ours, best first already."""
    return tuple(Detections(image["boxes"], image["scores"], image["labels"]) for image in found)


def host_anchors(generator: nn.Module, images: Tensor, batch: Batch, levels: Sequence[Tensor]) -> Tensor:
    """(N, 4) anchors, the same for every image of the batch. They are the host's own: weights were trained with its integer steps
    (image size // grid), which differ from the nominal strides on coarse levels. The host makes them in the maps' precision, and a
    coordinate above 256 does not fit in the 8 bits of a bfloat16, so it is shown empty maps in single precision."""
    shells = [level.new_empty((1, 1, *level.shape[-2:]), dtype=torch.float32) for level in levels]
    return generator(ImageList(images, host_sizes(batch.sizes)), shells)[0]


def begun_inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """(B, N) bool: the anchor's centre, which is its cell's corner, lies in its image; anchors (N, 4), valid sizes (B, 2). As
    `Layout.valid`, but with the host's own steps, which are not the nominal strides on coarse levels."""
    return (centers(anchors)[None] < sizes[:, None].flip(-1)).all(-1)


def anchor_maps(anchors: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(N, 4) anchors to (H, W, A, 4) a level."""
    cells = [level.shape[-2] * level.shape[-1] for level in levels]
    per_cell = len(anchors) // sum(cells)
    parts = anchors.split([count * per_cell for count in cells])
    return tuple(part.view(*level.shape[-2:], per_cell, 4) for part, level in zip(parts, levels, strict=True))


def host_pyramid(model: host.RetinaNet | host.FCOS, batch: Batch, strides: Sequence[int]) -> Pyramid:
    """The neck's levels of a one-stage host, normalised as it was trained, with its own anchors and the declared strides."""
    images = normalize(batch, model.transform.image_mean, model.transform.image_std)
    levels = tuple(model.backbone(images).values())
    anchors = host_anchors(model.anchor_generator, images, batch, levels)
    return Pyramid(levels, tuple(strides), batch.sizes, anchor_maps(anchors, levels))


def flat_anchors(maps: Sequence[Tensor]) -> Tensor:
    """The inverse of `anchor_maps`."""
    return torch.cat([level.reshape(-1, 4) for level in maps])


def filled(rows: Sequence[Tensor]) -> Tensor:
    """(B, P) bool: the rows that `pad_sequence` takes from `rows`, each (P_i, ...), P the longest."""
    return pad_sequence([torch.ones(len(own), dtype=torch.bool, device=own.device) for own in rows], batch_first=True)


def spread(values: Tensor, valid: Tensor) -> Tensor:
    """(n, ...) into the n True places of `valid` (B, P): (B, P, ...), 0 elsewhere."""
    spread = values.new_zeros((*valid.shape, *values.shape[1:]))
    spread[valid] = values
    return spread


def process_share(count: int, like: Tensor) -> Tensor:
    """() by which a mean over `count` local rows becomes a sum over them divided by the processes' mean count."""
    local = like.new_tensor(float(count))
    return local / mean_over_processes(local)
