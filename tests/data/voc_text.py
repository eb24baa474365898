"""Text of Pascal VOC annotations for the tests."""

from typing import Any


def voc_object(name: str, corners: tuple[Any, ...], difficult: Any = 0) -> str:
    box = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
