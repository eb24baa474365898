"""DETR, Conditional DETR and DAB-DETR at their smallest, and transformers' own forward and losses to hold them against."""

from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.queries.frames import to_relative
from detdistill.detectors.transformers import conditional_detr, dab_detr, detr
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, DetectorOutput, Need, Predictions, Targets

CLASSES = ("disc", "square", "star")
EVERYTHING = Need(pyramids=frozenset({"neck", "memory"}), predictions=True, queries=True)
FAMILIES: dict[str, ModuleType] = {"detr": detr, "conditional_detr": conditional_detr, "dab_detr": dab_detr}
NAMES = {"classification": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}


def build(
    kind: str, backbone: str = "resnet10t", stride: int = 16, weights: str = "none", **host: object
) -> QueryDetector:
    torch.manual_seed(0)
    small = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0}
    config = ModelConfig(strides=(stride,), channels=32, queries=20, backbone_weights=weights, score_threshold=0.0)
    return getattr(FAMILIES[kind], kind)(config, backbone, CLASSES, **small | host)


def heads(detector: QueryDetector) -> list[torch.nn.Module]:
    classify = (
        detector.model.class_embed if detector.info.kind == "dab_detr" else detector.model.class_labels_classifier
    )
    return [classify, detector.model.bbox_predictor]


def stir(detector: QueryDetector) -> QueryDetector:
    """Heads and norms that tell queries, classes and stages apart."""
    with torch.no_grad():
        for module in (*heads(detector), detector.model.model.decoder.layernorm):
            for weight in module.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
    return detector


def host_labels(batch: Batch, targets: Targets) -> list[dict[str, Tensor]]:
    """Relative to each image's valid size."""
    labels = []
    for boxes, classes, (height, width) in zip(targets.boxes, targets.labels, batch.sizes.tolist(), strict=True):
        middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        labels.append(
            {
                "class_labels": classes,
                "boxes": torch.cat([middle, sides], 1) / torch.tensor([width, height, width, height]),
            }
        )
    return labels


def host_forward(detector: QueryDetector, batch: Batch, targets: Targets, **options: object) -> SimpleNamespace:
    """transformers' own forward."""
    inside = valid_mask(batch.sizes, *batch.images.shape[-2:]).long()
    return detector.model(normalize(batch), pixel_mask=inside, labels=host_labels(batch, targets), **options)


def host_loss(
    detector: QueryDetector, stages: tuple[Predictions, ...], batch: Batch, targets: Targets
) -> tuple[Tensor, dict[str, Tensor]]:
    """transformers' own objective, auxiliary losses included, of these stages: the sum and the plain terms."""
    logits = torch.stack([host_logits(stage) for stage in stages])
    boxes = torch.stack([to_relative(stage.boxes, batch.sizes) for stage in stages])
    config = detector.model.config
    before, config.auxiliary_loss = config.auxiliary_loss, True
    labels = host_labels(batch, targets)
    loss, terms, _ = detector.model.loss_function(
        logits[-1], labels, torch.device("cpu"), boxes[-1], config, logits, boxes
    )
    config.auxiliary_loss = before
    return loss, terms


def host_logits(stage: Predictions) -> Tensor:
    return stage.logits if stage.background is None else torch.cat([stage.logits, stage.background[..., None]], -1)


def same_last_stage(detector: QueryDetector, output: DetectorOutput, expected: SimpleNamespace, batch: Batch) -> None:
    """Logits, boxes, states, neck and memory are the host's."""
    last, close = output.stages[-1], {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(host_logits(last), expected.logits, **close)
    torch.testing.assert_close(to_relative(last.boxes, batch.sizes), expected.pred_boxes, **close)
    torch.testing.assert_close(last.embeddings, expected.last_hidden_state, **close)
    (memory,), (neck,) = output.pyramids["memory"].levels, output.pyramids["neck"].levels
    torch.testing.assert_close(memory.flatten(2).transpose(1, 2), expected.encoder_last_hidden_state, **close)
    cells = tuple(-(-side // detector.info.strides[0]) for side in batch.images.shape[-2:])
    assert memory.shape == neck.shape == (2, 32, *cells)


def same_losses(detector: QueryDetector, output: DetectorOutput, batch: Batch, targets: Targets) -> None:
    """Each term of each stage is the host's own of these stages, and the sum its objective."""
    loss, terms = host_loss(detector, output.stages, batch, targets)
    torch.testing.assert_close(sum(output.losses.values()), loss, rtol=1e-5, atol=1e-5)
    weights = {"classification": 1, "box": 5, "giou": 2}
    for name, value in output.losses.items():
        plain, _, stage = name.partition("_")
        theirs = terms["_".join(filter(None, [NAMES[plain], stage]))]
        torch.testing.assert_close(value, weights[plain] * theirs, rtol=1e-5, atol=1e-6)
    assert len(output.losses) == 3 * len(output.stages)


def same_gradients(detector: QueryDetector, batch: Batch, targets: Targets) -> None:
    """Of the last stage's terms, which are all that the host trains without auxiliary losses."""
    parameters = list(detector.parameters())
    expected = torch.autograd.grad(host_forward(detector, batch, targets).loss, parameters)
    losses = detector.observe(batch, targets).losses
    got = torch.autograd.grad(sum(losses[name] for name in NAMES), parameters)
    for ours, theirs in zip(
        got, expected, strict=True
    ):  # the softmax makes a key's bias indifferent: its gradient is rounding
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()) + 2e-5)
