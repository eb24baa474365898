"""The module around a timm model that gives it what it needs."""

import pytest
import timm
import torch
from torch import Tensor, nn

from detdistill.detectors.timm.extractor import Extractor, Fitted


class Cells(nn.Module):
    """Stands for a feature extractor with maps of strides 2 and 4: the mean of each cell. It keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        model = timm.create_model("test_resnet", features_only=True, out_indices=(0, 1), pretrained=False)
        self.feature_info = model.feature_info

    def forward(self, images: Tensor) -> list[Tensor]:
        self.images = images
        return [nn.functional.avg_pool2d(images, 2), nn.functional.avg_pool2d(images, 4)]


def needs(**changes: object) -> Extractor:
    fields = {"name": "x", "options": {}, "maps": {2: 0, 4: 1}, "widths": {2: 3, 4: 3}, "is_plain": False}
    fields |= {"channels_last": False, "unit": 32, "cell": 1, "patch": 1, "parameters": 0, "device": "meta"}
    return Extractor(**fields | changes)  # type: ignore[arg-type]


def test_images_are_padded_and_maps_are_cut() -> None:
    body = Cells()
    fitted = Fitted(body, (2, 4), needs(unit=8))
    images = torch.rand(2, 3, 10, 6)
    fine, coarse = fitted(images)
    assert body.images.shape == (2, 3, 16, 8)
    assert torch.equal(body.images[..., :10, :6], images)
    assert body.images[..., 10:, :].count_nonzero() == body.images[..., 6:].count_nonzero() == 0
    assert fine.shape == (2, 3, 5, 3)
    assert coarse.shape == (2, 3, 3, 2)
    assert torch.equal(fine, nn.functional.avg_pool2d(images, 2))


def test_images_of_the_right_size_enter_as_they_are() -> None:
    body = Cells()
    images = torch.rand(1, 3, 16, 24)
    levels = Fitted(body, (2, 4), needs(unit=8))(images)
    assert torch.equal(body.images, images)
    assert all(torch.equal(a, b) for a, b in zip(levels, body(images), strict=True))


def test_a_cell_becomes_a_patch_and_gives_one_cell_of_the_map() -> None:
    body = Cells()
    columns = torch.arange(16.0).expand(1, 3, 8, 16)
    # A patch has 4 pixels, and a cell of the detector 8: the image is halved, and strides 2 and 4 become 4 and 8.
    fine, coarse = Fitted(body, (4, 8), needs(unit=8, cell=8, patch=4))(columns)
    assert body.images.shape == (1, 3, 4, 8)
    assert fine.shape == (1, 3, 2, 4)
    assert coarse.shape == (1, 3, 1, 2)
    assert coarse[0, 0, 0].tolist() == pytest.approx([3.5, 11.5], abs=0.3)  # means of columns 0-7, 8-15


def test_axes_are_permuted() -> None:
    class Last(Cells):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [level.permute(0, 2, 3, 1) for level in super().forward(images)]

    images = torch.rand(1, 3, 8, 16)
    levels = Fitted(Last(), (2, 4), needs(channels_last=True))(images)
    assert all(torch.equal(a, b) for a, b in zip(levels, Cells()(images), strict=True))
    assert all(level.is_contiguous() for level in levels)
