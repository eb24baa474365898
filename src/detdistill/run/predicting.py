"""Boxes of a trained detector on images, videos and cameras of the user's own."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from detdistill.data.recording import encoder
from detdistill.data.records import Record
from detdistill.data.sources import MOST_PIXELS, Sources, decoded, find_sources, read_images
from detdistill.data.video import Camera, Frame, VideoFile, VideoInfo, open_video
from detdistill.engine.interrupt import uninterrupted
from detdistill.errors import UserError, plural
from detdistill.files import staged
from detdistill.recipe import DataConfig, TrainConfig
from detdistill.run.folder import is_run, require_empty
from detdistill.run.prediction_files import PredictionFiles, check_save, different, drawing_names, prediction_files
from detdistill.run.predictor import Predictor, load_predictor
from detdistill.run.tables import Say, printer

REPORTED = 10.0  # seconds between two lines about the progress of a video


def predict(
    model: str | Path,
    images: Sequence[Path | str | int],
    out: Path,
    *,
    data: DataConfig = DataConfig(),
    train: TrainConfig = TrainConfig(),
    threshold: float = 0.3,
    save: Sequence[str] = ("drawings", "json"),
    compare: str | Path | None = None,
    tile: int | None = None,
    every: int | None = None,
    max_frames: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Draw the boxes with a score of at least `threshold`, and write the boxes to out/predictions.json.

    images: files, folders, patterns such as photos/*.jpg, video files, and indices of cameras. A camera is recorded
    until Ctrl-C, or for `max_frames` frames.
    save: drawings, json, yolo. compare: a second model; the drawings show both side by side. tile: side in pixels of
    the overlapping tiles in which large pictures are predicted, in addition to the whole picture. every, max_frames:
    every n-th frame of a video, and at most so many of them.

    Returns the results of the images as in predictions.json: {image_id, file_name, category_id, category_name, bbox,
    score}, with the category ids of the data set that the detector was trained on, and bbox as x, y, width, height in
    pixels of the file. The results of frames are only written, because a video may be long. They also have {frame,
    time}, the number from 0 and the seconds, and only boxes of at least `threshold`.
    Files appear in `out` when all are complete. Raises UserError if an input is wrong; then nothing is written.
    """
    say = printer(console)
    _check(images, threshold, every, max_frames)
    check_save(save, compare is not None)
    require_empty(out, overwrite)
    sources = find_sources(images)
    _check_apart(out, sources.files)
    for note in sources.notes:
        say(f"note: {note}")
    records = read_images(sources.images, data) if sources.images else []
    videos = _Videos(sources, every, max_frames, data.on_bad_record == "skip")
    videos.check()
    models = [str(name) for name in (model, compare) if name is not None]
    predictors = [load_predictor(name, data, train, tile, say) for name in models]
    with staged(out) as folder, prediction_files(folder, save, threshold, predictors) as files:
        results = _predict_images(records, predictors, files)
        frames = videos.predict(predictors, files, len(sources.images), say)
        files.write_classes()
    _report(out, len(records), len(sources.videos), frames, files, say)
    return results


def _predict_images(
    records: Sequence[Record], predictors: Sequence[Predictor], files: PredictionFiles
) -> list[dict[str, Any]]:
    """Predict and write the images, and return their results."""
    drawings = drawing_names([(record.id, record.name) for record in records])
    labels = different([Path(record.name).stem for record in records], [record.id for record in records])
    names = dict(zip([record.id for record in records], zip(drawings, labels, strict=True), strict=True))
    results: list[dict[str, Any]] = []
    for group in decoded(records, 1 if predictors[0].tile else predictors[0].batch_size):
        pictures = [picture for _, picture in group]
        titles = [record.name for record, _ in group]
        found = [predictor.detect(pictures, titles) for predictor in predictors]
        for (record, picture), *each in zip(group, *found, strict=True):
            results += files.add_image(record.id, record.name, names[record.id], picture, each)
    return results


