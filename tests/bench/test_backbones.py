"""A quick part of `bench/backbones.py`: backbones that need different things are built, loaded, trained, exported."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from detdistill.detectors.timm.examples import EXAMPLES

BENCH = runpy.run_path(str(Path(__file__).parents[2] / "bench/backbones.py"))
TINY = {  # what is special, and if the RT-DETR on it can be exported
    "resnet10t": ("", True),
    "mobilenetv4_conv_small_035": ("", True),
    "convnext_atto": ("", True),  # timm's extractor renames its stages
    "pvt_v2_b0": ("", True),
    "mobilevitv2_050": ("images padded to multiples of 64", True),
    "mambaout_femto": ("axes of its maps permuted", False),
    "eva02_tiny_patch14_224": ("simple pyramid on its last map, images resized by 14/16", False),
}


@pytest.mark.parametrize("name", TINY)
def test_a_backbone_loads_trains_and_is_exported_or_refused(name: str, tmp_path: Path) -> None:
    row = BENCH["run"](name, tmp_path)
    remark, is_exported = TINY[name]
    assert (row["loads"], row["trains"], row["remark"]) == ("yes", "yes", remark)
    if is_exported:
        assert row["exports"] == "yes"
    else:
        assert row["exports"].startswith(f"no: --format transformers: transformers alone can't run {name} as here")


def test_a_refused_backbone_has_the_reason_and_the_nearest_one(tmp_path: Path) -> None:
    row = BENCH["run"]("hiera_tiny_224", tmp_path)
    assert row["parameters"] is None and "loads" not in row
    assert row["remark"].startswith("accepts images of one size only; choose another backbone, such as ")


def test_the_table_numbers_each_reason_once() -> None:
    facts = {"parameters": 1_500_000, "operations": 2e9, "strides": (8, 16), "normalization": "0.5", "remark": "odd"}
    rows: list[dict[str, Any]] = [
        {"backbone": "net_one", **facts, "loads": "yes", "trains": "yes", "exports": "no: net_one can't"},
        {
            "backbone": "net_two",
            **facts,
            "loads": "yes",
            "trains": "FAILED: KeyError: 1",
            "exports": "no: net_two can't",
        },
        {"backbone": "net_three", **facts, "parameters": None, "operations": None, "strides": ()},
    ]
    assert BENCH["markdown"](rows).splitlines()[2:] == [
        "| net_one | 1.50 M | 2.00 G | 8, 16 | 0.5 | yes | yes | no [1] | odd |",
        "| net_two | 1.50 M | 2.00 G | 8, 16 | 0.5 | yes | FAILED [2] | no [1] | odd |",
        "| net_three | - | - | - | 0.5 | - | - | - | odd |",
        "",
        "1. it can't",
        "2. KeyError: 1",
    ]


def test_the_examples_are_forty_or_more_different_models() -> None:
    assert len(set(EXAMPLES)) == len(EXAMPLES) >= 40
