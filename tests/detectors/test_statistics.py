"""Every detector normalizes images with the statistics that its backbone expects."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from detdistill.detectors.build import build, with_defaults
from detdistill.detectors.registry import DETECTORS
from detdistill.detectors.statistics import IMAGENET, UNCHANGED, PixelStatistics, pixel_statistics
from detdistill.recipe import ModelConfig
from detdistill.run.folder import ModelCard, RunFolder
from detdistill.types import Batch, Need

HALF = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = {"channels": 32, "queries": 5, "rois": 8, "tower_depth": 1, "backbone_weights": "none"}


def statistics(name: str, **fields: object) -> PixelStatistics:
    return pixel_statistics(ModelConfig.model_validate({"name": name, **fields}))


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("resnet18", IMAGENET),
        ("tf_efficientnet_lite0", HALF),
        ("tf_mobilenetv3_small_100", HALF),
        ("mobilevit_xs", UNCHANGED),
        ("vit_tiny_patch16_224", HALF),
        ("no_such_backbone", IMAGENET),
    ],
)
def test_a_backbone_has_statistics_of_its_own(backbone: str, expected: PixelStatistics) -> None:
    assert statistics(f"gfl:{backbone}") == expected


def test_a_native_backbone_has_those_of_its_family() -> None:
    assert statistics("detr:native") == IMAGENET
    assert statistics("rt_detr:native") == UNCHANGED


def test_the_recipe_replaces_each_value() -> None:
    assert statistics("gfl:tf_efficientnet_lite0", mean=(0.1, 0.2, 0.3)) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert statistics("gfl:resnet18", mean=(0, 0, 0), std=(1, 1, 1)) == UNCHANGED


def card(folder: Path, name: str, **fields: object) -> None:
    """Write the model.json of a run folder."""
    content = {"model": {"name": name, **fields}, "classes": ["a"], "category_ids": [1], "image_size": 64}
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "expected"), [("gfl:tf_efficientnet_lite0", IMAGENET), ("d_fine:tf_efficientnet_lite0", UNCHANGED)]
)
def test_an_older_run_keeps_what_it_was_trained_with(name: str, expected: PixelStatistics, tmp_path: Path) -> None:
    card(tmp_path / "old", name)
    model = RunFolder(tmp_path / "old").card().model
    assert (model.mean, model.std) == expected
    assert statistics("gfl:tf_efficientnet_lite0", backbone_weights=str(tmp_path / "old")) == expected


def test_a_new_run_stores_its_statistics(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    model = ModelConfig(name="gfl:tf_efficientnet_lite0")
    folder.save(nn.Linear(1, 1), ModelCard(model=model, classes=("a",), category_ids=(1,), image_size=64))
    assert json.loads((tmp_path / "model.json").read_text())["model"]["mean"] == [0.5, 0.5, 0.5]
    assert pixel_statistics(folder.card().model) == HALF
    card(tmp_path / "set", "gfl:resnet18", mean=[0, 0, 0], std=[1, 1, 1])
    assert statistics("gfl:tf_efficientnet_lite0", backbone_weights=str(tmp_path / "set")) == UNCHANGED


@pytest.mark.parametrize("head", list(DETECTORS))
def test_every_head_uses_them(head: str) -> None:
    """The same pixels, shifted and scaled as the statistics say, give the same maps."""
    batch = picture(torch.Generator().manual_seed(0))
    need = Need(pyramids=frozenset({"neck"}))
    maps = []
    for images, mean, std in (
        (batch.images, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        (batch.images * 0.5 + 0.25, (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)),
    ):
        torch.manual_seed(0)
        model = ModelConfig.model_validate({"name": f"{head}:resnet10t", "mean": mean, "std": std, **SMALL})
        detector = build(with_defaults(model), ("a", "b")).eval()
        shifted = Batch(images, batch.sizes, batch.originals, batch.ids, batch.names)
        maps.append(detector.observe(shifted, need=need).pyramids["neck"].levels)
    for first, second in zip(*maps, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def picture(generator: torch.Generator) -> Batch:
    """A batch of one image in 0..1."""
    sizes = torch.tensor([[128, 128]])
    return Batch(
        torch.rand(1, 3, 128, 128, generator=generator), sizes, sizes, torch.zeros(1, dtype=torch.long), ("a",)
    )
