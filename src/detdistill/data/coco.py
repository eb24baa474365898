"""COCO JSON: one file with images, annotations and categories per split. Where it may lie: see `coco_find`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detdistill.data.coco_boxes import Unreadable, Written, check_unit, read_object
from detdistill.data.coco_classes import read_categories
from detdistill.data.coco_find import ROBOFLOW, Source, find
from detdistill.data.coco_images import Entry, Located, locate, read_entries
from detdistill.data.faults import Faults, Place
from detdistill.data.ids import id_key, record_ids
from detdistill.data.images import Frame, Header, fitting_frames, read_headers, resolve_image
from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError
from detdistill.text import read_text

__all__ = ["ROBOFLOW", "Source", "find", "read"]

FEDERATED = "neg_category_ids"  # LVIS: the classes that were looked for in an image and are not there

Annotations = dict[int | str, list[tuple[int, Written | Unreadable]]]  # with their positions, by the key of the image


def read(sources: Mapping[str, Source], faults: Faults) -> Contents:
    """All splits. The category ids are those of the files, and the classes are in the order of their ids.

    The areas are those of the annotations, because COCO measures objects by them.
    """
    contents = {split: _load(source.annotations) for split, source in sources.items()}
    categories = read_categories({source.annotations: contents[split] for split, source in sources.items()})
    class_indices = {key: index for index, key in enumerate(categories.keys)}
    entries = {
        split: read_entries(source.annotations, contents[split]["images"], faults) for split, source in sources.items()
    }
    notes = [note for source in sources.values() for note in source.notes] + [*categories.notes]
    splits = {}
    for split, located in locate(sources, entries, faults).items():
        path = sources[split].annotations
        annotations = _annotations_by_image(path, contents[split], class_indices, faults)
        splits[split] = _records(path, located, annotations, faults)
        notes += located.notes
    notes += _remarks(splits)
    if any(FEDERATED in image for content in contents.values() for image in content["images"]):
        notes.append(f"{FEDERATED} of LVIS is not read: a class without a box in an image counts as absent from it")
    return Contents(categories.names, categories.ids, splits, tuple(notes))


def _load(path: Path) -> dict[str, Any]:
    """The content of a COCO JSON file. Raises UserError if a main field is missing or has a wrong type."""
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: can't read the annotations ({error.strerror}); correct the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the file is not JSON ({error}); export the annotations again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: the file is not a mapping with images, annotations and categories; export it again")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: field {key!r} is missing or not a list; "
                "a COCO file has images, annotations and categories, so export it again"
            )
        if not all(isinstance(item, dict) for item in content[key]):
            raise UserError(f"{path}: field {key!r} has entries that are not mappings; export the annotations again")
    return content


def _annotations_by_image(
    path: Path, content: Mapping[str, Any], class_indices: Mapping[int | str, int], faults: Faults
) -> Annotations:
    """The annotations with their positions in the file, by the key of their image."""
    keys = {id_key(entry.get("id")) for entry in content["images"]} - {None}
    annotations: Annotations = {}
    for position, annotation in enumerate(content["annotations"]):
        image = id_key(annotation.get("image_id"))
        if image is None or image not in keys:
            problem = f"annotations[{position}]: image_id {annotation.get('image_id')!r} is not the id of an image"
            faults.reject(str(path), problem, "correct it or remove the annotation")
            continue
        annotations.setdefault(image, []).append((position, read_object(annotation, class_indices)))
    return annotations


def _records(path: Path, located: Located, annotations: Annotations, faults: Faults) -> tuple[Record, ...]:
    """The records of one split. path: its COCO file."""
    headers = _headers(path, located, faults)
    objects = {
        entry.key: [item for _, item in annotations.get(entry.key, []) if isinstance(item, Written)]
        for entry in located.entries
    }
    _check_unit(path, located.entries, headers, objects)
    usual = _usual_frames(located.entries, headers, objects)
    records = []
    ids = record_ids([entry.id for entry in located.entries])
    for id, entry, image_path, header in zip(ids, located.entries, located.paths, headers, strict=True):
        file = image_path or located.missing_in / entry.name
        boxes = [item.corners for item in objects[entry.key]]
        frame = usual.get(_declared_frame(entry, header)) if isinstance(header, Header) else None
        resolved = resolve_image(file, header, entry.declared, faults, path.name, boxes, frame)
        if resolved is None:
            continue
        image, size = resolved
        kept = Objects.empty()
        for position, item in annotations.get(entry.key, []):
            place = Place(str(path), f"annotations[{position}] ({file.name})", file.name)
            _add_object(kept, item, size, place, faults)
        record = kept.to_record(id, entry.name, size, image)
        records.append(record if id == entry.id else replace(record, file_id=entry.id))
    return tuple(records)


def _headers(path: Path, located: Located, faults: Faults) -> list[Header | str]:
    """The headers of all images, in their order. That of a missing image says how many are missing."""
    missing, total = located.paths.count(None), len(located.paths)
    absent = f"the image file does not exist (of {total} images in {path.name}, {missing} are missing)"
    if missing == 1:
        absent = f"the image file does not exist (the only one missing of {total} images in {path.name})"
    headers = iter(read_headers([image for image in located.paths if image is not None], faults))
    return [absent if image is None else next(headers) for image in located.paths]


def _check_unit(
    path: Path,
    entries: Sequence[Entry],
    headers: Sequence[Header | str],
    objects: Mapping[int | str, Sequence[Written]],
) -> None:
    """Raise UserError if the boxes of the file are not x, y, width, height in pixels."""
    boxes = []
    for entry, header in zip(entries, headers, strict=True):
        if isinstance(header, Header):
            longest = max(header.stored)  # of a turned image it is not known here which side is which
            size = (longest, longest) if header.is_turned else header.stored
            boxes += [(item.corners, size) for item in objects[entry.key] if item.field == "bbox"]
    check_unit(path, boxes)


def _usual_frames(
    entries: Sequence[Entry], headers: Sequence[Header | str], objects: Mapping[int | str, Sequence[Written]]
) -> dict[Frame | None, Frame]:
    """The frame of the images whose boxes fit only one, by the frame whose size is declared.

    A tool treats all images alike. If the images disagree, nothing is known.
    """
    seen: dict[Frame | None, set[Frame]] = {}
    for entry, header in zip(entries, headers, strict=True):
        boxes = [item.corners for item in objects[entry.key]]
        if isinstance(header, Header) and header.is_turned and boxes:
            fitting = fitting_frames(header, boxes)
            if len(fitting) == 1:
                seen.setdefault(_declared_frame(entry, header), set()).update(fitting)
    return {declared: next(iter(frames)) for declared, frames in seen.items() if len(frames) == 1}


def _declared_frame(entry: Entry, header: Header) -> Frame | None:
    """The frame whose size an entry has, or None if it has neither."""
    if entry.declared == header.upright:
        return "upright"
    return "stored" if entry.declared == header.stored else None


def _add_object(
    objects: Objects, item: Written | Unreadable, size: tuple[int, int], place: Place, faults: Faults
) -> None:
    """Add the object of one annotation, or reject it. size: (height, width) of its image."""
    if isinstance(item, Unreadable):
        faults.reject(place.file, f"{place.record}: {item.problem}", item.remedy)
        return
    if item.mask_size is not None and item.mask_size != size:
        (height, width), (mask_height, mask_width) = size, item.mask_size
        problem = f"{place.record}: segmentation is {mask_width}x{mask_height}, but the image {width}x{height}"
        faults.reject(place.file, problem, "write bbox or export the annotations again")
        return
    inside = faults.clip_box(item.corners, size, place, item.field)
    if inside is not None:
        objects.add(inside, item.class_index, item.is_crowd, item.area)


def _remarks(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Notes about ids that are renumbered, and about splits in which every object is a crowd."""
    notes = []
    renumbered = [split for split, records in splits.items() if any(record.file_id is not None for record in records)]
    if renumbered:
        notes.append(
            f"image ids of {', '.join(renumbered)} are renumbered, because not all are whole numbers from 0 to "
            "2^63 - 1; results have the ids of the file"
        )
    for split, records in splits.items():
        total = sum(len(record.crowds) for record in records)
        if total and all(record.crowds.all() for record in records):
            notes.append(
                f"split {split!r}: all {total} objects are crowds (iscrowd 1), which are no targets of training; "
                "correct iscrowd if they are single objects"
            )
    return notes
