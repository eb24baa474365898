"""Which runs a report finds, what each of them is, and what it refuses."""

import json
from pathlib import Path

import pytest

from detdistill.errors import UserError
from detdistill.run.report_runs import find_groups

from .made_runs import recipe, write_comparison, write_run


def test_roles_come_from_the_recipes(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "a", recipe(model={"channels": 64}), started="2026-01-01")
    plain = write_run(tmp_path / "b", recipe())
    taught = write_run(tmp_path / "c", recipe("pkd", teacher=str(teacher)))
    for paths in ([teacher, plain, taught], [taught, plain], [plain, taught, teacher]):
        (group,) = find_groups(paths)
        assert {label: [run.folder for run in runs] for label, runs in group.runs.items()} == {
            "plain": [plain],
            "pkd": [taught],
        }
        assert [run.folder for run in group.teachers] == [teacher] and group.notes == []


def test_a_folder_of_runs_stands_for_its_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "demo" / "teacher", recipe(), started="2026-01-01")
    write_run(tmp_path / "demo" / "distilled", recipe("pkd", teacher="demo/teacher"))  # as it was started elsewhere
    (group,) = find_groups([tmp_path / "demo"])
    assert list(group.runs) == ["pkd"] and group.teachers[0].folder.name == "teacher"


def test_seeds_of_a_comparison_are_runs_of_one_label(tmp_path: Path) -> None:
    table = write_comparison(tmp_path / "table", {"none": (0.0, 0.1), "pkd+crosskd": (0.0, 0.0)}, "torchvision:x")
    write_run(table / "none" / "seed-0-again", recipe(seed=7))  # not one of the comparison
    (table / "pkd+crosskd" / "seed-2").mkdir()
    (table / "pkd+crosskd" / "seed-2" / "recipe.yaml").write_bytes((table / "none/seed-0/recipe.yaml").read_bytes())
    content = json.loads((table / "comparison.json").read_text()) | {"stopped": {"fgd": "stopped with seed 0: NaN"}}
    (table / "comparison.json").write_text(json.dumps(content))
    (group,) = find_groups([table])
    seeds = {label: [run.recipe.train.seed for run in runs] for label, runs in group.runs.items()}
    assert seeds == {"plain": [0, 1], "pkd+crosskd": [0, 1]}
    assert group.measured is not None and (group.measured["AP"], group.measured["name"]) == (90.0, "torchvision:x")
    assert any("pkd+crosskd/seed-2" in note for note in group.notes)
    assert "fgd: stopped with seed 0: NaN" in group.notes


def test_other_data_and_other_students_are_groups_of_their_own(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", recipe()),
        write_run(tmp_path / "b", recipe("pkd")),
        write_run(tmp_path / "c", recipe(data={"path": "shapes:44"})),
        write_run(tmp_path / "d", recipe(data={"eval_split": "val"})),
        write_run(tmp_path / "e", recipe(model={"name": "gfl:resnet18"})),
    ]
    groups = find_groups(runs)
    assert [[run.folder.name for each in group.runs.values() for run in each] for group in groups] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]


def test_a_difference_other_than_the_methods_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", recipe(train={"epochs": 3}))
    write_run(tmp_path / "b", recipe("pkd", seed=5, train={"epochs": 9, "seed": 5, "workers": 2}))
    (group,) = find_groups([tmp_path / "a", tmp_path / "b"])
    (note,) = group.notes
    assert "train.epochs (3 and 9)." in note and "not that of distillation alone" in note


def test_two_settings_of_one_method_have_two_labels(tmp_path: Path) -> None:
    write_run(tmp_path / "a", recipe("pkd"))
    write_run(tmp_path / "weak", recipe(methods={"pkd": {"weight": 0.1}}))
    write_run(tmp_path / "weak2", recipe(methods={"pkd": {"weight": 0.1}}, train={"seed": 1}))
    (group,) = find_groups([tmp_path / "a", tmp_path / "weak", tmp_path / "weak2"])
    assert {label: len(runs) for label, runs in group.runs.items()} == {"pkd": 1, "pkd (weak)": 2}


def test_a_teacher_that_is_younger_than_its_student_is_told(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "a", recipe(), started="2026-03-01")
    write_run(tmp_path / "c", recipe("pkd", teacher=str(teacher)), started="2026-01-01")
    (group,) = find_groups([tmp_path / "c"])
    assert "younger than the student" in group.notes[0]


def test_a_teacher_of_other_data_has_a_part_of_its_own_if_it_is_given(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "a", recipe(data={"path": "shapes:44"}))
    taught = write_run(tmp_path / "c", recipe("pkd", teacher=str(teacher)))
    (group,) = find_groups([taught])
    assert group.teachers == [] and "was measured on other data" in group.notes[0]
    assert [list(group.runs) for group in find_groups([taught, teacher])] == [["pkd"], ["plain"]]


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        ("rm metrics.json", ["not finished", "--resume"]),
        ("metrics.json={", ["metrics.json: can't be read as JSON"]),
        ("metrics.json=[]", ["metrics.json: holds no object"]),
        ('metrics.json={"AP": 1.0}', ["metrics.json: field 'AP50' is missing"]),
        ('metrics.json={"AP": "x", "AP50": 1, "per_class": {}}', ["metrics.json: AP or AP50 is not a number"]),
        ("predictions.json=[{}]", ["predictions.json: entry 0"]),
        ("predictions.json={}", ["predictions.json: holds no list"]),
        ("environment.json=nothing", ["environment.json: can't be read"]),
        ('log.jsonl={"step": 1}\n{"st', ["log.jsonl, line 2"]),
        ("recipe.yaml=model: {nome: x}", ["recipe.yaml", "nome"]),
        ("rm recipe.yaml", ["no run folder (no recipe.yaml) and no comparison"]),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(tmp_path: Path, damage: str, parts: list[str]) -> None:
    folder = write_run(tmp_path / "a", recipe())
    name, _, content = damage.partition("=")
    if name.startswith("rm "):
        (folder / name[3:]).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError) as caught:
        find_groups([folder])
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value
    assert "\n" not in str(caught.value)


def test_a_path_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, words in {"nowhere": "no such folder", "file": "is a file", "": "no run folder"}.items():
        with pytest.raises(UserError, match=words):
            find_groups([tmp_path / name])
    unfinished = write_run(tmp_path / "many" / "a", recipe())
    (unfinished / "metrics.json").unlink()
    with pytest.raises(UserError, match="none of its 1 run is finished"):
        find_groups([tmp_path / "many"])
