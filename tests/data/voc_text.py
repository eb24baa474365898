"""Text of Pascal VOC annotations for the tests."""

from typing import Any

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_object(name: str, corners: tuple[Any, ...], difficult: Any = 0) -> str:
    """The XML of one object."""
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(CORNERS, corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
