"""A finding: something in a data set that a person should look at before a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detdistill.errors import plural

Level = Literal["problem", "warning", "note"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    kind: a short name, the same in every report.
    level: `problem`: numbers will be wrong or objects are lost. `warning`: probably a mistake. `note`: good to know.
    count: how many there are.
    text: what was found, in one sentence, with the count.
    examples: the first NAMED of them: the file, and what is wrong there.
    remedy: what to do.
    """

    kind: str
    level: Level
    count: int
    text: str
    examples: tuple[str, ...] = ()
    remedy: str = ""


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """The findings by level, and within a level by count."""
    return sorted(findings, key=lambda finding: (LEVELS.index(finding.level), -finding.count))


def verdict(findings: Sequence[Finding]) -> str:
    """One line: how many findings there are of each level, and the worst of them."""
    if not findings:
        return "no findings"
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    listed = ", ".join(plural(count, level) for level, count in counts.items() if count)
    return f"{plural(len(findings), 'finding')} ({listed}); the worst: {worst_first(findings)[0].text}"


def share(part: int, total: int) -> str:
    """The share in percent, such as `23 %`; below 10 with one digit, and `0 %` only for none."""
    percent = 100 * part / max(total, 1)
    if part and percent < 0.1:
        return "<0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"
