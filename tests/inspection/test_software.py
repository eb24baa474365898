"""Versions of packages, torchvision's operators, and the tiny training step."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from detdistill.engine.distillation import Distillation
from detdistill.inspection import software
from detdistill.inspection.check import Check
from detdistill.inspection.software import check_packages, check_python, check_step, check_torchvision

INSTALLED = {"detdistill": "0.1.0", "torch": "2.10.0+cu130", "timm": "1.2.0", "rich": "12.0"}


def packages(monkeypatch: pytest.MonkeyPatch, *needed: str) -> list[Check]:
    """The checks of a package that needs these requirements, where INSTALLED is installed."""

    def version(name: str) -> str:
        if name not in INSTALLED:
            raise PackageNotFoundError(name)
        return INSTALLED[name]

    monkeypatch.setattr(software, "requires", lambda name: needed)
    monkeypatch.setattr(software, "version", version)
    return list(check_packages())


def test_versions_in_the_tested_range_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = packages(monkeypatch, "torch>=2.9", "timm<2,>=1.0", 'ruff>=0.9; extra == "dev"')
    assert (check.state, check.text) == ("ok", "detdistill 0.1.0, torch 2.10.0+cu130, timm 1.2.0")


@pytest.mark.parametrize(
    ("needed", "state", "text"),
    [
        ("rich>=13", "problem", "rich 12.0 is outside the tested range >=13"),
        ("timm<1.1,>=1.0", "warning", "timm 1.2.0 is outside the tested range <1.1,>=1.0"),
        ("scipy>=1.13", "problem", "scipy is not installed"),
    ],
)
def test_other_versions_have_the_command_that_installs_the_right_one(
    monkeypatch: pytest.MonkeyPatch, needed: str, state: str, text: str
) -> None:
    check = packages(monkeypatch, "torch>=2.9", needed)[0]
    assert (check.state, check.text) == (state, text)
    assert check.remedy == f"pip install '{needed}'"


def test_a_package_that_is_not_installed_has_no_known_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(software, "requires", missing)
    (check,) = check_packages()
    assert check.state == "warning"


def test_this_machine_can_train() -> None:
    checks = [*check_python(), *check_torchvision(), *check_step()]
    assert [check.state for check in checks] == ["ok"] * 3
    assert "trains on" in checks[-1].text


def test_a_torchvision_of_another_build_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", broken)
    (check,) = check_torchvision()
    assert check.state == "problem" and "torchvision::nms does not exist" in check.text


def test_a_loss_that_is_not_finite_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def infinite(self: Distillation, *arguments: object) -> dict[str, torch.Tensor]:
        return {"task": next(self.parameters()).sum() * float("inf")}

    monkeypatch.setattr(Distillation, "forward", infinite)
    (check,) = check_step()
    assert check.state == "problem"
