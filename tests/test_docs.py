"""The pages keep their word: code runs, commands parse, names exist, and what is written by hand agrees with the code."""

import importlib.util
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from detdistill import cli
from detdistill.cli import flags
from detdistill.detectors.registry import DETECTORS, names
from detdistill.engine.schedule import Schedule
from detdistill.methods import METHODS
from detdistill.recipe import Recipe, parse
from detdistill.run.folder import FILES
from detdistill.run.pairing import check_methods, served

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CHANGELOG.md", "docs/guide.md", "docs/decisions.md", "docs/results.md", "docs/reference.md")
TINY = {"shapes:400": "shapes:8", "batch_size=16": "batch_size=4"}  # what the tests put in place of what a page says
TEACHER = ["--data", "shapes:8", "--image-size", "64", "--batch-size", "4", "--device", "cpu", "--max-steps", "1"]
TEACHER += [
    "--model.strides",
    "8,16,32",
    "--model.channels",
    "32",
    "--model.tower-depth",
    "2",
    "--backbone-weights",
    "none",
]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)


def spans(page: str) -> list[str]:
    """Code within the prose."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(page: str) -> list[list[str]]:
    """The arguments of every call of the command in shell blocks, however it is launched."""
    found = []
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if "detdistill" in words:
            found.append(words[words.index("detdistill") + 1 :])
    return found


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the first table after a heading, its head first."""
    after = text(page).split(f"## {heading}\n", 1)[1]
    lines = re.search(r"(^\|.*\n)+", after, re.MULTILINE)
    assert lines is not None
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[0].splitlines()]
    return [rows[0], *rows[2:]]


def assert_option(path: str) -> None:
    """`methods.NAME.OPTION` is one."""
    _, name, option = path.replace("-", "_").split(".")
    assert option in {item.name for kind in (METHODS[name].Config, Schedule) for item in fields(kind)}, path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "runs" / "teacher"
    assert cli.main(["train", "--model", "gfl:mobilenetv3_small_050", *TEACHER, "--out", str(out)]) == 0
    return out


def run(page: str) -> dict[str, Any]:
    """The page's Python, block after block, on tiny data; the names it leaves."""
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python")):
        for said, done in TINY.items():
            block = block.replace(said, done)
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


def test_the_readme_runs(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent.parent)
    assert run("README.md")["distillation"].need.pyramids == {"neck"}


def test_the_guide_runs_whole_and_with_a_loop_of_ones_own(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent.parent)
    names = run("docs/guide.md")
    assert {name.split("_")[0] for name in names["terms"]} == {"task", "pkd", "crosskd"}
    assert names["metrics"].keys() >= names["outcome"].metrics.keys() - {
        "train_seconds",
        "images_per_second",
        "peak_memory_bytes",
    }
    assert Path("runs/taught/model.safetensors").exists()
    assert Path("student.pt").exists()
    assert len(names["detections"]) == 2


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_commands_parse(page: str) -> None:
    calls = commands(page)
    assert len(calls) > 5
    for words in calls:
        command, bound, *_ = cli.app.parse_args(flags.tidy(words), exit_on_error=False, print_error=False)
        assert command.__name__ == {"list": "show"}.get(words[0], words[0])
        assert bound is not None


@pytest.mark.parametrize("page", PAGES)
def test_named_commands_and_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for span in [*spans(page), *"\n".join(blocks(page, "sh")).splitlines()]:
        if made := re.match(r"make ([a-z]\S*)", span):
            assert made[1] in targets
        if called := re.match(r"detdistill ([a-z]\S*)", span):
            assert called[1] in list(cli.app)


@pytest.mark.parametrize("page", PAGES)
def test_named_fields_options_and_flags_exist(page: str) -> None:
    known = {
        "--help",
        *(name for command in cli.app if not command.startswith("-") for item in arguments(command) for name in item),
    }
    for span in spans(page):
        for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", span):
            if flag.startswith("--methods."):
                assert_option(flag.removeprefix("--"))
            else:
                assert flag.replace("_", "-") in known, flag
        if re.fullmatch(r"methods(\.\w+){2}", span):
            assert_option(span)
        elif re.fullmatch(rf"({'|'.join(Recipe.model_fields)})(\.\w+)+", span) and span not in (*FILES, "data.yaml"):
            assert any(path == span or path.startswith(f"{span}.") for path in flags.FIELDS), span


@pytest.mark.parametrize("page", PAGES)
def test_named_scripts_exist(page: str) -> None:
    for span in spans(page):
        if re.fullmatch(r"(bench|src|docs|tests)/[\w/]+\.\w+", span):
            assert (ROOT / span).exists(), span


def arguments(command: str) -> list[tuple[str, ...]]:
    return [item.names for item in cli.app[command].assemble_argument_collection()]


def test_yaml_is_a_recipe() -> None:
    found = blocks("docs/guide.md", "yaml")
    assert found
    for block in found:
        recipe = parse(yaml.safe_load(block), "docs/guide.md")
        check_methods(recipe.methods)


def test_the_reference_is_what_the_code_says() -> None:
    place = ROOT / "docs" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert text("docs/reference.md") == module.write(), "docs/reference.md is old: run `make docs`"


def test_the_readme_says_which_method_serves_which_detector() -> None:
    head, *rows = table("README.md", "What is inside")
    said = {
        row[0]: [detector for detector, word in zip(head[1:], row[1:], strict=True) if word == "yes"] for row in rows
    }
    assert said == served()
    part = [detector for detector, word in zip(head[1:], rows[-4][1:], strict=True) if word == "part"]
    assert rows[-4][0] == "detrdistill"
    assert part == [head for head in names("queries") if not DETECTORS[head].learned_queries]


def test_the_guide_names_every_method_and_every_file_of_a_run() -> None:
    methods = [row[0].strip("`") for row in table("docs/guide.md", "Methods, and when each applies")[1:]]
    assert methods == list(METHODS)
    files = re.findall(r"`([^`]+)`", " ".join(row[0] for row in table("docs/guide.md", "A run's folder")))
    assert set(files) == {*FILES, "checkpoint/"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target
