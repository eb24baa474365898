"""Errors of the parser in plain words."""

import pytest

from detdistill.cli.training import demo_defaults
from detdistill.recipe import packaged, read_yaml

from .commands import detdistill


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --lr 1 --lr 2", "--lr is given more than once; give it once"),
        ("train extra", "'extra' belongs to no flag; write --FLAG VALUE (a switch takes no value, or true or false)"),
        ("train --train.log-gradients maybe", "'maybe' belongs to no flag; "),
        ("train --zzqq 1", "Unknown option: --zzqq. See `detdistill train --help`"),
        ("train --teacher x", "`detdistill train` has no --teacher, because it trains without a teacher; use "),
        ("train --recipe", "--recipe needs a value; see `detdistill train --help`"),
        ("distill --methods.pkd.weight", "--methods.pkd.weight needs a value; see `detdistill distill --help`"),
        ("evaluate", "no model: give --model, or a run folder with --recipe"),
        ("list", "WHAT is missing; see `detdistill list --help`"),
        ("train --model.options 4", "--model.options: give the name of an option and its value: "),
        ("train --model.options.a.b 4", "--model.options: give the name of an option and its value: "),
        ("distill --methods.pkd 3", "give the name of an option and its value: --methods.METHOD.OPTION VALUE"),
    ],
)
def test_an_error_of_the_parser_names_flag_and_remedy(
    command: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert detdistill(command) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed


def test_the_help_of_demo_names_every_default_that_its_recipes_change() -> None:
    changed = set()
    for name in ("demo-teacher", "demo"):
        recipe = read_yaml(packaged()[name])
        changed |= {f"{part}.{field}" for part in ("data", "train") for field in recipe[part]}
    same_as_default = {"train.batch_size", "train.warmup_steps"}
    assert set(demo_defaults()) == changed - same_as_default
