"""What is wrong with a recipe, in one line for the user."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError

from detdistill.errors import nearest
from detdistill.recipe.fields import Recipe

REMEDIES = {
    "model_type": "write its fields as a mapping, `name: value`",
    "dict_type": "write a mapping, `name: value`, or {} if it is empty",
    "tuple_type": "write a list, such as [8, 16, 32]",
}
"""What to write instead, by the type of pydantic's error, where pydantic's own words are those of Python."""
FORMS = {
    "data.image_size": "a side in pixels, or HEIGHT,WIDTH, each 1 or more",
    "train.batch_size": "a number of images, 1 or more, or auto",
    "train.workers": "a number, 0 or more, or auto",
    "train.ema": "a decay between 0 and 1, such as 0.999, or on",
}
"""What a field with several forms may be: pydantic names only one of them."""


def explain(error: ValidationError) -> str:
    """The first error in words. An unknown field comes first: a typo also leaves the intended field missing."""
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place = [str(part) for part in first["loc"]]
    parts = _parts(place)
    if first["type"] == "extra_forbidden":
        known = list(parts[-1].model_fields)
        return f"unknown field {'.'.join(place)!r}{nearest(place[-1], known)} (known here: {', '.join(known)})"
    # Names that pydantic adds for the alternatives of a type (`int`, `tuple`, 0) are left out.
    fields = [name for name, part in zip(place, parts, strict=True) if part is not None or place[0] == "methods"]
    field = ".".join(fields)
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return f"field {field!r} is {first['input']!r}: it has too few values"
    if first["type"] == "missing":
        return f"field {field!r} is missing"
    if first["type"] in REMEDIES:
        return f"field {field!r} is {first['input']!r}: {REMEDIES[first['type']]}"
    if field in FORMS:
        return f"field {field!r} is {first['input']!r}: give {FORMS[field]}"
    return f"field {field!r} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _parts(place: Sequence[str]) -> list[Any]:
    """For each name of a path, the part of the recipe that it is a field of, or None."""
    parts: list[Any] = [Recipe]
    for name in place[:-1]:
        field = getattr(parts[-1], "model_fields", {}).get(name)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        parts.append(next((kind for kind in kinds if hasattr(kind, "model_fields")), None))
    return parts
