"""Loaders that give batches with their targets, for training and for evaluation. They use torch's DataLoader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from detdistill.data.records import Record, Split
from detdistill.data.transforms import (
    augment,
    canvas_size,
    drop_small_boxes,
    fitted_size,
    image_tensor,
    make_sample,
    resize_image,
    seeded_generator,
)
from detdistill.errors import UserError
from detdistill.recipe import DataConfig
from detdistill.types import Batch, Targets

MULTIPLE = 32  # height and width of a batch are multiples of this
CACHE = 512 * 2**20  # bytes of decoded images that a loader keeps, in all its workers together

Key = tuple[int, int]  # epoch, index of the record


@dataclass(frozen=True, eq=False)
class Example:
    """One image, ready for a batch.

    image: (3, H, W) uint8.
    boxes: (G, 4) xyxy in pixels of the image.
    labels: (G,).
    original: (height, width) of the image file.
    id: the image id of the data set.
    name: the file name.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    original: tuple[int, int]
    id: int
    name: str


@dataclass(eq=False)
class Examples(Dataset):
    """The examples of records, by the key (epoch, index).

    The epoch is a part of the key, so that workers can stay alive from one epoch to the next. An image that can't be
    decoded is returned as its UserError. An exception in a worker would be printed as a page of text.

    records: the images.
    config: how they are prepared.
    seed: the augmentation depends on (seed, epoch, image id). None: the image is only resized.
    budget: bytes that the cache may still grow by.
    cache: decoded images by index.
    """

    records: Sequence[Record]
    config: DataConfig
    seed: int | None
    budget: int = CACHE
    cache: dict[int, tv_tensors.Image] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Example | UserError:
        epoch, index = key
        record = self.records[index]
        try:
            image = self.cache[index] if index in self.cache else self._read(index)
        except UserError as error:
            return error
        original = (record.height, record.width)
        is_target = ~record.crowd
        sample = make_sample(image, record.boxes[is_target], record.labels[is_target], original)
        if self.seed is not None:
            sample = augment(sample, self.config, seeded_generator(self.seed, epoch, record.id))
        sample = drop_small_boxes(sample)
        image, boxes = sample.image.as_subclass(Tensor), sample.boxes.as_subclass(Tensor)
        return Example(image, boxes, sample.labels, original, record.id, record.name)

    def _read(self, index: int) -> tv_tensors.Image:
        """The decoded image. It is resized here if the size is the same in every epoch.

        A random scale needs the pixels of the file.
        """
        image = image_tensor(self.records[index].image())
        if self.seed is None or tuple(self.config.scale) == (1.0, 1.0):
            size = fitted_size((image.shape[-2], image.shape[-1]), canvas_size(self.config))
            image = resize_image(image, size)
        if image.nbytes <= self.budget:
            self.budget -= image.nbytes
            self.cache[index] = image
        return image


