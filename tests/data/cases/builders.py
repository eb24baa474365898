"""Builders of small data sets, and what is read of them in a form that is easy to compare."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from detdistill.data import Data, open_data
from detdistill.recipe import DataConfig

WIDTH, HEIGHT = 40, 20
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
PICTURE = object()  # the content of an image file
Read = dict[str, dict[str, list[tuple[Any, ...]]]]


def write(root: Path, files: Mapping[str, Any]) -> Path:
    """Write the files of a data set and return its folder. A content is PICTURE, text, bytes, or a JSON value."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is PICTURE:
            image = Image.new("RGB", (WIDTH, HEIGHT), "gray")
            ImageDraw.Draw(image).rectangle((4, 4, 20, 16), fill="red")
            image.save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            path.write_text(json.dumps(content))
    return root


def pictures(*names: str) -> dict[str, Any]:
    """Image files of these names."""
    return dict.fromkeys(names, PICTURE)


def opened(path: Path, **fields: Any) -> Data:
    """The data set in a folder or file."""
    return open_data(DataConfig(path=str(path), **fields))


def read(data: Data) -> Read:
    """The objects of each image of each split: (class, left, top, right, bottom), in whole pixels."""
    return {
        name: {
            record.name: [
                (data.classes[label], *(round(side) for side in box))
                for label, box in zip(record.class_indices.tolist(), record.corners.tolist(), strict=True)
            ]
            for record in split.records
        }
        for name, split in data.splits.items()
    }


def united(found: Read) -> dict[str, list[tuple[Any, ...]]]:
    """The images of all splits together."""
    return {name: objects for split in found.values() for name, objects in split.items()}


def note(data: Data, beginning: str) -> str:
    """The only note that begins like this."""
    (found,) = [line for line in data.notes if line.startswith(beginning)]
    return found


def voc(*objects: tuple[str, int, int, int, int], size: str = SIZE, more: str = "") -> str:
    """A VOC annotation file. objects: (class, xmin, ymin, xmax, ymax)."""
    return f"<annotation>{more}{size}{''.join(map(voc_object, objects))}</annotation>"


def voc_object(item: tuple[str, int, int, int, int], difficult: int = 0) -> str:
    """One object of a VOC annotation file."""
    name, *corners = item
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def labelme(image: str, *shapes: Mapping[str, Any], height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    """A JSON file of LabelMe."""
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def shape(label: str, kind: str, *points: tuple[float, float], **more: Any) -> dict[str, Any]:
    """One shape of LabelMe."""
    return {"label": label, "points": list(map(list, points)), "shape_type": kind, "group_id": None, **more}


def cvat(*images: str, labels: Iterable[str] = ("cat", "dog")) -> str:
    """An annotations.xml of CVAT for images 1.1. images: `image` elements."""
    meta = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in labels)
    task = f"<meta><task><labels>{meta}</labels></task></meta>"
    declaration = '<?xml version="1.0" encoding="utf-8"?>'
    return f"{declaration}\n<annotations><version>1.1</version>{task}{''.join(images)}</annotations>"


def cvat_image(name: str, *shapes: str, subset: str = "", height: int = HEIGHT, width: int = WIDTH) -> str:
    """One `image` element."""
    inside = f' subset="{subset}"' if subset else ""
    return f'<image id="0" name="{name}"{inside} width="{width}" height="{height}">{"".join(shapes)}</image>'


def cvat_box(label: str, *sides: float, more: str = "") -> str:
    """One `box` element. sides: left, top, right, bottom."""
    left, top, right, bottom = sides
    return f'<box label="{label}" occluded="0" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" {more}></box>'
