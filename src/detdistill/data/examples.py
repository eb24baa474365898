"""Single training and evaluation images: read, cached, augmented, and joined by mosaic and mixup."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detdistill.data.mixing import Mix, mixup, mosaic
from detdistill.data.records import Record
from detdistill.data.transforms import (
    Sample,
    augment,
    batch_config,
    canvas_size,
    drop_small_boxes,
    fit,
    fitted_size,
    image_tensor,
    make_sample,
    resize_image,
    seeded_generator,
)
from detdistill.errors import UserError
from detdistill.recipe import DataConfig

CACHE = 512 * 2**20  # bytes of decoded images that a loader keeps, in all its workers together

Key = tuple[int, int, int]  # epoch, step in the epoch, index of the record


@dataclass(frozen=True, eq=False)
class Example:
    """One image, ready for a batch.

    image: (3, H, W) uint8; of a data set of the user's own also float in 0..1.
    boxes: (G, 4) xyxy in pixels of the image.
    labels: (G,).
    original: (height, width) of the image file.
    id: the image id of the data set.
    name: the file name. Of several images in one, the names joined by +; `original` and `id` are those of the first.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    original: tuple[int, int]
    id: int
    name: str


@dataclass(eq=False)
class Examples(Dataset):
    """The examples of records, by the key (epoch, step, index).

    The epoch is a part of the key, so that workers can stay alive from one epoch to the next. An image that can't be
    decoded is returned as its UserError. An exception in a worker would be printed as a page of text.

    records: the images.
    config: how they are prepared.
    seed: the augmentation depends on (seed, epoch, image id), and the image size on (seed, epoch, step). None: the
        image is only resized.
    mixed_epochs: number of epochs, from the first, that have mosaic and mixup. None: all.
    budget: bytes that the cache may still grow by.
    cache: decoded images by index.
    """

    records: Sequence[Record]
    config: DataConfig
    seed: int | None
    mixed_epochs: int | None = None
    budget: int = CACHE
    cache: dict[int, tv_tensors.Image] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Example | UserError:
        epoch, step, index = key
        record = self.records[index]
        try:
            sample, indices = self._sample(epoch, step, index)
        except UserError as error:
            return error
        sample = drop_small_boxes(sample)
        image, boxes = sample.image.as_subclass(Tensor), sample.boxes.as_subclass(Tensor)
        name = "+".join(self.records[index].name for index in indices)
        return Example(image, boxes, sample.labels, (record.height, record.width), record.id, name)

    def _sample(self, epoch: int, step: int, index: int) -> tuple[Sample, list[int]]:
        """The image of a key, augmented, and the indices of the records in it."""
        if self.seed is None:
            return self._fitted(index, self.config), [index]
        config = batch_config(self.config, self.seed, epoch, step, "size")
        key = (self.seed, epoch, self.records[index].id)
        mix = Mix()
        if self.mixed_epochs is None or epoch < self.mixed_epochs:
            mix = Mix.draw(config, len(self.records), seeded_generator(*key, "mix"))
        if mix.tiles:
            indices = [index, *mix.tiles]
            tiles = [self._augmented(tile, config, *key, "tile", place) for place, tile in enumerate(indices)]
            sample = mosaic(tiles, canvas_size(config), seeded_generator(*key, "mosaic"))
        else:
            indices = [index]
            sample = self._augmented(index, config, *key)
        if mix.partner is not None:
            indices.append(mix.partner)
            sample = mixup(sample, self._augmented(mix.partner, config, *key, "partner"), mix.ratio)
        return sample, indices

    def _augmented(self, index: int, config: DataConfig, *key: object) -> Sample:
        """One image, augmented by the random numbers of `key`."""
        return augment(self._fitted(index, config), config, seeded_generator(*key))

    def _fitted(self, index: int, config: DataConfig) -> Sample:
        """One image and its objects without crowds. It has the fitted size, unless a random scale follows."""
        record = self.records[index]
        image = self.cache[index] if index in self.cache else self._read(index)
        is_target = ~record.crowd
        sample = make_sample(image, record.boxes[is_target], record.labels[is_target], (record.height, record.width))
        return sample if self.seed is not None and config.scale != (1.0, 1.0) else fit(sample, canvas_size(config))

    def _read(self, index: int) -> tv_tensors.Image:
        """The decoded image. It is resized here if the size is the same in every epoch.

        A random size needs the pixels of the file.
        """
        image = image_tensor(self.records[index].image())
        if self.seed is None or self.config.scale == self.config.multiscale == (1.0, 1.0):
            size = fitted_size((image.shape[-2], image.shape[-1]), canvas_size(self.config))
            image = resize_image(image, size)
        if image.nbytes <= self.budget:
            self.budget -= image.nbytes
            self.cache[index] = image
        return image
