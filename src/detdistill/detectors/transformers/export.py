"""A trained detector as transformers alone has it: built anew from its config, and compared."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from detdistill.detectors.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.queries.frames import to_relative
from detdistill.detectors.registry import DETECTORS, HostRecord, host_records
from detdistill.detectors.transformers.load import COUNTER, check_loaded, quiet
from detdistill.errors import UserError
from detdistill.types import Batch, Detector, Need, required

TOLERANCE = 1e-3  # of logits, and of boxes in 0..1; norms that are frozen round otherwise than those that aren't
DRAWS = 3  # a query picked from the image may lose a near tie by rounding; not on three pictures


def host_of(detector: Detector) -> tuple[PreTrainedModel, HostRecord]:
    """The model of transformers inside. Raises UserError where there is none."""
    if not isinstance(detector, QueryDetector) or not isinstance(detector.model, PreTrainedModel):
        heads = ", ".join(name for name, record in DETECTORS.items() if record.host)
        raise UserError(f"--format transformers: {detector.info.kind} is no detector of transformers; {heads} are")
    return detector.model, required(host_records()[detector.model.config.model_type].host)


def write(detector: Detector, folder: Path, size: tuple[int, int]) -> None:
    """config.json, model.safetensors and preprocessor_config.json, in `folder`. size: (height, width) that images were fitted into.

    Raises UserError where transformers builds another architecture from the config than the detector's.
    """
    model, host = host_of(detector)
    config: Any = deepcopy(model.config)
    _check_cells(detector, config, host, size)
    config.id2label = dict(enumerate(detector.info.classes))
    config.label2id = {name: column for column, name in enumerate(detector.info.classes)}
    if hasattr(config, "freeze_backbone_batch_norms"):
        config.freeze_backbone_batch_norms = False  # frozen ones would drop the activation inside timm's
    with quiet():
        plain = type(model)(config).eval()
        own, given = plain.state_dict(), model.state_dict()
        odd = [name for name in own.keys() ^ given.keys() if not name.endswith(COUNTER)]
        odd += [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
        if odd:
            raise UserError(
                _differs(detector, f"{len(odd)} tensors have other names or shapes there, such as {min(odd)!r}")
            )
        plain.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)
        plain.save_pretrained(folder)
        _processor(host, size).save_pretrained(folder)


def _check_cells(detector: Detector, config: Any, host: HostRecord, size: tuple[int, int]) -> None:
    """Raises UserError where queries are chosen among fewer cells than there are queries: ours then takes all, transformers stops."""
    chosen = not host.normalized or getattr(config, "two_stage", False)
    asked = getattr(config, "two_stage_num_proposals", config.num_queries)
    height, width = padded(size)
    cells = sum((height // stride) * (width // stride) for stride in detector.info.strides)
    if chosen and asked > cells:
        raise UserError(
            f"--format transformers: {detector.info.kind} chooses {asked} queries among the {cells} cells of images of {height} x {width}, and "
            f"transformers' stops where there are fewer; train it with --model.queries {cells} at most, or a larger --image-size"
        )


def _processor(host: HostRecord, size: tuple[int, int]) -> Any:
    """Images as in training; but what knows no padding is shown pictures stretched to a size that its levels divide."""
    kind = getattr(transformers, host.processor)
    if host.normalized:
        fit = {"max_height": size[0], "max_width": size[1]}
        return kind(
            size=fit, do_normalize=True, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD), do_pad=True
        )
    height, width = padded(size)
    return kind(size={"height": height, "width": width}, do_normalize=False, do_pad=False)


def padded(size: tuple[int, int], multiple: int = 32) -> tuple[int, int]:
    """What a batch of images of `size` is padded to."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


@torch.no_grad()
def verify(detector: Detector, folder: Path, size: tuple[int, int]) -> None:
    """Raises UserError unless what plain transformers loads from `folder` sees, answers and names as the detector does, on random pictures."""
    _, host = host_of(detector)
    served = cast(QueryDetector, detector).cpu().eval()
    with quiet():
        try:
            kind = transformers.AutoModelForObjectDetection
            loaded, told = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the config's checks and the model have their own each
            raise UserError(_differs(detector, " ".join(str(error).split())[:160])) from None
    check_loaded(told, loaded, f"--format transformers: {detector.info.kind}")
    if loaded.config.id2label != dict(enumerate(detector.info.classes)):
        raise UserError(_differs(detector, f"its labels are {list(loaded.config.id2label.values())}"))
    for seed in range(DRAWS):
        batch = _pictures(padded(size), seed)
        pixels = normalize(batch) if host.normalized else batch.images.float() / 255
        seen = processor(list(batch.images), do_resize=False, return_tensors="pt")["pixel_values"]
        if not torch.allclose(seen, pixels, atol=TOLERANCE):
            raise UserError(_differs(detector, "its image processor makes other pixels"))
        try:
            theirs = loaded(pixels)
        except Exception as error:  # a backbone made for one size stops in a way of its own
            raise UserError(_differs(detector, " ".join(str(error).split())[:160])) from None
        apart = _apart(served, batch, theirs)
        if apart < TOLERANCE:
            return
    raise UserError(_differs(detector, f"it answers otherwise on the same picture, by up to {apart:.3g}"))


def _pictures(size: tuple[int, int], seed: int) -> Batch:
    pixels = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    sizes = torch.tensor([size])
    return Batch(pixels, sizes, sizes, torch.zeros(1, dtype=torch.long), ("random",))


def _apart(detector: QueryDetector, batch: Batch, theirs: Any) -> float:
    """The largest difference of a logit, or of a box's coordinate in 0..1, in whatever order the queries come."""
    stage = detector.observe(batch, need=Need(predictions=True)).stages[-1]
    logits: Sequence[Tensor] = [stage.logits, *([] if stage.background is None else [stage.background[..., None]])]
    mine = torch.cat([*logits, to_relative(stage.boxes, batch.sizes)], dim=-1)
    other = torch.cat([theirs.logits, theirs.pred_boxes], dim=-1)
    if mine.shape != other.shape:
        return float("inf")
    distances = torch.cdist(mine, other, p=float("inf"))
    return max(float(distances.amin(1).max()), float(distances.amin(2).max()))


def _differs(detector: Detector, reason: str) -> str:
    model, _ = host_of(detector)
    config: Any = model.config
    backbone = getattr(config.backbone_config, "backbone", None) or config.backbone_config.model_type
    return (
        f"--format transformers: plain transformers makes another {detector.info.kind} of {backbone} ({reason}); it freezes batch norms without the "
        "activation that timm keeps inside them, and knows one image size of a timm transformer: ResNets work, and other convolutional ones in rt_detr"
    )
