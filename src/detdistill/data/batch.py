"""Loaders that give batches with their targets, for training and for evaluation. They use torch's DataLoader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from detdistill.data.examples import Example, Examples, Key
from detdistill.data.records import Split
from detdistill.data.transforms import seeded_generator
from detdistill.errors import UserError
from detdistill.recipe import DataConfig
from detdistill.types import Batch, Targets, padded_size


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
    tallest, widest = sizes.amax(0).tolist()
    height, width = padded_size((tallest, widest))
    images = torch.zeros(len(readable), 3, height, width, dtype=readable[0].image.dtype)
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
                yield [(epoch, step, index) for index in indices]
            return
        order = torch.randperm(self.count, generator=seeded_generator(self.seed, epoch, "order")).tolist()
        for step in range(start, self.steps):
            whole_batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(epoch, step, index) for index in whole_batch[self.rank :: self.processes]]


class TrainLoader:
    """Shuffled and augmented batches for training.

    batch_size is over all processes; each rank gets its share of every batch. `steps` is the number of batches per
    epoch. The last incomplete batch is dropped, unless the split is smaller than one batch.
    The order of an epoch depends only on (seed, epoch), the augmentation of an image, with the images that are mixed
    into it, only on (seed, epoch, image id), and the size of a batch only on (seed, epoch, step). Therefore neither the
    number of workers nor a resumed run changes a pixel. The global random state is not used.
    epochs: length of the run, of which `data.close_mosaic` is a share. None: mosaic and mixup are never turned off.
    Raises UserError if the processes can't share the batches, if a range is reversed, and during iteration if an image
    can't be decoded.
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
        epochs: int | None = None,
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
        for name in ("scale", "multiscale"):
            low, high = getattr(config, name)
            if low > high:
                raise UserError(f"data.{name} is {low:g},{high:g}; write the smaller factor first")
        mixed_epochs = None if epochs is None else round(epochs * (1 - config.close_mosaic))
        self.split, self.batch_size = split, batch_size
        self.order = BatchOrder(len(split), batch_size, seed, rank, processes)
        self.steps = self.order.steps
        self.feed = Feed(Examples(split.records, config, seed, mixed_epochs), self.order, workers)

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

    torch gives each worker process one thread. The workers and their cached images live as long as the loader. There
    are not more workers than batches.
    """

    def __init__(self, examples: Examples, order: BatchOrder, workers: int) -> None:
        workers = min(workers, order.steps)
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
