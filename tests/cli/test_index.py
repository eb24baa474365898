"""The stored facts are those of the code. `make docs` writes them."""

import subprocess
import sys

import pytest

from detdistill.cli import facts, index
from detdistill.detectors.registry import DETECTORS
from detdistill.detectors.timm.examples import EXAMPLES
from detdistill.methods import METHODS
from detdistill.methods.pkd import PKD


def test_the_stored_facts_are_those_of_the_code() -> None:
    assert index.detectors() == facts.all_detectors()
    assert index.methods() == facts.all_methods()
    assert index.torchvision_names() == facts.torchvision_names()


def test_the_stored_backbones_are_those_of_the_code() -> None:
    rows = index.backbones((640, 640))
    assert rows is not None and [row["name"] for row in rows] == list(EXAMPLES)
    assert rows[:1] == facts.backbones(EXAMPLES[:1], (640, 640))


def test_other_sizes_and_an_older_timm_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert index.backbones((320, 640)) is None
    monkeypatch.setattr(index, "version", lambda name: "0.9.16")
    assert index.backbones((640, 640)) is None
    monkeypatch.setattr(index, "version", lambda name: "1.2.0.dev0")
    assert index.backbones((640, 640)) is not None


def test_a_method_or_detector_of_the_users_own_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(facts, "all_methods", lambda: calls.append("methods"))
    index.methods()
    assert not calls
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "mine", PKD)
        index.methods()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "pkd", type("Mine", (PKD,), {"__module__": "mine"}))
        index.methods()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS, "mine", DETECTORS["gfl"])
        index.methods()
    assert len(calls) == 3


def test_lists_do_not_wait_for_torch() -> None:
    commands = [["methods"], ["methods", "pkd"], ["detectors"], ["detectors", "gfl"], ["recipes"], ["backbones"]]
    code = (
        "import sys; from detdistill.cli import main; "
        f"assert not any(main(['list', *words]) for words in {commands}); "
        "assert not {'torch', 'torchvision', 'timm', 'transformers'} & set(sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
