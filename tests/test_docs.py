"""The pages are true: code blocks run, commands parse, names and links exist, and generated pages equal the code."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

import detdistill as dd
from detdistill import cli
from detdistill.cli import flags
from detdistill.data import open_data
from detdistill.detectors.registry import DETECTORS, names
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.methods.method import option_meanings
from detdistill.recipe import DataConfig, Recipe, parse
from detdistill.run.folder import FILES
from detdistill.run.pairing import check_methods
from detdistill.run.plugins import REGISTRIES

ROOT = Path(__file__).parent.parent
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
)
PROGRAM = "detect.py"  # of the guide: reads an ONNX file without torch
WITHOUT_TORCH = """
import runpy, sys
sys.modules |= {"torch": None, "detdistill": None}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TINY = {  # what the tests put in place of what a page says
    "shapes:400": "shapes:8",
    "batch_size=16": "batch_size=4",
    "runs/shapes": "runs/teacher",
}
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
        if "detdistill" in words[:-1]:
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
    if name == "NAME":  # any method
        name = next(iter(METHODS))
    assert option in {item.name for kind in (METHODS[name].Config, Schedule) for item in fields(kind)}, path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "runs" / "teacher"
    assert cli.main(["train", "--model", "gfl:mobilenetv3_small_050", *TEACHER, "--out", str(out)]) == 0
    return out


