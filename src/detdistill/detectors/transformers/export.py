"""Export a trained detector to transformers, and verify that the exported model gives the same boxes and scores.

The exported model is built from its config by transformers alone, without this package.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from detdistill.detectors.images import normalize
from detdistill.detectors.normalization import statistics_of
from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.registry import DETECTORS, HostRecord, host_records
from detdistill.detectors.statistics import UNCHANGED, PixelStatistics
from detdistill.detectors.timm.examine import examine
from detdistill.detectors.timm.extractor import Fitted
from detdistill.detectors.timm.simple_pyramid import SimplePyramid
from detdistill.detectors.transformers.load import COUNTER, check_loaded, quiet
from detdistill.errors import UserError, one_line
from detdistill.geometry import to_relative
from detdistill.types import Batch, Detector, Need, padded_size, required

TOLERANCE = 1e-3  # for logits, and for boxes in 0..1; frozen norms round differently from other norms
ATTEMPTS = 3  # random images; on one image rounding can change which of two near-equal queries is chosen, not on three


def host_of(detector: Detector) -> tuple[PreTrainedModel, HostRecord]:
    """The model of transformers inside the detector, and its record. Raises UserError if there is none."""
    if not isinstance(detector, QueryDetector) or not isinstance(detector.model, PreTrainedModel):
        heads = ", ".join(name for name, record in DETECTORS.items() if record.host)
        raise UserError(
            f"--format transformers: {detector.info.kind} is not a detector of transformers; these can be exported: "
            f"{heads}"
        )
    return detector.model, required(host_records()[detector.model.config.model_type].host)


def write(detector: Detector, folder: Path, size: tuple[int, int]) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json into `folder`.

    size: (height, width) that images were resized to fit into. Raises UserError if transformers builds another
    architecture from the config.
    """
    model, host = host_of(detector)
    config: Any = deepcopy(model.config)
    _check_backbone(detector, config, size)
    _check_cells(detector, config, size)
    config.id2label = dict(enumerate(detector.info.classes))
    config.label2id = {name: column for column, name in enumerate(detector.info.classes)}
    if hasattr(config, "freeze_backbone_batch_norms"):
        config.freeze_backbone_batch_norms = False  # frozen norms would drop the activation inside timm's norms
    with quiet():
        exported = type(model)(config).eval()
        target, state = exported.state_dict(), _host_state(model)
        unmatched = [name for name in target.keys() ^ state.keys() if not name.endswith(COUNTER)]
        unmatched += [name for name in target.keys() & state.keys() if target[name].shape != state[name].shape]
        if unmatched:
            raise UserError(
                _difference(
                    detector, f"{len(unmatched)} tensors have other names or shapes, such as {min(unmatched)!r}"
                )
            )
        exported.load_state_dict({name: value for name, value in state.items() if name in target}, strict=False)
        exported.save_pretrained(folder)
        _processor(host, size, required(statistics_of(detector))).save_pretrained(folder)


def _check_backbone(detector: Detector, config: Any, size: tuple[int, int]) -> None:
    """Raises UserError if this package does something to the backbone's images or maps that transformers does not."""
    if not any(isinstance(module, Fitted | SimplePyramid) for module in host_of(detector)[0].modules()):
        return
    name = config.backbone_config.backbone
    needs = examine(name)
    problem = f"--format transformers: transformers alone can't run {name} as here ({needs.remark()})"
    if not needs.only_pads():
        raise UserError(f"{problem}; choose a backbone without such a remark in `detdistill list backbones`")
    height, width = padded_size(size)
    if height % needs.unit or width % needs.unit:
        raise UserError(f"{problem} on images of {height} x {width}; train it with such an --image-size")


def _host_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the host's model, without the module around a backbone that pads images."""
    fitted = [f"{name}." for name, module in model.named_modules() if isinstance(module, Fitted)]
    state = {}
    for name, value in model.state_dict().items():
        prefix = next((prefix for prefix in fitted if name.startswith(prefix)), "")
        state[prefix + name.removeprefix(prefix).removeprefix("body.") if prefix else name] = value
    return state


