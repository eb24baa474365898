"""What a prediction leaves in its folder: drawings, annotated videos, COCO results and YOLO labels."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from detdistill import evaluation
from detdistill.data.recording import SUFFIX, recording
from detdistill.data.video import Frame
from detdistill.errors import UserError, plural
from detdistill.evaluation.drawing import Memory, class_colors
from detdistill.evaluation.drawing.colors import Color
from detdistill.files import write_text, writing_list
from detdistill.run.predictor import Predictor
from detdistill.types import Detections

Kind = Literal["drawings", "json", "yolo"]

KINDS: dict[str, str] = {
    "drawings": "the images and videos with their boxes",
    "json": "predictions.json, COCO results",
    "yolo": "labels/NAME.txt, one line per box: class cx cy w h score, in 0..1 of the image",
}
WRITABLE = (".jpg", ".jpeg", ".png")  # other formats are written as PNG
QUALITY = 92  # of a JPEG

Annotate = Callable[[Frame, list[Detections]], None]


@dataclass
class PredictionFiles:
    """Writes detections into a folder as they come.

    folder: where to write. save: names of KINDS. threshold: lowest score of a drawn box and of a YOLO line.
    predictors: the model, and the one that it is compared with if there is one. append: takes a COCO result.
    results, drawn: numbers of COCO results written and of boxes drawn.
    """

    folder: Path
    save: tuple[str, ...]
    threshold: float
    predictors: Sequence[Predictor]
    append: Callable[[Mapping[str, Any]], None]
    results: int = 0
    drawn: int = 0
    colors: Mapping[str, Color] = field(init=False)

    def __post_init__(self) -> None:
        self.colors = class_colors(*(predictor.classes for predictor in self.predictors))

    def add_image(
        self, id: int, file_name: str, names: tuple[str, str], picture: Image.Image, found: Sequence[Detections]
    ) -> list[dict[str, Any]]:
        """Write one image, and return its COCO results.

        names: of the drawing and of the label file. found: the detections of each predictor.
        """
        if "drawings" in self.save:
            drawing, path = self._drawing(picture, found), self.folder / names[0]
            if path.suffix.lower() == ".png":
                drawing.save(path)
            else:
                drawing.save(path, quality=QUALITY, subsampling=0)  # thin colored lines keep their color
        self._write_labels(f"{names[1]}.txt", picture, found[0])
        return self._write_results(id, {"file_name": file_name}, found[0])

    @contextmanager
    def video(self, name: str, file_name: str, rate: Fraction, first_id: int) -> Iterator[Annotate]:
        """Give a function that writes a frame with the detections of each predictor.

        name: of the written video, without its suffix. first_id: image id of the first frame.
        Of videos, only boxes of at least the threshold are written.
        """
        id, memories = first_id, [Memory() for _ in self.predictors]

        with recording(self.folder / f"{name}{SUFFIX}", rate) as write:

            def annotate(frame: Frame, found: list[Detections]) -> None:
                nonlocal id
                if "drawings" in self.save:
                    write(self._drawing(frame.picture, found, memories), frame.time)
                self._write_labels(f"{name}/{frame.number:06}.txt", frame.picture, found[0])
                place = {"file_name": file_name, "frame": frame.number, "time": round(frame.time, 4)}
                self._write_results(id, place, self._shown(found[0]))
                id += 1

            yield annotate

    def write_classes(self) -> None:
        """Write the class names for the numbers in YOLO labels."""
        if "yolo" in self.save:
            write_text(self.folder / "classes.txt", "".join(f"{name}\n" for name in self.predictors[0].classes))

    def _shown(self, detections: Detections) -> Detections:
        kept = detections.scores >= self.threshold
        return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])

    def _drawing(
        self, picture: Image.Image, found: Sequence[Detections], memories: Sequence[Memory] | None = None
    ) -> Image.Image:
        """The picture with its boxes, or one for each predictor side by side. memories: of a video, by predictor."""
        panes, titles = [], []
        for number, (predictor, detections) in enumerate(zip(self.predictors, found, strict=True)):
            boxes = self._shown(detections)
            panes.append(
                evaluation.draw(
                    picture,
                    boxes.boxes,
                    boxes.labels,
                    boxes.scores,
                    predictor.classes,
                    self.threshold,
                    colors=self.colors,
                    legend=memories is None,
                    memory=None if memories is None else memories[number],
                )
            )
            titles.append(f"{predictor.name}: {plural(len(boxes.scores), 'box')}")
        return panes[0] if len(panes) == 1 else evaluation.side_by_side(panes, titles)

    def _write_results(self, id: int, place: Mapping[str, Any], detections: Detections) -> list[dict[str, Any]]:
        model = self.predictors[0]
        self.drawn += int((detections.scores >= self.threshold).sum())
        names = [model.classes[label] for label in detections.labels.tolist()]
        rows = evaluation.coco_results([detections], [id], [str(place["file_name"])], model.category_ids)
        results = []
        for row, name in zip(rows, names, strict=True):
            box = {"bbox": row["bbox"], "score": row["score"]}
            results.append({"image_id": id, **place, "category_id": row["category_id"], "category_name": name, **box})
        if "json" in self.save:
            for result in results:
                self.append(result)
            self.results += len(results)
        return results

    def _write_labels(self, name: str, picture: Image.Image, detections: Detections) -> None:
        if "yolo" not in self.save:
            return
        boxes = self._shown(detections)
        lines = []
        for (left, top, right, bottom), score, label in zip(
            boxes.boxes.tolist(), boxes.scores.tolist(), boxes.labels.tolist(), strict=True
        ):
            sides = picture.width, picture.height
            numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            shares = " ".join(f"{number / sides[index % 2]:.6f}" for index, number in enumerate(numbers))
            lines.append(f"{label} {shares} {score:.4f}\n")
        path = self.folder / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))


@contextmanager
def prediction_files(
    folder: Path, save: Sequence[str], threshold: float, predictors: Sequence[Predictor]
) -> Iterator[PredictionFiles]:
    """The files of one prediction in a `staged` folder; predictions.json is complete at the end."""
    if "json" in save:
        with writing_list(folder / "predictions.json") as append:
            yield PredictionFiles(folder, tuple(save), threshold, predictors, append)
    else:
        yield PredictionFiles(folder, tuple(save), threshold, predictors, lambda result: None)


def check_save(save: Sequence[str], compares: bool) -> None:
    """Raises UserError if a kind is unknown or none is named, or if a comparison is not drawn."""
    unknown = [kind for kind in save if kind not in KINDS]
    if unknown or not save:
        named = f"no {unknown[0]!r}; " if unknown else ""
        raise UserError(f"--save: {named}choose from {', '.join(KINDS)}, separated by commas")
    if compares and "drawings" not in save:
        raise UserError("--compare draws two models side by side, but --save leaves drawings out; add drawings")


def drawing_names(images: Sequence[tuple[int, str]]) -> list[str]:
    """The name of each drawing: that of the image, as PNG if its format can't be written. images: (id, name).

    A name that occurs more than once gets the id.
    """
    names = [name if Path(name).suffix.lower() in WRITABLE else f"{name}.png" for _, name in images]
    return different(names, [id for id, _ in images])


def different(names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """The names; those that occur more than once, in upper or lower case, with their number in front."""
    counts = Counter(name.casefold() for name in names)
    return [
        f"{number}-{name}" if counts[name.casefold()] > 1 else name for name, number in zip(names, numbers, strict=True)
    ]