def run(page: str) -> dict[str, Any]:
    """The page's Python, block after block, on tiny data; the names it leaves. Programs of their own are left out."""
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python")):
        if block.startswith(f"# {PROGRAM}:"):
            continue
        for said, done in TINY.items():
            block = block.replace(said, done)
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a page adds to the registries is removed after the test."""
    before = {name: dict(registry) for name, registry in REGISTRIES.items()}
    yield
    for name, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[name])


def test_the_readme_runs(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent.parent)
    assert run("README.md")["distillation"].need.pyramids == {"neck"}


def test_the_guide_runs_whole(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent.parent)
    own_files(Path())
    monkeypatch.syspath_prepend(str(Path().absolute()))
    names = run("docs/guide.md")
    run("docs/extending.md")
    del sys.modules["my_method"]
    assert names["outcome"].metrics.keys() >= {"AP", "per_class"}
    assert Path("runs/from-python/model.safetensors").exists()


def test_the_program_without_torch_finds_the_boxes_of_predict(teacher: Path, tmp_path: Path) -> None:
    program = next(block for block in blocks("docs/guide.md", "python") if block.startswith(f"# {PROGRAM}:"))
    lowered = program.replace("score >= 0.3", "score >= 0.011")  # the teacher is hardly trained
    assert lowered != program
    (tmp_path / PROGRAM).write_text(lowered)
    photos = []
    for number, size in enumerate(((90, 60), (50, 70), (64, 64))):
        photos.append(tmp_path / f"{number}.png")
        Image.effect_noise(size, 80).convert("RGB").save(photos[-1])
    student = tmp_path / "student.onnx"
    assert cli.main(["export", "--model", str(teacher), "--out", str(student)]) == 0
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / PROGRAM), str(student), *map(str, photos)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = sorted((path, name, [float(value) for value in rest]) for path, name, *rest in map(str.split, printed))
    results = dd.predict(teacher, photos, tmp_path / "drawn")
    expected = []
    for result in results:
        x, y, width, height = result["bbox"]
        numbers = [result["score"], x, y, x + width, y + height]
        expected.append((str(tmp_path / result["file_name"]), result["category_name"], numbers))
    strong = sorted(entry for entry in expected if entry[2][0] >= 0.011)
    assert len(strong) > 10
    assert [entry[:2] for entry in found] == [entry[:2] for entry in strong]
    for (_, _, own), (_, _, other) in zip(found, strong, strict=True):
        assert own == pytest.approx(other, abs=0.6)  # Pillow and torchvision round resized pixels differently


def own_files(folder: Path) -> list[str]:
    """The pages' files of one's own, written into a folder, as --import flags."""
    flags = []
    for block in (*blocks("docs/extending.md", "python"), *blocks("docs/own_detector.md", "python")):
        if re.match(r"# \w+\.py\n", block):
            path = folder / block.split("\n", 1)[0].removeprefix("# ")
            path.write_text(block)
            flags += ["--import", str(path)]
    assert len(flags) == 6
    return flags


def test_a_method_a_detector_and_a_format_of_ones_own_reach_the_command_line(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    imports = own_files(tmp_path)
    for number in range(10):
        Image.effect_noise((64, 64), 50 + number).convert("RGB").save(tmp_path / f"{number}.png")
    classes = json.loads((teacher / "model.json").read_text())["classes"]
    rows = [f"{number}.png,{classes[number % len(classes)]},8,8,40,48" for number in range(10)]
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    size = [
        "--image-size",
        "64",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--max-steps",
        "1",
        "--backbone-weights",
        "none",
    ]
    shape = ["--model.strides", "8,16,32", "--model.channels", "32", "--model.tower-depth", "2"]
    pair = ["--student", "tiny_yolo:nano", "--teacher", str(teacher), "--method", "cosine,crosskd"]
    out = tmp_path / "out"
    weak = ["--teacher.allow-weak", "--teacher.sample", "0", "--out", str(out)]
    assert cli.main(["distill", *imports, *pair, "--data", str(tmp_path), *size, *shape, *weak]) == 0
    assert "data: CSV; images: train 8, test 2; 6 classes" in capsys.readouterr().out
    assert {"cosine_features", "crosskd_class"} <= json.loads((out / "log.jsonl").read_text().splitlines()[0]).keys()
    assert cli.main(["list", "methods", *imports]) == 0
    assert "cosine" in capsys.readouterr().out
    assert cli.main(["list", "methods", "cosine", *imports]) == 0
    assert "LevelConfig" not in capsys.readouterr().out
    assert cli.main(["evaluate", *imports, "--model", str(out), "--data", str(tmp_path), "--device", "cpu"]) == 0


@pytest.mark.parametrize(("row", "value"), [("0.png,disc,8,8", "'disc', '8', '8'"), ("0.png,disc,8,x,40,48", "'x'")])
def test_the_guides_own_format_names_a_malformed_row(row: str, value: str, tmp_path: Path) -> None:
    (source,) = [block for block in blocks("docs/extending.md", "python") if block.startswith("# my_format.py")]
    exec(compile(source, "my_format.py", "exec"), {})
    for number in range(5):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,disc,8,8,40,48" for number in range(5)]
    (tmp_path / "boxes.csv").write_text("\n".join([*rows, row]) + "\n")
    with pytest.raises(UserError) as stopped:
        open_data(DataConfig(path=str(tmp_path)))
    message = str(stopped.value)
    assert message.startswith(f"{tmp_path / 'boxes.csv'}: line 6")
    assert value in message
    assert "\n" not in message
    data = open_data(DataConfig(path=str(tmp_path), on_bad_record="skip"))
    assert [len(data.split(name)) for name in ("train", "test")] == [4, 1]
    assert len(data.faults.skipped) == 1


@pytest.mark.parametrize(
    ("page", "least"),
    [
        ("README.md", 6),
        ("docs/guide.md", 6),
        ("docs/python.md", 1),
        ("docs/own_detector.md", 2),
        ("docs/inspecting.md", 3),
        ("docs/predicting.md", 4),
        ("docs/comparing.md", 3),
        ("docs/extending.md", 2),
        ("docs/tutorial.md", 10),
        ("docs/choose.md", 5),
        ("docs/machines.md", 4),
        ("docs/troubleshooting.md", 6),
        ("docs/faq.md", 1),
        *((f"docs/methods/{name}.md", 1) for name in METHODS),
        *((f"docs/detectors/{name}.md", 1) for name in DETECTORS),
    ],
)
def test_commands_parse(page: str, least: int) -> None:
    calls = commands(page)
    assert len(calls) >= least
    for words in calls:
        command, bound, *_ = cli.app.parse_args(flags.tidy(words), exit_on_error=False, print_error=False)
        assert command.__name__ == {"list": "show"}.get(words[0], words[0])
        assert bound is not None


GUIDE = tuple(f"docs/{name}.md" for name in ("guide", "inspecting", "predicting", "comparing", "extending"))
CREATES = r"--out (runs/[\w-]+)|, Path\(\"(runs/[\w-]+)"


@pytest.mark.parametrize("pages", [("README.md",), ("docs/tutorial.md",), GUIDE])
def test_a_run_is_made_before_it_is_read_and_made_once(pages: tuple[str, ...]) -> None:
    made: set[str] = set()
    whole = "\n".join(map(text, pages))
    found = re.findall(r"^```(?:sh|python)\n(.*?)^```", whole, re.MULTILINE | re.DOTALL)
    for line in "\n".join(found).splitlines():
        line = line.split("#")[0]
        created = {name for pair in re.findall(CREATES, line) for name in pair if name}
        assert set(re.findall(r"\bruns/[\w-]+", line)) - created <= made, line
        assert "--resume" in line or not created & made, line
        assert "--resume" not in line or created <= made, line
        made |= created


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
        *("--help", "--help-all", "--install-completion", "--show"),
        *(name for command in cli.app if not command.startswith("-") for item in arguments(command) for name in item),
    }
    for span in spans(page):
        if span.startswith(("python ", "torchrun ", "accelerate ")) or is_module(span):
            continue
        for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", span):
            if flag.startswith("--methods."):
                assert_option(flag.removeprefix("--"))
            elif flag.startswith("--model.options"):
                assert flags.Recipe.model_fields["model"].annotation.model_fields["options"]
            else:
                assert flag.replace("_", "-") in known, flag
        if re.fullmatch(r"methods(\.\w+){2}", span):
            assert_option(span)
        elif span in (*FILES, "data.yaml", "train.txt"):
            continue
        elif re.fullmatch(rf"({'|'.join(Recipe.model_fields)})(\.\w+)+", span):
            assert span.startswith("model.options") or any(
                f"{path}.".startswith(f"{span}.") for path in flags.FIELDS
            ), span


@pytest.mark.parametrize("page", PAGES)
def test_named_scripts_exist(page: str) -> None:
    for span in spans(page):
        if re.fullmatch(r"(bench|src|docs|tests)/[\w/]+\.\w+", span):
            assert (ROOT / span).exists(), span


def is_module(name: str) -> bool:
    """True for a module of the package, or a name in one, such as `methods.shared.predictions`."""
    parts = name.split(".")
    places = (ROOT / "src" / "detdistill" / "/".join(parts[:count]) for count in (len(parts), len(parts) - 1))
    return len(parts) > 1 and any(place.with_suffix(".py").exists() for place in places)


def arguments(command: str) -> list[tuple[str, ...]]:
    return [item.names for item in cli.app[command].assemble_argument_collection()]


def test_yaml_is_a_recipe() -> None:
    found = blocks("docs/guide.md", "yaml")
    assert found
    for block in found:
        recipe = parse(yaml.safe_load(block), "docs/guide.md")
        check_methods(recipe.methods)


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    """The script that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        spec.loader.exec_module(module)
        yield module


