"""The nearest backbone that can serve."""

import timm

from detdistill.detectors.timm.examine import examine
from detdistill.detectors.timm.nearest import alternative, nearest_backbone

STRIDES = (8, 16, 32)


def test_a_relative_comes_first() -> None:
    assert nearest_backbone("botnet26t_256", STRIDES) == "halonet26t"  # of the same module of timm


def test_another_family_of_similar_name_comes_next() -> None:
    found = nearest_backbone("hiera_tiny_224", STRIDES)
    assert found is not None
    assert "hiera" in found
    assert 8 in examine(found).strides


def test_it_has_the_finest_stride_and_pretrained_weights() -> None:
    found = nearest_backbone("efficientvit_m0", STRIDES)  # its finest stride is 16
    assert found is not None
    assert 8 in examine(found).strides
    assert timm.get_pretrained_cfg(found).has_weights


def test_among_relatives_the_size_decides(monkeypatch) -> None:
    family = ["old_one", "new_small", "new_medium", "new_large"]
    sizes = {"old_one": 10, "new_small": 1, "new_medium": 8, "new_large": 90}
    nearest = "detdistill.detectors.timm.nearest."
    monkeypatch.setattr(nearest + "_family", lambda name: family)
    monkeypatch.setattr(nearest + "_parameters", sizes.__getitem__)
    monkeypatch.setattr(nearest + "_has_weights", lambda name: True)
    monkeypatch.setattr(nearest + "_serves", lambda name, strides, quick=True: name.startswith("new"))
    assert nearest_backbone("old_one", STRIDES) == "new_medium"
    monkeypatch.setattr(nearest + "_serves", lambda name, strides, quick=True: name in ("new_large", "new_small"))
    assert nearest_backbone("old_one", STRIDES) == "new_large"  # 9 times as large; the other is 10 times as small
    assert alternative("old_one", STRIDES) == ", such as 'new_large'"


def test_without_any_that_serves_none_is_named(monkeypatch) -> None:
    monkeypatch.setattr("detdistill.detectors.timm.nearest._serves", lambda name, strides, quick=True: False)
    assert alternative("resnet18", STRIDES) == ""
