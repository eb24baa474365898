"""The page "Your data" quotes lines that the cases of this folder assert."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "data.md"


def test_every_quoted_line_is_asserted_by_a_case() -> None:
    page = PAGE.read_text().split("## COCO JSON")[0]
    cases = "\n".join(path.read_text() for path in sorted(HERE.glob("test_*.py")))
    cases = re.sub(r'"\s*\n\s*[rf]?"', "", cases)  # one text of several lines
    cases = cases.replace("\\", "")
    quotes = [part.strip() for quote in re.findall(r'"([^"\n]+)"', page) for part in quote.split("...")]
    missing = [quote for quote in quotes if quote and quote not in cases]
    assert len(quotes) > 30
    assert missing == []