class _Videos:
    """The videos and cameras of a prediction.

    every, most: every n-th frame, at most so many. skip_damage: leave out what can't be decoded.
    """

    def __init__(self, sources: Sources, every: int | None, most: int | None, skip_damage: bool) -> None:
        self.videos, self.every, self.most, self.skip_damage = sources.videos, every, most, skip_damage
        stems = [video.path.stem if isinstance(video, VideoFile) else video.name for video in sources.videos]
        self.names = different(stems, range(len(sources.images) + 1, len(sources.images) + 1 + len(stems)))

    def check(self) -> None:
        """Raises UserError if a video file can't be read, or if frames are limited but there is no video."""
        if not self.videos and (self.every, self.most) != (None, None):
            raise UserError("--every and --max-frames are for videos and cameras, but there is none; leave them out")
        for video in self.videos:
            if isinstance(video, VideoFile):
                with open_video(video, skip_damage=self.skip_damage):
                    pass

    def predict(self, predictors: Sequence[Predictor], files: PredictionFiles, images: int, say: Say) -> int:
        """Predict and write all videos, and return the number of frames. images: number of image ids in use."""
        frames = 0
        for video, name in zip(self.videos, self.names, strict=True):
            frames += self._predict(video, name, predictors, files, images + frames + 1, say)
        return frames

    def _predict(
        self,
        video: VideoFile | Camera,
        name: str,
        predictors: Sequence[Predictor],
        files: PredictionFiles,
        first_id: int,
        say: Say,
    ) -> int:
        is_camera = isinstance(video, Camera)
        done, started = 0, time.monotonic()
        with open_video(video, self.every or 1, self.most, self.skip_damage) as (info, frames):
            self._announce(video, info, "drawings" in files.save, say)
            count = (
                1 if is_camera else max(1, min(predictors[0].batch_size, MOST_PIXELS // (info.size[0] * info.size[1])))
            )
            reported = started
            with files.video(name, video.name, info.rate / (self.every or 1), first_id) as annotate:
                try:
                    for group in _groups(frames, count):
                        with uninterrupted() if is_camera else nullcontext():
                            pictures = [frame.picture for frame in group]
                            titles = [f"{video} frame {frame.number}" for frame in group]
                            found = [predictor.detect(pictures, titles) for predictor in predictors]
                            for frame, *each in zip(group, *found, strict=True):
                                annotate(frame, each)
                            done += len(group)
                        if time.monotonic() - reported > REPORTED:
                            reported = time.monotonic()
                            say(_progress(video, group[-1], info, done / (reported - started)))
                except KeyboardInterrupt:
                    if not is_camera or not done:
                        raise
        return done

    def _announce(self, video: VideoFile | Camera, info: VideoInfo, draws: bool, say: Say) -> None:
        size = f"{info.size[0]} x {info.size[1]} pixels, {float(info.rate):.4g} frames/s"
        hints = []
        if isinstance(video, Camera) and self.most is None:
            hints.append("Ctrl-C stops and saves")
        if draws and info.has_sound:
            hints.append("the sound is not copied")
        if draws and encoder() == "mpeg4":
            hints.append("PyAV has no encoder of H.264, so the video is written as MPEG-4")
        say("; ".join([f"{video}: {size}", *hints]))


def _groups(frames: Iterator[Frame], count: int) -> Iterator[list[Frame]]:
    """The frames in lists of `count`; the last one may be shorter."""
    group: list[Frame] = []
    for frame in frames:
        group.append(frame)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


def _progress(video: VideoFile | Camera, frame: Frame, info: VideoInfo, speed: float) -> str:
    total = f" of {info.frames}" if info.frames else ""
    return f"{video}: frame {frame.number + 1}{total}, {frame.time:.1f} s, {speed:.1f} frames/s"


def _check(images: Sequence[Path | str | int], threshold: float, every: int | None, max_frames: int | None) -> None:
    """Raises UserError if nothing is named or a number is out of range."""
    if not images:
        raise UserError("no images: give image files, folders of images, videos, or the index of a camera")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold}: scores are in 0..1; give a number in this range, such as 0.3")
    for flag, value in (("--every", every), ("--max-frames", max_frames)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: give a number of frames of at least 1")


def _check_apart(out: Path, files: Sequence[Path]) -> None:
    """Raises UserError if `out` is a run folder, or if a file that is read is inside it and so might be replaced."""
    if is_run(out):
        raise UserError(f"--out {out} is a run folder, whose files would be replaced; choose another folder")
    folder = out.resolve()
    for file in files:
        if file.resolve().is_relative_to(folder) or (file.parent.resolve() / file.name).is_relative_to(folder):
            raise UserError(
                f"--out {out}: {file} is read and must not be replaced; choose a folder without your images"
            )


def _report(out: Path, images: int, videos: int, frames: int, files: PredictionFiles, say: Say) -> None:
    """Say what was written."""
    counts = [plural(images, "image")] if images or not videos else []
    if videos:
        counts.append(f"{plural(videos, 'video')} ({plural(frames, 'frame')})")
    boxes = f"{plural(files.drawn, 'box')} of score {files.threshold:g} or more"
    kept = f"; predictions.json has {files.results}" if "json" in files.save else ""
    say(f"{out}: {' and '.join(counts)} with {boxes}{kept}")
