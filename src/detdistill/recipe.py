"""The typed recipe of a run. YAML, command-line flags and the reference are generated from it; unknown keys are errors.

Imports neither torch nor a detector, so that `detdistill --help` stays quick. Every default of a run is a field here;
the defaults of a method are fields of that method's `Config` (detdistill.methods).
"""

from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from detdistill.errors import UserError, nearest


class Part(BaseModel):
    """A frozen part of the recipe that accepts no unknown fields. The text `none` means None if the field allows it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        optional = {name for name, info in cls.model_fields.items() if NoneType in get_args(info.annotation)}
        return {name: None if name in optional and value == "none" else value for name, value in content.items()}


class ModelConfig(Part):
    """The detector to train."""

    name: str = Field("", description="HEAD:BACKBONE, such as gfl:resnet18 or retinanet:mobilenetv3_small_100")
    strides: tuple[PositiveInt, ...] = Field(
        (8, 16, 32, 64, 128),
        min_length=1,
        description="strides of the pyramid levels, fine to coarse; if not set, DETRs and AdaMixer use published ones",
    )
    channels: int = Field(256, ge=8, description="width of the neck and of the towers")
    tower_depth: int = Field(4, ge=1, le=8, description="convolutions per tower (dense heads)")
    norm: Literal["default", "group", "none"] = Field(
        "default",
        description="norm of the towers (dense heads); default: as published for the head, and group with depthwise",
    )
    neck: Literal["fpn", "pafpn"] = Field(
        "fpn",
        description="fpn: feature pyramid network; pafpn: with a second path, from fine to coarse levels (dense and "
        "two-stage heads)",
    )
    depthwise: bool = Field(
        False,
        description="depthwise-separable convolutions in neck and towers, and 1x1 predictors, for a small model (dense "
        "heads)",
    )
    edges: bool = Field(
        False,
        description="predict each side's distance as a distribution over edge_bins bins, as GFL always does and LD "
        "needs it (dense heads)",
    )
    edge_bins: int = Field(
        17, ge=2, description="bins of a side's distance distribution, 0 to edge_bins - 1 strides (dense heads)"
    )
    queries: int = Field(300, ge=1, description="decoder queries (DETRs, AdaMixer)")
    encoder_layers: PositiveInt | None = Field(None, description="encoder layers (DETRs); none: as published")
    decoder_layers: PositiveInt | None = Field(None, description="decoder layers (DETRs, AdaMixer); none: as published")
    box_refine: bool = Field(
        False, description="each decoder layer refines the boxes of the previous one (deformable_detr)"
    )
    two_stage: bool = Field(
        False, description="use the encoder's best proposals as queries; implies box_refine (deformable_detr)"
    )
    backbone_weights: str = Field(
        "default",
        description="default: pretrained, downloaded; none: random; FILE; or a run folder, whose backbone is used",
    )
    mean: tuple[float, float, float] | None = Field(
        None,
        description="mean of the pixels, 0 to 1, per channel (red, green, blue), that is subtracted from an image; "
        "none: of the backbone's pretrained configuration",
    )
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        None,
        description="standard deviation of the pixels, 0 to 1, per channel, that an image is divided by; none: of the "
        "backbone's pretrained configuration",
    )
    rois: int = Field(
        512, ge=1, description="proposals per image that the second stage is trained on (two-stage heads)"
    )
    score_threshold: float = Field(0.01, ge=0, lt=1, description="detections with a lower score are dropped")
    nms_threshold: float | None = Field(
        None, gt=0, le=1, description="IoU threshold of non-maximum suppression; none: as published for the head"
    )
    detections: int = Field(100, ge=1, description="largest number of detections per image")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of one detector alone (`detdistill list detectors NAME`)"
    )


class SplitPaths(Part):
    """One split, given by explicit paths."""

    annotations: Path = Field(description="COCO JSON file, or folder of VOC XML or YOLO text files")
    images: Path = Field(description="folder of the images")


class DataConfig(Part):
    """The images, and how they are prepared for the detector."""

    path: str = Field("", description="folder in COCO, Pascal VOC or YOLO layout, or shapes:N for built-in images")
    train: SplitPaths | None = None
    val: SplitPaths | None = None
    test: SplitPaths | None = None
    train_split: str | None = Field(None, description="name of the split to train on; none: train")
    eval_split: str | None = Field(
        None, description="name of the split to evaluate on; none: test if it exists, else val"
    )
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        640, description="images are scaled to fit into a square of this side, or into (height, width)"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0), description="range of random scaling in training; 1,1: no scaling"
    )
    photometric: bool = Field(False, description="random brightness, contrast, saturation and hue in training")
    on_bad_record: Literal["stop", "skip"] = Field(
        "stop", description="what to do with an image or annotation that can't be read"
    )


class TeacherConfig(Part):
    """The frozen detector that teaches."""

    path: str = Field(
        "",
        description="a run folder, torchvision:NAME, torchvision:NAME=FILE, hf:NAME or hf:FOLDER (transformers), "
        "HEAD:BACKBONE=FILE with a state dict of your own, or a ViT for its features: timm:NAME, timm:NAME=FILE",
    )
    model: ModelConfig = Field(
        ModelConfig(), description="architecture of HEAD:BACKBONE=FILE; a run folder stores its own architecture"
    )
    inherit: tuple[Literal["neck", "head"], ...] = Field(
        (), description="parts that a new student copies from the teacher where names and shapes fit: neck, head"
    )
    sample: int = Field(
        64, ge=0, description="images on which the teacher's AP is measured before the first step; 0: none"
    )
    floor: float = Field(
        5.0,
        ge=0,
        le=100,
        description="if methods read the teacher's predictions, the run stops if its AP (0 to 100) is lower",
    )
    allow_weak: bool = Field(False, description="continue with a teacher whose AP is below the floor")


class TrainConfig(Part):
    """Schedule and optimizer."""

    epochs: int = Field(12, ge=1, description="passes over the training images")
    seed: int = Field(
        0, ge=0, description="random seed of the initial weights, the order of the images and their augmentation"
    )
    batch_size: int = Field(8, ge=1, description="images per step, over all processes")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimizer")
    lr: float = Field(0.001, gt=0, description="peak learning rate")
    backbone_lr_factor: float = Field(
        1.0, ge=0, description="factor of the learning rate for the backbone; 0 freezes it"
    )
    weight_decay: float = Field(0.05, ge=0, description="weight decay; not applied to norms and biases")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up of the learning rate")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="schedule of the learning rate after its warm-up"
    )
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.67, 0.92), description="fractions of the run at which schedule `step` divides the rate by 10"
    )
    clip_norm: float | None = Field(10.0, gt=0, description="largest gradient norm; none: no clipping")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the moving average of the weights; none: off")
    balance_every: int = Field(
        10, ge=1, description="steps between two measurements of gradients, for methods with a `balance`"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the forward pass; fp16 needs a GPU"
    )
    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:1, mps")
    workers: int = Field(0, ge=0, description="processes that read images; 0: the training process reads them")
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many steps; the learning-rate schedule still spans all epochs"
    )
    log_every: int = Field(10, ge=1, description="steps between two lines of log.jsonl")
    log_gradients: bool = Field(
        False, description="log the norm of every term's gradient at the neck, and its share of their sum"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="steps between two checkpoints; none: every epoch")


class Recipe(Part):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="method name to its options; empty: plain training"
    )
    train: TrainConfig = TrainConfig()


Overrides = Annotated[Mapping[str, Any], "nested mapping that replaces fields of a recipe"]


def merge(base: Mapping[str, Any], over: Overrides) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping. Neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.lr": 1} as {"train": {"lr": 1}}; dashes in names become underscores."""
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        *parents, leaf = name.replace("-", "_").split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(str(files("detdistill"))).glob("recipes/*.yaml"))}