def collate(examples: Sequence[Example | UserError]) -> tuple[Batch, Targets] | UserError:
    """One batch, padded with zeros at the right and the bottom to multiples of 32.

    If an example is an error, that error is returned instead.
    """
    readable: list[Example] = []
    for example in examples:
        if isinstance(example, UserError):
            return example
        readable.append(example)
    sizes = torch.tensor([example.image.shape[-2:] for example in readable]).reshape(-1, 2)
    height, width = [-(-int(side) // MULTIPLE) * MULTIPLE for side in sizes.amax(0)]
    images = torch.zeros(len(readable), 3, height, width, dtype=torch.uint8)
    for image, example in zip(images, readable, strict=True):
        image[:, : example.image.shape[-2], : example.image.shape[-1]] = example.image
    originals = torch.tensor([example.original for example in readable])
    ids = torch.tensor([example.id for example in readable])
    batch = Batch(images, sizes, originals, ids, tuple(example.name for example in readable))
    boxes = tuple(example.boxes for example in readable)
    return batch, Targets(boxes, tuple(example.labels for example in readable))


@dataclass
class BatchOrder:
    """The keys of the batches of one epoch.

    count: number of records.
    batch_size: images per batch, over all processes.
    seed: the order is shuffled by (seed, epoch). None: the records are in order, and each rank takes every n-th record.
    rank: of this process, which gets its share of each batch.
    processes: number of processes.
    epoch: the current epoch.
    start: the first step; earlier batches are left out.
    """

    count: int
    batch_size: int
    seed: int | None
    rank: int
    processes: int
    epoch: int = 0
    start: int = 0

    @property
    def steps(self) -> int:
        """Number of batches of the whole epoch."""
        if self.seed is None:
            rank_count = len(range(self.rank, self.count, self.processes))
            return -(-rank_count // max(self.batch_size // self.processes, 1))
        return max(self.count // self.batch_size, 1)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start = self.epoch, self.start
        if self.seed is None:
            rank_indices = range(self.rank, self.count, self.processes)
            rank_batch_size = max(self.batch_size // self.processes, 1)
            for step in range(start, self.steps):
                indices = rank_indices[step * rank_batch_size : (step + 1) * rank_batch_size]
                yield [(epoch, index) for index in indices]
            return
        order = torch.randperm(self.count, generator=seeded_generator(self.seed, epoch, "order")).tolist()
        for step in range(start, self.steps):
            whole_batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(epoch, index) for index in whole_batch[self.rank :: self.processes]]


class TrainLoader:
    """Shuffled and augmented batches for training.

    batch_size is over all processes; each rank gets its share of every batch. `steps` is the number of batches per
    epoch. The last incomplete batch is dropped, unless the split is smaller than one batch.
    The order of an epoch depends only on (seed, epoch), and the augmentation of an image only on (seed, epoch, image
    id). Therefore neither the number of workers nor a resumed run changes a pixel. The global random state is not used.
    Raises UserError if the processes can't share the batches, if data.scale is reversed, and during iteration if an
    image can't be decoded.
    """

    def __init__(
        self,
        split: Split,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size % processes:
            raise UserError(
                f"train.batch_size is {batch_size}, which {processes} processes can't share equally; "
                f"choose a multiple of {processes}"
            )
        if len(split) < processes:
            raise UserError(
                f"split {split.name!r} has {len(split)} images, fewer than the {processes} processes; "
                "use fewer processes or more images"
            )
        low, high = config.scale
        if low > high:
            raise UserError(f"data.scale is {low:g},{high:g}; write the smaller factor first")
        self.split, self.batch_size = split, batch_size
        self.order = BatchOrder(len(split), batch_size, seed, rank, processes)
        self.steps = self.order.steps
        self.feed = Feed(Examples(split.records, config, seed), self.order, workers)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        """The batches of epoch `number` from step `start` on. Earlier batches are not read.

        They are the same as those of the whole epoch. With workers, only one epoch can be iterated at a time: an older
        iterator raises RuntimeError.
        """
        if not 0 <= start <= self.steps:
            raise ValueError(f"start is {start}, but an epoch has {self.steps} steps")
        return self.feed.batches(number, start)


class EvalLoader:
    """Every image once, in order, without augmentation. Crowds are left out of the targets.

    batch_size is over all processes. Rank r of P processes takes the records r, r + P, and so on. `len` is the number
    of batches of this rank.
    """

    def __init__(
        self, split: Split, config: DataConfig, *, batch_size: int, workers: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        self.split, self.batch_size = split, batch_size
        self.order = BatchOrder(len(split), batch_size, None, rank, processes)
        self.feed = Feed(Examples(split.records, config, None), self.order, workers)

    def __len__(self) -> int:
        return self.order.steps

    def __iter__(self) -> Iterator[tuple[Batch, Targets]]:
        return self.feed.batches(0, 0)


class Feed:
    """A DataLoader that does not use the global random state, and that raises the UserError of an image in one line.

    torch gives each worker process one thread. The workers and their cached images live as long as the loader.
    """

    def __init__(self, examples: Examples, order: BatchOrder, workers: int) -> None:
        examples.budget //= max(workers, 1)
        self.order, self.workers, self.passes = order, workers, 0
        self.loader: DataLoader = DataLoader(
            examples,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            # Without this, each pass would draw the seed of its workers from the global generator, and a resumed run
            # would draw once more.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Targets]]:
        """The batches of an epoch from step `start` on."""
        self.passes += 1
        this_pass = self.passes
        self.order.epoch, self.order.start = epoch, start
        for item in self.loader:
            if self.workers and this_pass != self.passes:
                raise RuntimeError("another pass over this loader has begun; with workers, finish one pass at a time")
            if isinstance(item, UserError):
                # `raise item` would make a reference cycle with this frame and its workers; its collection takes 5 s.
                raise UserError(*item.args)
            yield item
