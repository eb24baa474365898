"""Small RT-DETR, RT-DETRv2 and D-FINE detectors for tests, and the forward of transformers as their reference."""

from types import SimpleNamespace

import torch
from torch import nn

from detdistill.detectors.images import normalize
from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.queries.frames import canvas_of
from detdistill.detectors.statistics import IMAGENET
from detdistill.detectors.transformers.d_fine import d_fine
from detdistill.detectors.transformers.rt_detr import rt_detr, rt_detr_v2
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, DetectorOutput, Need, Targets

CLASSES = ("disc", "square", "star")
EVERYTHING = Need(pyramids=frozenset({"neck", "memory"}), predictions=True, queries=True)
BUILDERS = {"rt_detr": rt_detr, "rt_detr_v2": rt_detr_v2, "d_fine": d_fine}
SMALL = {
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 3,
    "num_denoising": 6,
}
NAMES = {"classification": "loss_vfl", "box": "loss_bbox", "giou": "loss_giou"}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def build(
    kind: str,
    strides: tuple[int, ...] = (8, 16, 32),
    backbone: str = "mobilenetv2_035",
    weights: str = "none",
    queries: int = 12,
    channels: int = 32,
    **host: object,
) -> QueryDetector:
    """A small detector with seeded weights. host: fields of the host's config."""
    torch.manual_seed(0)
    config = ModelConfig(
        strides=strides, channels=channels, queries=queries, backbone_weights=weights, score_threshold=0.0
    )
    return BUILDERS[kind](config, backbone, CLASSES, **SMALL | host)


def perturb(detector: QueryDetector, scale: float = 0.2) -> QueryDetector:
    """The detector with random noise on its heads, so that queries, classes and stages have different predictions."""
    host = detector.model.model
    with torch.no_grad():
        heads = [host.enc_score_head, host.enc_bbox_head, host.decoder.class_embed, host.decoder.bbox_embed]
        heads += [host.decoder.pre_bbox_head, host.decoder.lqe_layers] if detector.info.kind == "d_fine" else []
        for weight in nn.ModuleList(heads).parameters():
            weight.add_(torch.randn_like(weight) * scale)
    return detector


def frame_of(batch: Batch) -> torch.Tensor:
    """(height, width) of the padded batch for every image, (B, 2)."""
    return canvas_of(batch.sizes, *batch.images.shape[-2:])


def host_forward(
    detector: QueryDetector, batch: Batch, targets: Targets | None = None, seed: int = 7
) -> SimpleNamespace:
    """The forward of transformers. Labels are relative to the padded batch; `seed` is for the denoising queries."""
    height, width = batch.images.shape[-2:]
    labels = None
    if targets is not None:
        labels = []
        scale = torch.tensor([width, height, width, height])
        for boxes, classes in zip(targets.boxes, targets.labels, strict=True):
            center, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            labels.append({"class_labels": classes, "boxes": torch.cat([center, sides], 1) / scale})
    torch.manual_seed(seed)
    return detector.model(normalize(batch, *IMAGENET), labels=labels)


def observe(
    detector: QueryDetector, batch: Batch, targets: Targets | None = None, need: Need = EVERYTHING, seed: int = 7
) -> DetectorOutput:
    """`detector.observe` with seeded denoising queries."""
    torch.manual_seed(seed)
    return detector.observe(batch, targets, need)


def assert_same_gradients(detector: QueryDetector, batch: Batch, targets: Targets) -> None:
    """The gradients of all losses equal the host's."""
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    host_gradients = torch.autograd.grad(host_forward(detector, batch, targets).loss, parameters)
    gradients = torch.autograd.grad(sum(observe(detector, batch, targets).losses.values()), parameters)
    largest = max(float(gradient.abs().max()) for gradient in host_gradients)
    for gradient, host_gradient in zip(gradients, host_gradients, strict=True):
        # A bias before a batch norm has no effect, so its gradient is rounding error.
        atol = 1e-3 * float(host_gradient.abs().max()) + 1e-6 * largest
        torch.testing.assert_close(gradient, host_gradient, rtol=1e-3, atol=atol)
