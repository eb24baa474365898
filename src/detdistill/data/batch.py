"""Loaders: what the engine and the evaluation iterate over, batches with their targets. torch's DataLoader beneath."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from detdistill.data.records import Record, Split
from detdistill.data.transforms import augment, canvas, fitted, kept, pixels, resize_image, seeded, view
from detdistill.errors import UserError
from detdistill.recipe import DataConfig
from detdistill.types import Batch, Targets

MULTIPLE = 32  # sides of a batch
CACHE = 512 * 2**20  # bytes of decoded images that a loader keeps, over all its workers

Key = tuple[int, int]  # epoch, index of the record


@dataclass(frozen=True, eq=False)
class Example:
    """One image ready for a batch; boxes (G, 4) in its pixels; original: (height, width) of the file."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    original: tuple[int, int]
    id: int
    name: str


@dataclass(eq=False)
class Examples(Dataset):
    """Records as examples, by (epoch, index): an epoch is part of the key, so that workers live on from one to the next.

    seed: augmentation comes from (seed, epoch, image id); None: the image is only fitted. budget: bytes of images to keep. An image
    that can't be decoded comes back as its UserError, since an exception would leave a worker as a page of text.
    """

    records: Sequence[Record]
    config: DataConfig
    seed: int | None
    budget: int = CACHE
    kept: dict[int, tv_tensors.Image] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Example | UserError:
        epoch, index = key
        record = self.records[index]
        try:
            image = self.kept[index] if index in self.kept else self._read(index)
        except UserError as error:
            return error
        wanted = ~record.crowd
        shown = view(image, record.boxes[wanted], record.labels[wanted], (record.height, record.width))
        if self.seed is not None:
            shown = augment(shown, self.config, seeded(self.seed, epoch, record.id))
        shown = kept(shown)
        boxes = shown.boxes.as_subclass(Tensor)
        return Example(
            shown.image.as_subclass(Tensor), boxes, shown.labels, (record.height, record.width), record.id, record.name
        )

    def _read(self, index: int) -> tv_tensors.Image:
        """The image, fitted already where every epoch fits it alike; a random scale begins with the file's own pixels."""
        image = pixels(self.records[index].image())
        if self.seed is None or tuple(self.config.scale) == (1.0, 1.0):
            image = resize_image(image, fitted((image.shape[-2], image.shape[-1]), canvas(self.config)))
        if image.nbytes <= self.budget:
            self.budget -= image.nbytes
            self.kept[index] = image
        return image


def collate(examples: Sequence[Example | UserError]) -> tuple[Batch, Targets] | UserError:
    """One batch, padded with zeros at the right and the bottom to multiples of 32; or the error of one that can't be read."""
    sound: list[Example] = []
    for example in examples:
        if isinstance(example, UserError):
            return example
        sound.append(example)
    sizes = torch.tensor([example.image.shape[-2:] for example in sound]).reshape(-1, 2)
    height, width = (-(-int(side) // MULTIPLE) * MULTIPLE for side in sizes.amax(0))
    images = torch.zeros(len(sound), 3, height, width, dtype=torch.uint8)
    for place, example in zip(images, sound, strict=True):
        place[:, : example.image.shape[-2], : example.image.shape[-1]] = example.image
    originals = torch.tensor([example.original for example in sound])
    batch = Batch(
        images,
        sizes,
        originals,
        torch.tensor([example.id for example in sound]),
        tuple(example.name for example in sound),
    )
    return batch, Targets(tuple(example.boxes for example in sound), tuple(example.labels for example in sound))


@dataclass
class Order:
    """The batches of one epoch from step `start`, as keys: shuffled by (seed, epoch) where there is a seed, this rank's share of each."""

    count: int
    batch_size: int
    seed: int | None
    rank: int
    processes: int
    epoch: int = 0
    start: int = 0

    @property
    def steps(self) -> int:
        if self.seed is None:
            mine = len(range(self.rank, self.count, self.processes))
            return -(-mine // max(self.batch_size // self.processes, 1))
        return max(self.count // self.batch_size, 1)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start = self.epoch, self.start
        if self.seed is None:
            mine, share = range(self.rank, self.count, self.processes), max(self.batch_size // self.processes, 1)
            for step in range(start, self.steps):
                yield [(epoch, index) for index in mine[step * share : (step + 1) * share]]
            return
        order = torch.randperm(self.count, generator=seeded(self.seed, epoch, "order")).tolist()
        for step in range(start, self.steps):
            whole = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(epoch, index) for index in whole[self.rank :: self.processes]]


class TrainLoader:
    """Shuffled, augmented batches. `steps`: batches an epoch; the last incomplete one is dropped unless the split is smaller than one.

    batch_size is over all processes; each rank gets its share of every batch. The order of an epoch comes from (seed, epoch) and an
    image's augmentation from (seed, epoch, image id) alone, so that neither workers nor a resumed run change a pixel. The global
    random state is left alone. Raises UserError for a batch size that the processes can't share, and while iterating for an
    image that can't be decoded.
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
                f"train.batch_size {batch_size} is over all {processes} processes, which can't share it; give a multiple of {processes}"
            )
        if len(split) < processes:
            raise UserError(f"split {split.name!r} has {len(split)} images for {processes} processes; use fewer")
        if config.scale[0] > config.scale[1]:
            raise UserError(f"data.scale is {config.scale[0]:g} to {config.scale[1]:g}; give the smaller factor first")
        self.split, self.batch_size = split, batch_size
        self.order = Order(len(split), batch_size, seed, rank, processes)
        self.steps = self.order.steps
        self.feed = Feed(Examples(split.records, config, seed), self.order, workers)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        """The batches of epoch `number` from step `start` on: what the whole epoch gives from there. Those before are not read.

        With workers one epoch is open at a time; an older one that is asked for more raises RuntimeError.
        """
        if not 0 <= start <= self.steps:
            raise ValueError(f"step {start} of an epoch of {self.steps}")
        return self.feed.batches(number, start)


class EvalLoader:
    """Every image once, in order and not augmented; rank r of P takes records r, r + P, ... Crowds are left out of the targets.

    batch_size is over all processes. `len` is the number of this rank's batches.
    """

    def __init__(
        self, split: Split, config: DataConfig, *, batch_size: int, workers: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        self.split, self.batch_size = split, batch_size
        self.order = Order(len(split), batch_size, None, rank, processes)
        self.feed = Feed(Examples(split.records, config, None), self.order, workers)

    def __len__(self) -> int:
        return self.order.steps

    def __iter__(self) -> Iterator[tuple[Batch, Targets]]:
        return self.feed.batches(0, 0)


class Feed:
    """A DataLoader that leaves the global random state alone and raises an image's UserError as it is, in one line.

    torch gives each worker process one thread. Workers live as long as the loader, and with them the images they keep.
    """

    def __init__(self, examples: Examples, order: Order, workers: int) -> None:
        examples.budget //= max(workers, 1)
        self.order, self.workers, self.turn = order, workers, 0
        self.loader: DataLoader = DataLoader(
            examples,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # or a pass would draw its workers' seed from the global one, and a resumed run one more
        )

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Targets]]:
        self.turn += 1
        mine = self.turn
        self.order.epoch, self.order.start = epoch, start
        for item in self.loader:
            if self.workers and mine != self.turn:
                raise RuntimeError("another pass over this loader has begun; with workers one is open at a time")
            if isinstance(item, UserError):
                raise UserError(
                    *item.args
                )  # `raise item` would tie this frame and its workers into a cycle, and collecting that takes 5 s
            yield item
