"""The page of the recipes that come with the package."""

from importlib.resources import files

from .text import NOTE

PAGE = f"""# Recipes

{NOTE}

`--recipe NAME` uses one of these recipes, `--recipe NAME,OTHER` joins several; flags override both. A run folder is a
recipe, too: `--recipe runs/taught` repeats that run. A file of your own has the same form; the
[reference](reference.md#fields-of-a-recipe) lists all fields.
"""


def recipes() -> str:
    """The content of recipes.md."""
    lines = [PAGE]
    for entry in sorted(files("detdistill.recipes").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            source = entry.read_text(encoding="utf-8").strip()
            lines += [f"## {entry.name.removesuffix('.yaml')}", "", "```yaml", source, "```", ""]
    return "\n".join(lines)
