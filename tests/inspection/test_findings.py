"""The order of findings, and the words of their verdict."""

import pytest

from detdistill.inspection.findings import Finding, share, verdict, worst_first


def test_problems_come_before_larger_warnings() -> None:
    findings = [
        Finding("a", "note", 9, "nine notes"),
        Finding("b", "warning", 2, "two boxes"),
        Finding("c", "warning", 7, "seven boxes"),
        Finding("d", "problem", 1, "one leak"),
    ]
    assert [finding.kind for finding in worst_first(findings)] == ["d", "c", "b", "a"]
    assert verdict(findings) == "4 findings (1 problem, 2 warnings, 1 note); the worst: one leak"
    assert verdict(findings[:1]) == "1 finding (1 note); the worst: nine notes"
    assert verdict([]) == "no findings"


@pytest.mark.parametrize(
    ("part", "total", "text"),
    [
        (0, 9, "0 %"),
        (1, 10_000, "<0.1 %"),
        (1, 300, "0.3 %"),
        (99, 1000, "9.9 %"),
        (23, 100, "23 %"),
        (5, 5, "100 %"),
        (0, 0, "0 %"),
    ],
)
def test_a_share_is_short_and_never_hides_a_part(part: int, total: int, text: str) -> None:
    assert share(part, total) == text
