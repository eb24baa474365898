"""Does a training step fit into the memory of the GPU? Tried with the largest batch that the data can give."""

from collections.abc import Sequence

import torch
from torch import nn

from detdistill.data.records import Record
from detdistill.data.transforms import largest_canvas
from detdistill.engine.device import open_accelerator, peak_memory, reset_peak_memory
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import freeze
from detdistill.engine.micro import Buffers
from detdistill.engine.step import Step
from detdistill.recipe import DataConfig, TrainConfig
from detdistill.types import Batch, Detector, Targets, TrainState

SHARE = 0.9  # of the memory that is free: later batches may need a little more


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process has or can get."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def crowded_batch(records: Sequence[Record], config: DataConfig, count: int) -> tuple[Batch, Targets]:
    """`count` images of noise at the largest size of training, with the objects of the records that have most."""
    height, width = largest_canvas(config)
    most = sorted(records, key=lambda record: -len(record.labels))[:count]
    boxes, labels = [], []
    for record in most:
        factor = torch.tensor([width / record.width, height / record.height]).repeat(2)
        boxes.append((record.boxes * factor)[~record.crowd])
        labels.append(record.labels[~record.crowd])
    sizes = torch.tensor([[height, width]] * len(most))
    pixels = torch.randint(0, 256, (len(most), 3, height, width), generator=torch.Generator(), dtype=torch.uint8)
    ids = torch.tensor([record.id for record in most])
    names = tuple(record.name for record in most)
    return Batch(pixels, sizes, sizes, ids, names), Targets(tuple(boxes), tuple(labels))


def step_fits(
    distillation: Distillation,
    teacher: Detector | None,
    batch: Batch,
    targets: Targets,
    config: TrainConfig,
    available: int,
) -> bool:
    """True if a training step needs at most SHARE of `available` bytes. Weights and buffers stay as they are.

    The gradients of one step are computed. What the optimizer and the moving average will keep is added.
    """
    accelerator = open_accelerator(config)
    device = accelerator.device
    distillation.to(device).train()
    if teacher is not None:
        freeze(teacher, device).eval()
    buffers = Buffers(list(distillation.buffers()))
    reset_peak_memory(device)
    try:
        step = Step(distillation, distillation, teacher, accelerator, config)
        step.backward(batch.to(device), targets.to(device), TrainState(0, 1), measure=False)
        return (peak_memory(device) or 0) + kept_bytes(distillation, config) <= SHARE * available
    except torch.OutOfMemoryError:
        return False
    finally:
        distillation.zero_grad()
        buffers.restore()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def kept_bytes(distillation: nn.Module, config: TrainConfig) -> int:
    """Bytes that the optimizer keeps (two numbers per weight for AdamW, one for SGD), and the moving average (one)."""
    numbers = (2 if config.optimizer == "adamw" else 1) + (config.ema is not None)
    trained = [parameter for parameter in distillation.parameters() if parameter.requires_grad]
    return numbers * sum(parameter.numel() * parameter.element_size() for parameter in trained)
