"""The fields of a recipe. YAML, command-line flags and the reference are generated from them; unknown keys are errors.

Every default of a run is a field here; the defaults of a method are fields of that method's `Config`
(detdistill.methods).
"""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from detdistill.errors import UserError


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
    freeze_norms: bool | None = Field(
        None,
        description="keep the batch norms of the backbone as they are; none: if the head is a DETR or AdaMixer and the "
        "backbone starts from loaded weights",
    )
    freeze_stages: Annotated[int, Field(ge=0, le=4)] | None = Field(
        None,
        description="number of the backbone's first stages that do not train; stage 1 is everything up to stride 4, "
        "stage 2 up to stride 8; none: 0",
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

    path: str = Field(
        "",
        description="folder or file in COCO, Pascal VOC, YOLO, LabelMe or CVAT layout, or shapes:N for built-in images",
    )
    train: SplitPaths | None = None
    val: SplitPaths | None = None
    test: SplitPaths | None = None
    train_split: str | None = Field(None, description="name of the split to train on; none: train")
    eval_split: str | None = Field(
        None, description="name of the split to evaluate on; none: test if it exists, else val"
    )
    val_fraction: float | None = Field(
        None, ge=0, le=1, description="share of the images to hold out as val; none: 0.1 if the data has no splits"
    )
    test_fraction: float | None = Field(
        None, ge=0, le=1, description="share of the images to hold out as test; none: 0.2 if the data has no splits"
    )
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        640, description="images are scaled to fit into a square of this side, or into (height, width)"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0), description="range of random scaling in training; 1,1: no scaling"
    )
    photometric: bool = Field(False, description="random brightness, contrast, saturation and hue in training")
    mosaic: float = Field(
        0.0, ge=0, le=1, description="probability of a mosaic in training: parts of four images around a random point"
    )
    mixup: float = Field(
        0.0, ge=0, le=1, description="probability that a second image is blended in, in training, with its boxes"
    )
    close_mosaic: float = Field(
        0.15, ge=0, le=1, description="share of the epochs, at the end of the run, without mosaic and mixup"
    )
    multiscale: tuple[PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0),
        description="range of a random factor of image_size in training, one per step, in multiples of 32 pixels; "
        "1,1: one size",
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        "stop", description="what to do with an image or annotation that can't be read"
    )


class TeacherConfig(Part):
    """The frozen detector that teaches."""

    path: str = Field(
        "",
        description="a run folder, torchvision:NAME, torchvision:NAME=FILE, hf:NAME or hf:FOLDER (transformers), "
        "HEAD:BACKBONE=FILE with weights of your own (FILE#ema: their moving average), or a ViT for its features: "
        "timm:NAME, timm:NAME=FILE",
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


EMA_DECAY = 0.9998  # with `--ema` alone; from about 45,000 steps on, since a shorter average is used before


def _decay(value: Any) -> Any:
    """The decay of `on` and `off`, as text or as YAML reads them; other values stay."""
    word = value.lower() if isinstance(value, str) else value
    if word in ("on", "true") or word is True:
        return EMA_DECAY
    return None if word in ("off", "false") or word is False else value


class TrainConfig(Part):
    """Schedule and optimizer."""

    epochs: int = Field(12, ge=1, description="passes over the training images")
    seed: int = Field(
        0, ge=0, description="random seed of the initial weights, the order of the images and their augmentation"
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        8, description="images per step, over all processes; auto: as many as fit into the memory of the GPU"
    )
    accumulate: int = Field(
        1, ge=1, description="micro-batches per step: batch_size is split into as many, one in memory at a time"
    )
    accumulate_exact: bool = Field(
        True,
        description="count objects over all micro-batches, as the large batch does, at the cost of a further forward "
        "pass; false: each micro-batch by itself",
    )
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
    ema: Annotated[float | None, BeforeValidator(_decay)] = Field(
        None,
        gt=0,
        lt=1,
        description=f"decay of the moving average of the weights; on: {EMA_DECAY}; none: off",
        json_schema_extra={"alone": "on"},
    )
    balance_every: int = Field(
        10, ge=1, description="steps between two measurements of gradients, for methods with a `balance`"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the forward pass; fp16 needs a GPU"
    )
    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:1, mps")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="processes that read images; 0: the training process reads them; auto: as this machine needs",
    )
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many steps; the learning-rate schedule still spans all epochs"
    )
    log_every: int = Field(10, ge=1, description="steps between two lines of log.jsonl")
    log_gradients: bool = Field(
        False, description="log the norm of every term's gradient at the neck, and its share of their sum"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="steps between two checkpoints; none: every epoch")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="where the log and the metrics are also shown: tensorboard, wandb, mlflow"
    )

    @property
    def images_per_step(self) -> int:
        """`batch_size` as a number. Raises UserError if it is still `auto`."""
        if self.batch_size == "auto":
            raise UserError("--batch-size auto: only `train` and `distill` can choose it; give a number")
        return self.batch_size


class Recipe(Part):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="method name to its options; empty: plain training"
    )
    train: TrainConfig = TrainConfig()