def _check_cells(detector: Detector, config: Any, size: tuple[int, int]) -> None:
    """Raises UserError if queries are chosen among cells, and there are fewer cells than queries.

    This package then uses all cells, but transformers fails.
    """
    are_chosen = not required(detector.info.queries).learned
    queries = getattr(config, "two_stage_num_proposals", config.num_queries)
    height, width = padded_size(size)
    cells = sum((height // stride) * (width // stride) for stride in detector.info.strides)
    if are_chosen and queries > cells:
        raise UserError(
            f"--format transformers: {detector.info.kind} chooses {queries} queries among the {cells} cells of images "
            f"of {height} x {width}, and transformers fails with fewer cells than queries; train it with at most "
            f"--model.queries {cells}, or with a larger --image-size"
        )


def _processor(host: HostRecord, size: tuple[int, int], statistics: PixelStatistics) -> Any:
    """The image processor that prepares images as in training.

    Families that ignore padding get images stretched to the padded size instead, which is a multiple of their strides.
    """
    processor = getattr(transformers, host.processor)
    pixels: dict[str, Any] = {"do_normalize": statistics != UNCHANGED}
    if pixels["do_normalize"]:
        pixels |= {"image_mean": list(statistics.mean), "image_std": list(statistics.std)}
    if host.masks_padding:
        return processor(size={"max_height": size[0], "max_width": size[1]}, do_pad=True, **pixels)
    height, width = padded_size(size)
    return processor(size={"height": height, "width": width}, do_pad=False, **pixels)


@torch.no_grad()
def verify(detector: Detector, folder: Path, size: tuple[int, int]) -> None:
    """Load the exported model with transformers alone, and compare it with the detector on random images.

    Raises UserError if pixels, class names, logits or boxes differ.
    """
    ours = cast(QueryDetector, detector).cpu().eval()
    with quiet():
        try:
            loaded, info = transformers.AutoModelForObjectDetection.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # config checks and models raise many different types
            raise UserError(_difference(detector, one_line(error, 160))) from None
    check_loaded(info, loaded, f"--format transformers: {detector.info.kind}")
    if loaded.config.id2label != dict(enumerate(detector.info.classes)):
        raise UserError(_difference(detector, f"its labels are {list(loaded.config.id2label.values())}"))
    for seed in range(ATTEMPTS):
        batch = _random_image(padded_size(size), seed)
        pixels = normalize(batch, *required(statistics_of(detector)))
        processed = processor(list(batch.images), do_resize=False, return_tensors="pt")["pixel_values"]
        if not torch.allclose(processed, pixels, atol=TOLERANCE):
            raise UserError(_difference(detector, "its image processor gives other pixels"))
        try:
            output = loaded(pixels)
        except Exception as error:  # a backbone with a fixed image size raises an error of its own type
            raise UserError(_difference(detector, one_line(error, 160))) from None
        largest = _largest_difference(ours, batch, output)
        if largest < TOLERANCE:
            return
    raise UserError(_difference(detector, f"its predictions for the same image differ by up to {largest:.3g}"))


def _random_image(size: tuple[int, int], seed: int) -> Batch:
    """A batch of one random image of this (height, width)."""
    pixels = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    sizes = torch.tensor([size])
    return Batch(pixels, sizes, sizes, torch.zeros(1, dtype=torch.long), ("random",))


def _largest_difference(detector: QueryDetector, batch: Batch, output: Any) -> float:
    """The largest difference of a logit, or of a box coordinate in 0..1. The order of the queries does not matter."""
    stage = detector.observe(batch, need=Need(predictions=True)).stages[-1]
    parts = [stage.logits]
    if stage.background is not None:
        parts.append(stage.background[..., None])
    parts.append(to_relative(stage.boxes, batch.sizes))
    ours = torch.cat(parts, dim=-1)  # (1, Q, K + 4 or K + 5)
    exported = torch.cat([output.logits, output.pred_boxes], dim=-1)
    if ours.shape != exported.shape:
        return float("inf")
    distances = torch.cdist(ours, exported, p=float("inf"))  # (1, Q, Q)
    return max(float(distances.amin(1).max()), float(distances.amin(2).max()))


def _difference(detector: Detector, reason: str) -> str:
    """The message that the exported model would differ from the detector."""
    model, _ = host_of(detector)
    config: Any = model.config
    backbone = getattr(config.backbone_config, "backbone", None) or config.backbone_config.model_type
    return (
        f"--format transformers: transformers alone builds a different {detector.info.kind} with {backbone} "
        f"({reason}); it drops the activation inside timm's batch norms, and supports one image size of a timm "
        "transformer: use a ResNet, or with rt_detr any convolutional backbone"
    )
