"""One typed model of a run. YAML, command-line flags and the docs come from it; unknown keys are errors with the nearest name.

Imports neither torch nor a detector, so that `detdistill --help` stays quick. Every default of a run is a field here;
the defaults of a method are fields of that method's `Config` (detdistill.methods).
"""

from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from detdistill.errors import UserError, nearest


class Part(BaseModel):
    """A part of the recipe: frozen, closed. `none` is none where a field may be none, as the flags and the descriptions write it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        may = {name for name, info in cls.model_fields.items() if NoneType in get_args(info.annotation)}
        return {name: None if name in may and value == "none" else value for name, value in content.items()}


class ModelConfig(Part):
    """The detector that is trained."""

    name: str = Field("", description="HEAD:BACKBONE, such as gfl:resnet18 or retinanet:mobilenetv3_small_100")
    strides: tuple[PositiveInt, ...] = Field(
        (8, 16, 32, 64, 128),
        min_length=1,
        description="strides of the pyramid's levels, fine to coarse; not given: what a DETR or AdaMixer was published with, others these",
    )
    channels: int = Field(256, ge=8, description="width of the neck and of the towers")
    tower_depth: int = Field(4, ge=1, le=8, description="convolutions in each tower of a dense head")
    norm: Literal["default", "group", "none"] = Field(
        "default", description="norm of the towers of a dense head; default: what the head was published with"
    )
    edges: bool = Field(
        False,
        description="each side's distance as a distribution over edge_bins bins, as GFL always has it: what LD needs (dense heads)",
    )
    edge_bins: int = Field(17, ge=2, description="bins of a side's distance distribution, 0 to edge_bins - 1 strides")
    queries: int = Field(300, ge=1, description="decoder queries (DETR family)")
    encoder_layers: PositiveInt | None = Field(
        None, description="depth of the encoder (DETR family); none: what it was published with"
    )
    decoder_layers: PositiveInt | None = Field(
        None, description="depth of the decoder (DETR family); none: what it was published with"
    )
    box_refine: bool = Field(
        False, description="each decoder layer corrects the boxes of the one before (deformable_detr)"
    )
    two_stage: bool = Field(
        False, description="queries are the encoder's best proposals; implies box_refine (deformable_detr)"
    )
    backbone_weights: str = Field(
        "default",
        description="default: pretrained, from the network; none: random; a FILE; or a run folder, for its backbone",
    )
    rois: int = Field(512, ge=1, description="proposals an image that the second stage learns from (two-stage)")
    score_threshold: float = Field(0.01, ge=0, lt=1, description="detections below this score are dropped")
    nms_threshold: float | None = Field(
        None, gt=0, le=1, description="IoU of suppression; none: what the head was published with"
    )
    detections: int = Field(100, ge=1, description="largest number of detections per image")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of one family alone (`detdistill list detectors NAME`)"
    )


class SplitPaths(Part):
    """One split given by explicit paths."""

    annotations: Path = Field(description="COCO JSON file, or folder of VOC XML or YOLO text files")
    images: Path = Field(description="folder of the images")


class DataConfig(Part):
    """Where the images are and how they are shown to the detector."""

    path: str = Field("", description="folder in COCO, Pascal VOC or YOLO layout, or shapes:N for the built-in set")
    train: SplitPaths | None = None
    val: SplitPaths | None = None
    test: SplitPaths | None = None
    train_split: str | None = Field(None, description="name of the split to train on; none: train")
    eval_split: str | None = Field(
        None, description="name of the split to measure on; none: test where there is one, else val"
    )
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        640, description="images are scaled to fit a square of this side, or (height, width)"
    )
    flip: float = Field(0.5, ge=0, le=1, description="chance of a horizontal flip in training")
    scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0), description="range of random scaling in training, 1: none"
    )
    photometric: bool = Field(False, description="random brightness, contrast, saturation and hue in training")
    on_bad_record: Literal["stop", "skip"] = Field(
        "stop", description="what to do with an image or annotation that can't be read"
    )


class TeacherConfig(Part):
    """The frozen detector that is learned from."""

    path: str = Field(
        "",
        description="a run folder, torchvision:NAME, torchvision:NAME=FILE, hf:NAME or hf:FOLDER (transformers), HEAD:BACKBONE=FILE with a "
        "state dict of your own, or a ViT for its features: timm:NAME, timm:NAME=FILE",
    )
    model: ModelConfig = Field(
        ModelConfig(), description="how HEAD:BACKBONE=FILE was built; a run folder knows it itself"
    )
    inherit: tuple[Literal["neck", "head"], ...] = Field(
        (), description="what a fresh student takes over from the teacher where names and shapes fit: neck, head"
    )
    sample: int = Field(
        64, ge=0, description="images on which the teacher's AP is measured before the first step; 0: none"
    )
    floor: float = Field(
        5.0,
        ge=0,
        le=100,
        description="AP (0 to 100) below which the run stops, where the teacher's predictions are read",
    )
    allow_weak: bool = Field(False, description="go on with a teacher below the floor")


class TrainConfig(Part):
    """Schedule and optimizer."""

    epochs: int = Field(12, ge=1, description="passes over the training images")
    seed: int = Field(0, ge=0, description="of the initial weights, the order of the images and their augmentation")
    batch_size: int = Field(8, ge=1, description="images a step, over all processes")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(0.001, gt=0, description="peak learning rate")
    backbone_lr_factor: float = Field(1.0, ge=0, description="the backbone's share of the learning rate; 0 freezes it")
    weight_decay: float = Field(0.05, ge=0, description="not applied to norms and biases")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up of the learning rate")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="of the learning rate after its warm-up"
    )
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.67, 0.92), description="fractions of the run at which `step` divides the rate by 10"
    )
    clip_norm: float | None = Field(10.0, gt=0, description="largest gradient norm; none: no clipping")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the moving average of the weights; none: off")
    balance_every: int = Field(
        10, ge=1, description="steps between two measurements of gradients, for methods with a `balance`"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the forward pass; fp16 needs a GPU")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: int = Field(0, ge=0, description="processes that read images; 0: in the training process")
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many steps; the schedule's length stays that of the epochs"
    )
    log_every: int = Field(10, ge=1, description="steps between lines of log.jsonl")
    log_gradients: bool = Field(
        False, description="log the gradient of every term at the neck, and its share of their sum"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; none: every epoch")


class Recipe(Part):
    """A run, whole."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="method name to its options; empty: plain training"
    )
    train: TrainConfig = TrainConfig()


