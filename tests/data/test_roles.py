"""Roles of splits by their names."""

import pytest

from detdistill.data.roles import role, with_role


@pytest.mark.parametrize(
    ("name", "expected", "exact"),
    [
        ("train", "train", True),
        ("Training", "train", True),
        ("val2017", "val", True),
        ("VALID", "val", True),
        ("dev", "val", True),
        ("testing", "test", True),
        ("cards_train", "train", False),
        ("obj_Validation_data", "val", False),
        ("train-images", "train", False),
        ("trainval", None, False),
        ("train_val", None, False),
        ("test-dev2017", None, False),
        ("intestine", None, False),
        ("default", None, False),
        ("", None, False),
    ],
)
def test_roles(name: str, expected: str | None, exact: bool) -> None:
    assert role(name) == expected
    assert role(name, exact=True) == (expected if exact else None)


def test_a_role_of_two_names_is_nobodys() -> None:
    assert with_role(["train", "cards_val"], "val", exact=False) == "cards_val"
    assert with_role(["train", "cards_val"], "val", exact=True) is None
    assert with_role(["day_val", "night_val"], "val", exact=False) is None
    assert with_role(["train"], None, exact=False) is None
