"""Small DETR, Conditional DETR and DAB-DETR detectors for tests, and their reference in transformers."""

from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.statistics import IMAGENET
from detdistill.detectors.transformers import conditional_detr, dab_detr, detr
from detdistill.geometry import to_relative
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, DetectorOutput, Need, Predictions, Targets

CLASSES = ("disc", "square", "star")
EVERYTHING = Need(pyramids=frozenset({"neck", "memory"}), predictions=True, queries=True)
FAMILIES: dict[str, ModuleType] = {"detr": detr, "conditional_detr": conditional_detr, "dab_detr": dab_detr}
CLASS_WEIGHTS = {"detr": 1, "conditional_detr": 2, "dab_detr": 1}  # in the loss, as published; the host has 1
NAMES = {"classification": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}


def build(
    kind: str, backbone: str = "resnet10t", stride: int = 16, weights: str = "none", **host: object
) -> QueryDetector:
    """A small detector with seeded weights. host: fields of the host's config."""
    torch.manual_seed(0)
    small = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0}
    config = ModelConfig(strides=(stride,), channels=32, queries=20, backbone_weights=weights, score_threshold=0.0)
    return getattr(FAMILIES[kind], kind)(config, backbone, CLASSES, **small | host)


def heads(detector: QueryDetector) -> list[torch.nn.Module]:
    """The class head and the box head."""
    is_dab = detector.info.kind == "dab_detr"
    class_head = detector.model.class_embed if is_dab else detector.model.class_labels_classifier
    return [class_head, detector.model.bbox_predictor]


def perturb(detector: QueryDetector) -> QueryDetector:
    """The detector with random noise on heads and norm, so that queries, classes and stages differ."""
    with torch.no_grad():
        for module in (*heads(detector), detector.model.model.decoder.layernorm):
            for weight in module.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
    return detector


def host_labels(batch: Batch, targets: Targets) -> list[dict[str, Tensor]]:
    """The labels of transformers, boxes relative to the valid size of each image."""
    labels = []
    for boxes, classes, (height, width) in zip(targets.boxes, targets.labels, batch.sizes.tolist(), strict=True):
        center, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        scale = torch.tensor([width, height, width, height])
        labels.append({"class_labels": classes, "boxes": torch.cat([center, sides], 1) / scale})
    return labels


def host_forward(detector: QueryDetector, batch: Batch, targets: Targets, **options: object) -> SimpleNamespace:
    """The forward of transformers."""
    inside = valid_mask(batch.sizes, *batch.images.shape[-2:]).long()
    return detector.model(normalize(batch, *IMAGENET), pixel_mask=inside, labels=host_labels(batch, targets), **options)


def host_loss(
    detector: QueryDetector, stages: tuple[Predictions, ...], batch: Batch, targets: Targets
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of transformers for these stages, with auxiliary losses: the weighted sum, and the plain terms.

    The sum has the published weight of the class terms.
    """
    logits = torch.stack([host_logits(stage) for stage in stages])
    boxes = torch.stack([to_relative(stage.boxes, batch.sizes) for stage in stages])
    config = detector.model.config
    before, config.auxiliary_loss = config.auxiliary_loss, True
    labels = host_labels(batch, targets)
    loss, terms, _ = detector.model.loss_function(
        logits[-1], labels, torch.device("cpu"), boxes[-1], config, logits, boxes
    )
    config.auxiliary_loss = before
    return published_loss(detector, loss, terms), terms


def published_loss(detector: QueryDetector, loss: Tensor, terms: dict[str, Tensor]) -> Tensor:
    """The objective of transformers with the published weight of the class terms. terms: the plain terms."""
    class_terms = [term for name, term in terms.items() if name.startswith("loss_ce")]
    return loss + (CLASS_WEIGHTS[detector.info.kind] - 1) * torch.stack(class_terms).sum()


def host_logits(stage: Predictions) -> Tensor:
    """All class columns of the host, with `no object` last if there is a background."""
    return stage.logits if stage.background is None else torch.cat([stage.logits, stage.background[..., None]], -1)


def assert_same_last_stage(
    detector: QueryDetector, output: DetectorOutput, expected: SimpleNamespace, batch: Batch
) -> None:
    """Logits, boxes, states and memory equal the host's."""
    last, close = output.stages[-1], {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(host_logits(last), expected.logits, **close)
    torch.testing.assert_close(to_relative(last.boxes, batch.sizes), expected.pred_boxes, **close)
    torch.testing.assert_close(last.embeddings, expected.last_hidden_state, **close)
    (memory,), (neck,) = output.pyramids["memory"].levels, output.pyramids["neck"].levels
    torch.testing.assert_close(memory.flatten(2).transpose(1, 2), expected.encoder_last_hidden_state, **close)
    cells = tuple(-(-side // detector.info.strides[0]) for side in batch.images.shape[-2:])
    assert memory.shape == neck.shape == (2, 32, *cells)


def assert_same_losses(detector: QueryDetector, output: DetectorOutput, batch: Batch, targets: Targets) -> None:
    """Each term of each stage, and their sum, equals the host's loss of these stages."""
    loss, terms = host_loss(detector, output.stages, batch, targets)
    torch.testing.assert_close(sum(output.losses.values()), loss, rtol=1e-5, atol=1e-5)
    weights = {"classification": CLASS_WEIGHTS[detector.info.kind], "box": 5, "giou": 2}
    for name, value in output.losses.items():
        plain, _, stage = name.partition("_")
        host_term = terms["_".join(filter(None, [NAMES[plain], stage]))]
        torch.testing.assert_close(value, weights[plain] * host_term, rtol=1e-5, atol=1e-6)
    assert len(output.losses) == 3 * len(output.stages)


def assert_same_gradients(detector: QueryDetector, batch: Batch, targets: Targets) -> None:
    """The gradients of the last stage's terms equal the host's, which trains only these without auxiliary losses."""
    parameters = list(detector.parameters())
    host = host_forward(detector, batch, targets)
    host_gradients = torch.autograd.grad(published_loss(detector, host.loss, host.loss_dict), parameters)
    losses = detector.observe(batch, targets).losses
    gradients = torch.autograd.grad(sum(losses[name] for name in NAMES), parameters)
    for gradient, host_gradient in zip(gradients, host_gradients, strict=True):
        # The bias of a key has no effect on a softmax, so its gradient is rounding error.
        atol = 1e-4 * float(host_gradient.abs().max()) + 2e-5
        torch.testing.assert_close(gradient, host_gradient, rtol=1e-3, atol=atol)