def test_generated_pages_are_what_the_code_says(generator: ModuleType) -> None:
    outdated = [name for name, write in generator.PAGES.items() if text(f"docs/{name}") != write()]
    assert outdated == [], "run `make docs`"


def test_the_matrix_has_every_method_and_every_detector() -> None:
    head, *rows = table("docs/methods.md", "Detectors and methods")
    assert [cell.strip("`") for cell in head[1:]] == list(DETECTORS)
    assert [row[0].strip("`") for row in rows] == list(METHODS)
    part = [
        head
        for head, cell in zip(DETECTORS, rows[list(METHODS).index("detrdistill")][1:], strict=True)
        if cell == "part"
    ]
    assert part == [name for name in names("queries") if not DETECTORS[name].learned_queries]


def test_every_option_of_a_method_has_a_meaning() -> None:
    for name, method in METHODS.items():
        missing = [option for option, meaning in option_meanings(method.Config).items() if not meaning]
        assert missing == [], f"the docstring of {method.Config.__name__} ({name}) does not explain {missing}"


def test_the_guide_names_every_file_of_a_run() -> None:
    cells = " ".join(row[0] for row in table("docs/guide.md", "A run's folder"))
    assert set(re.findall(r"`([^`]+)`", cells)) == {*FILES, "checkpoint/"}


def test_the_readme_fits_on_two_screens() -> None:
    assert len(text("README.md").splitlines()) <= 120


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