def load(
    source: str | None, over: Overrides | None = None, methods: Collection[str] | None = None, *, origin: str = "recipe"
) -> Recipe:
    """The recipe of a file, a run folder or a packaged name (None: the defaults), with the values of `over`.

    methods: if given, exactly these methods stay, each with the options that the file and `over` set. origin: name of
    `over` in messages. Raises UserError that names the file or flag, the field and the remedy.
    """
    content: dict[str, Any] = {}
    if source is not None:
        path = Path(source) / "recipe.yaml" if Path(source).is_dir() else Path(source)
        if not path.exists() and Path(source).is_dir() and source not in packaged():
            raise UserError(f"--recipe {source}: the folder has no recipe.yaml; give a run folder or a file")
        if not path.exists() and source not in packaged():
            hint = nearest(source, packaged())
            raise UserError(f"--recipe {source}: neither a file nor one of {', '.join(packaged())}{hint}")
        path = path if path.exists() else packaged()[source]
        content = read_yaml(path)
        parse(content, str(path))  # without `over` first, so that the message names the file if the file is wrong
    merged = merge(content, over or {})
    if methods is not None:
        options = merged.get("methods") or {}
        merged["methods"] = {name: options.get(name, {}) for name in methods}
    return parse(merged, origin)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error; plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or a mapping, which the base class refuses
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is repeated; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file. Raises UserError if it can't be read."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: can't read the recipe ({error.strerror}); see `detdistill list recipes`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: invalid YAML: {yaml_problem(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    return content


def yaml_problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """The error in one line, with the number of the line in the file if it is known."""
    if isinstance(error, UnicodeDecodeError):
        return f"the file is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def parse(content: Mapping[str, Any], source: str) -> Recipe:
    """The validated recipe. Raises UserError with the field and the remedy. source: name of the file or flag in
    messages.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


REMEDIES = {
    "model_type": "write its fields as a mapping, `name: value`",
    "dict_type": "write a mapping, `name: value`, or {} if it is empty",
    "tuple_type": "write a list, such as [8, 16, 32]",
}
"""What to write instead, by the type of pydantic's error, where pydantic's own words are those of Python."""


def _explain(error: ValidationError) -> str:
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
    if field == "data.image_size":  # pydantic names only one of the two forms
        return f"field 'data.image_size' is {first['input']!r}: give a side in pixels, or HEIGHT,WIDTH, each 1 or more"
    return f"field {field!r} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _parts(place: Sequence[str]) -> list[Any]:
    """For each name of a path, the part of the recipe that it is a field of, or None."""
    parts: list[Any] = [Recipe]
    for name in place[:-1]:
        field = getattr(parts[-1], "model_fields", {}).get(name)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        parts.append(next((kind for kind in kinds if hasattr(kind, "model_fields")), None))
    return parts
