"""What is missing in splits and classes."""

from detdistill.data import Data
from detdistill.inspection.counts import SplitCounts, class_counts, health_findings, split_counts, split_findings
from detdistill.inspection.findings import Finding

from .made import Box, data_of, record

CAT: Box = (0, 5, 5, 45, 45)
DOG: Box = (1, 60, 50, 108, 80)


def data() -> Data:
    """Train has 12 cats and 12 dogs, one of them a crowd beside an empty image; test has 12 cats and 9 dogs."""
    train = [record(f"{index}", [CAT, DOG]) for index in range(11)]
    train += [record("crowd", [CAT], crowds=[DOG]), record("empty")]
    test = [record(f"t{index}", [CAT, DOG][: 1 + (index < 9)]) for index in range(12)]
    return data_of({"train": train, "test": test})


def found(data: Data, training: str = "train", evaluation: str | None = "test") -> dict[str, Finding]:
    findings = split_findings(data.splits, class_counts(data), training, evaluation)
    return {finding.kind: finding for finding in findings}


def test_objects_are_counted_per_split_and_class() -> None:
    assert split_counts(data()) == {"train": SplitCounts(13, 23, 1, 1), "test": SplitCounts(12, 21, 0, 0)}
    assert class_counts(data()) == {"cat": {"train": 12, "test": 12}, "dog": {"train": 11, "test": 9}}


def test_images_without_objects_are_a_note() -> None:
    findings = found(data())
    assert set(findings) == {"no-objects"}
    assert (findings["no-objects"].level, findings["no-objects"].examples) == ("note", ("empty",))


def test_a_class_without_objects_is_a_problem_in_train_and_a_warning_elsewhere() -> None:
    cats, both = [record("a", [CAT])], [record("b", [CAT, DOG])]
    missing = found(data_of({"train": cats, "test": both}))["missing-class"]
    assert (missing.level, missing.text) == ("problem", "1 class has no object in train")
    assert missing.examples == ("dog",)
    missing = found(data_of({"train": both, "test": cats}))["missing-class"]
    assert (missing.level, missing.text) == ("warning", "1 class has no object in test")


def test_missing_splits() -> None:
    both = [record("b", [CAT, DOG])]
    assert set(found(data_of({"train": both}), evaluation=None)) == {"no-test-split"}
    assert set(found(data_of({"mine": both, "test": both}))) == {"no-train-split"}
    assert set(found(data_of({"mine": both, "test": both}), training="mine")) == set()


def test_the_health_check_adds_classes_with_few_objects() -> None:
    made = data()
    (finding,) = health_findings(made.splits, class_counts(made))
    assert finding.text == "1 class has fewer than 10 objects in test"
    assert finding.examples == ("dog: 9",)


def test_what_is_found_here_is_not_repeated_by_the_health_check() -> None:
    twice: list[Box] = [CAT, CAT, (0, 0, 0, 100, 2)] * 9  # near duplicates, and slender boxes
    made = data_of({"train": [record("a", twice)]})
    assert health_findings(made.splits, class_counts(made)) == []
