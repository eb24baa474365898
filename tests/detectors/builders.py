"""Tiny detectors, batches and targets for tests."""

import torch
from torchvision.models.detection import FasterRCNN

from detdistill.detectors.build import build
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, Detector, Targets

CLASSES = ("disc", "square", "cross")
DENSE = ("retinanet", "fcos", "atss", "gfl")
STRIDES = {
    "faster_rcnn": (4, 8, 16, 32),
    "mask_rcnn": (4, 8, 16, 32),
    "detr": (32,),
    "conditional_detr": (32,),
    "dab_detr": (32,),
}
SETS = ("detr", "conditional_detr", "deformable_detr", "dab_detr", "rt_detr", "rt_detr_v2", "d_fine", "adamixer")


def tiny(
    head: str,
    seed: int = 0,
    channels: int = 32,
    tower_depth: int = 2,
    backbone: str = "mobilenetv2_035",
    **options: object,
) -> Detector:
    """A small detector with random weights. options: fields of ModelConfig."""
    torch.manual_seed(seed)
    values = {
        "name": f"{head}:{backbone}",
        "strides": STRIDES.get(head, (8, 16, 32)),
        "queries": 12,
        "backbone_weights": "none",
    }
    if head in SETS:
        values |= {"decoder_layers": 2} | ({} if head == "adamixer" else {"encoder_layers": 1})
    config = ModelConfig.model_validate(values | {"channels": channels, "tower_depth": tower_depth} | options)
    return build(config, CLASSES)


def shake(detector: Detector, scale: float = 3.0) -> Detector:
    """The same detector with changed weights in its head, so that its predictions differ from each other.

    A fresh dense head predicts a score of 0.01 everywhere: its weights are scaled and its scores moved to about 0.5.
    Fresh queries predict equal boxes: noise is added to their predictors.
    """
    query_predictors = ("class_embed", "bbox_embed", "bbox_predictor", "class_labels_classifier", "enc_score_head")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():  # type: ignore[attr-defined]
            if "head" in name and parameter.ndim == 4:
                parameter.mul_(scale)
            if name.endswith(("classifier.bias", "cls_logits.bias")):
                parameter.zero_()
            if any(part in name for part in query_predictors):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return detector


def scene(height: int = 64, width: int = 96, objects: bool = True, seed: int = 0) -> tuple[Batch, Targets]:
    """Two images and their targets. height, width: of the padded batch. objects: False removes all objects.

    The first image has three objects. The second image has none, and is smaller than the padded batch.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[64, 96], [50, 70]])
    images = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    for image, (h, w) in zip(images, sizes.tolist(), strict=True):
        image[:, :h, :w] = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[6.0, 8, 40, 44], [30, 10, 90, 60], [50, 40, 62, 52]])
    labels = torch.tensor([0, 2, 1])
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    first = (boxes, labels) if objects else nothing
    batch = Batch(images, sizes, sizes.clone(), torch.tensor([1, 2]), ("first.png", "second.png"))
    return batch, Targets((first[0], nothing[0]), (first[1], nothing[1]))


def make_batch(height: int = 64, width: int = 96, second: tuple[int, int] = (48, 64)) -> Batch:
    """Two random images, one of 64 x 96 and one of the size `second`, padded with zeros to (height, width)."""
    rows, columns = second
    images = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images[0, :, :64, :96] = pixels[0]
    images[1, :, :rows, :columns] = pixels[1, :, :rows, :columns]
    sizes = torch.tensor([[64, 96], second])
    return Batch(images, sizes, sizes, torch.arange(2), ("a", "b"))


def make_targets(empty: bool = False) -> Targets:
    """Targets for `make_batch`: two objects in the first image and one in the second, of three classes. Or none."""
    if empty:
        return Targets((torch.zeros(0, 4), torch.zeros(0, 4)), (torch.zeros(0, dtype=torch.long),) * 2)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [50.0, 8.0, 90.0, 30.0], [10.0, 10.0, 60.0, 40.0]])
    return Targets((boxes[:2], boxes[2:]), (torch.tensor([0, 2]), torch.tensor([1])))


def spread_scores(model: FasterRCNN) -> None:
    """Change a fresh two-stage model of torchvision, in place, so that its scores differ by more than rounding.

    Its batch norms get the statistics of an image of noise, and its predictors larger weights. Else all boxes have the
    same score, and which of two overlapping boxes is kept is decided by chance.
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train().backbone(torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for layer in (model.rpn.head.cls_logits, model.roi_heads.box_predictor.cls_score):
        torch.nn.init.normal_(layer.weight)