Overrides = Annotated[Mapping[str, Any], "nested mapping laid over a recipe"]


def merge(base: Mapping[str, Any], over: Overrides) -> dict[str, Any]:
    """`base` with `over` laid on top, mapping by mapping. Neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.lr": 1} to {"train": {"lr": 1}}; dashes in names become underscores."""
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        *parents, leaf = name.replace("-", "_").split(".")
        spot = tree
        for parent in parents:
            spot = spot.setdefault(parent, {})
        spot[leaf] = value
    return tree


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(str(files("detdistill"))).glob("recipes/*.yaml"))}


def load(
    source: str | None, over: Overrides | None = None, methods: Collection[str] | None = None, *, origin: str = "recipe"
) -> Recipe:
    """The recipe of a file, run folder or packaged name (none: the defaults) with `over` on top.

    methods: where given, exactly these stay, each with the options that file and `over` give it. origin: what messages call `over`. Raises UserError.
    """
    content: dict[str, Any] = {}
    if source is not None:
        path = Path(source) / "recipe.yaml" if Path(source).is_dir() else Path(source)
        if not path.exists() and source not in packaged():
            raise UserError(
                f"--recipe {source}: neither a file nor one of {', '.join(packaged())}{nearest(source, packaged())}"
            )
        path = path if path.exists() else packaged()[source]
        content = read_yaml(path)
        parse(content, str(path))  # alone first, so that a message names the file where the file is to blame
    merged = merge(content, over or {})
    if methods is not None:
        merged["methods"] = {name: (merged.get("methods") or {}).get(name, {}) for name in methods}
    return parse(merged, origin)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error; plain YAML lets the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice, line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file. Raises UserError where it can't be read."""
    try:
        content = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise UserError(f"{path}: can't read the recipe ({error.strerror}); see `detdistill list recipes`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    return content


def parse(content: Mapping[str, Any], source: str) -> Recipe:
    """A validated recipe. `source` names the file or flag in messages. Raises UserError with the field and the remedy."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    errors = error.errors()
    first = next(
        (each for each in errors if each["type"] == "extra_forbidden"), errors[0]
    )  # a typo also leaves the field it meant missing
    place = [str(part) for part in first["loc"]]
    parts: list[Any] = [Recipe]  # the model at each step of the way
    for name in place[:-1]:
        annotation = getattr(parts[-1], "model_fields", {}).get(name)
        kinds = (annotation.annotation, *get_args(annotation.annotation)) if annotation else ()
        parts.append(next((kind for kind in kinds if hasattr(kind, "model_fields")), None))  # SplitPaths | None
    if first["type"] == "extra_forbidden":
        known = list(parts[-1].model_fields)
        return f"unknown field {'.'.join(place)!r}{nearest(place[-1], known)} (known here: {', '.join(known)})"
    place = [
        name for name, part in zip(place, parts, strict=True) if part is not None or place[0] == "methods"
    ]  # not pydantic's own (`int`, `tuple`, 0)
    if first["type"] == "missing":
        return f"field {'.'.join(place)!r} is missing"
    if place == ["data", "image_size"]:  # pydantic tells of one of the two forms only
        return f"field 'data.image_size' is {first['input']!r}: give a side in pixels, or HEIGHT,WIDTH, each 1 or more"
    return f"field {'.'.join(place)!r} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
