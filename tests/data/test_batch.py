"""Loaders: reproducibility, sharing between processes, padding and errors."""

import pytest
import torch

from detdistill.data import EvalLoader, Split, TrainLoader, open_data, read_images
from detdistill.errors import UserError
from detdistill.recipe import DataConfig

CONFIG = DataConfig(path="shapes:12", image_size=64, scale=(0.6, 1.6), photometric=True)
STRONG = CONFIG.model_copy(update={"mosaic": 0.6, "mixup": 0.4, "multiscale": (0.5, 2.0)})


@pytest.fixture(scope="module")
def split():
    return open_data(CONFIG).split("train")


def are_equal(first, second):
    """True if two pairs of batch and targets are equal."""
    (first_batch, first_targets), (second_batch, second_targets) = first, second
    first_parts, second_parts = first_targets.boxes + first_targets.labels, second_targets.boxes + second_targets.labels
    return (
        first_batch.names == second_batch.names
        and torch.equal(first_batch.images, second_batch.images)
        and torch.equal(first_batch.sizes, second_batch.sizes)
        and torch.equal(first_batch.ids, second_batch.ids)
        and all(torch.equal(a, b) for a, b in zip(first_parts, second_parts, strict=True))
    )


@pytest.mark.parametrize("config", [CONFIG, STRONG], ids=["plain", "strong"])
def test_workers_do_not_change_a_pixel(split, config):
    without_workers = TrainLoader(split, config, batch_size=4, seed=3)
    with_workers = TrainLoader(split, config, batch_size=4, seed=3, workers=2)
    for epoch in (0, 1):
        pairs = list(zip(without_workers.epoch(epoch), with_workers.epoch(epoch), strict=True))
        assert len(pairs) == without_workers.steps == 3
        assert all(are_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("config", [CONFIG, STRONG], ids=["plain", "strong"])
def test_an_epoch_can_start_at_any_step(split, config):
    whole = list(TrainLoader(split, config, batch_size=4, seed=3).epoch(5))
    for workers in (0, 2):
        loader = TrainLoader(split, config, batch_size=4, seed=3, workers=workers)
        for start in range(4):
            rest = list(loader.epoch(5, start))
            assert len(rest) == 3 - start
            assert all(are_equal(*pair) for pair in zip(whole[start:], rest, strict=True))
    with pytest.raises(ValueError, match="start is 4, but an epoch has 3 steps"):
        loader.epoch(5, 4)


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(split):
    first_epoch, _ = next(TrainLoader(split, CONFIG, batch_size=12, seed=3).epoch(0))
    second_epoch, _ = next(TrainLoader(split, CONFIG, batch_size=12, seed=3).epoch(1))
    other_seed, _ = next(TrainLoader(split, CONFIG, batch_size=12, seed=4).epoch(0))
    assert sorted(first_epoch.names) == sorted(second_epoch.names)
    assert first_epoch.names != second_epoch.names
    assert first_epoch.names != other_seed.names
    name = first_epoch.names[0]
    first_size, second_size = [batch.sizes[batch.names.index(name)].tolist() for batch in (first_epoch, second_epoch)]
    assert first_size != second_size


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_not_changed(split, workers):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(TrainLoader(split, STRONG, batch_size=4, seed=3, workers=workers).epoch(0))
    list(EvalLoader(split, CONFIG, batch_size=4, workers=workers))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ranks_share_the_batches_of_one_process(split):
    whole = list(TrainLoader(split, CONFIG, batch_size=4, seed=3).epoch(2))
    ranks = [list(TrainLoader(split, CONFIG, batch_size=4, seed=3, rank=rank, processes=2).epoch(2)) for rank in (0, 1)]
    for (batch, _), (left, _), (right, _) in zip(whole, *ranks, strict=True):
        assert len(left) == len(right) == 2
        assert sorted(left.names + right.names) == sorted(batch.names)
    with pytest.raises(
        UserError, match=r"train\.batch_size is 4, which 3 processes can't share equally; choose a multiple of 3"
    ):
        TrainLoader(split, CONFIG, batch_size=4, seed=3, processes=3)


def test_the_last_incomplete_batch_is_dropped_unless_it_is_the_only_one(split):
    loader = TrainLoader(split, CONFIG, batch_size=5, seed=0)
    assert loader.steps == 2
    assert [len(batch) for batch, _ in loader.epoch(0)] == [5, 5]
    loader = TrainLoader(split, CONFIG, batch_size=50, seed=0)
    assert [len(batch) for batch, _ in loader.epoch(0)] == [12]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_gives_every_image_once(split, processes):
    loaders = [EvalLoader(split, CONFIG, batch_size=4, rank=rank, processes=processes) for rank in range(processes)]
    seen = [[int(id) for batch, _ in loader for id in batch.ids] for loader in loaders]
    assert sorted(id for ids in seen for id in ids) == [record.id for record in split.records]
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]
    if processes == 1:
        assert seen[0] == [record.id for record in split.records]


def test_a_batch_is_padded_with_zeros_to_multiples_of_32(coco_set):
    config = DataConfig(path=str(coco_set()), image_size=(50, 70))
    data = open_data(config)
    ((batch, targets),) = EvalLoader(data.split("train"), config, batch_size=8)
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[35, 70]] * 2
    assert batch.originals.tolist() == [[20, 40]] * 2
    assert batch.images[:, :, 35:].eq(0).all()
    assert batch.images[:, :, :, 70:].eq(0).all()
    assert batch.images[:, :, :35, :70].gt(0).all()
    assert targets.labels[0].tolist() == [1]  # the crowd is not a target
    assert targets.boxes[0].tolist() == [[1.75, 3.5, 19.25, 12.25]]  # multiplied by 70 / 40 and 35 / 20
    assert targets.boxes[1].shape == (0, 4)


def test_the_ratio_of_the_sizes_converts_boxes_to_pixels_of_the_file(split):
    for batch, targets in EvalLoader(split, CONFIG, batch_size=4):
        for size, original, id, boxes in zip(batch.sizes, batch.originals, batch.ids, targets.boxes, strict=True):
            record = next(record for record in split.records if record.id == int(id))
            torch.testing.assert_close(boxes * (original / size).flip(0).repeat(2), record.boxes)


def test_an_older_pass_with_workers_is_refused(split):
    loader = TrainLoader(split, CONFIG, batch_size=2, seed=0, workers=1)
    older = loader.epoch(0)
    next(older)
    newer = loader.epoch(1)
    expected = next(TrainLoader(split, CONFIG, batch_size=2, seed=0).epoch(1))
    assert are_equal(next(newer), expected)
    with pytest.raises(RuntimeError, match="another pass"):
        next(older)


def test_plain_images_can_be_loaded(tmp_path, write_image):
    write_image(tmp_path / "a.png")
    records = read_images([tmp_path], DataConfig())
    ((batch, targets),) = EvalLoader(Split("images", tuple(records)), DataConfig(image_size=64), batch_size=2)
    assert batch.images.shape == (1, 3, 32, 64)
    assert targets.boxes[0].shape == (0, 4)


@pytest.mark.parametrize("name", ["scale", "multiscale"])
def test_a_reversed_range_is_refused_before_the_first_batch(split, name):
    with pytest.raises(UserError, match=rf"data\.{name} is 1\.5,1; write the smaller factor first"):
        TrainLoader(split, DataConfig(**{name: (1.5, 1.0)}), batch_size=4, seed=0)


# Multi-scale batches.


def test_every_rank_has_the_size_of_the_step_and_sizes_are_multiples_of_32(split):
    config = DataConfig(image_size=(64, 96), multiscale=(0.5, 2.0), mosaic=1.0)
    loaders = [TrainLoader(split, config, batch_size=2, seed=1, rank=rank, processes=2) for rank in (0, 1)]
    sizes = []
    for (batch, _), (other, _) in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert batch.images.shape == other.images.shape
        assert batch.sizes.tolist() == other.sizes.tolist() == [list(batch.images.shape[-2:])]  # mosaics fill a canvas
        sizes.append(batch.images.shape[-2:])
    # 96 / 2 to 96 * 2 pixels in steps of 32, and two thirds of them
    assert set(sizes) <= {(32, 64), (64, 96), (96, 128), (96, 160), (128, 192)}
    assert len(set(sizes)) > 1


def test_a_multiscale_image_is_the_file_scaled_to_the_size_of_the_step(coco_set):
    config = DataConfig(path=str(coco_set()), image_size=64, flip=0.0, multiscale=(0.5, 2.0))
    split = open_data(config).split("train")
    seen = set()
    for epoch in range(8):
        ((batch, targets),) = TrainLoader(split, config, batch_size=2, seed=0).epoch(epoch)
        height, width = batch.sizes[0].tolist()
        assert (batch.images.shape[-1], height) == (width, width // 2)  # the files have 40 x 20 pixels
        factor = width / 40
        boxes = targets.boxes[batch.ids.tolist().index(10)]
        torch.testing.assert_close(boxes, factor * torch.tensor([[1.0, 2, 11, 7]]))
        seen.add(width)
    assert seen <= {32, 64, 96, 128}
    assert len(seen) > 2


# The last epochs.


def test_the_last_epochs_have_no_mosaic_and_no_mixup(split):
    config = DataConfig(image_size=64, mosaic=1.0, mixup=1.0, close_mosaic=0.25)
    loader = TrainLoader(split, config, batch_size=12, seed=0, epochs=8)
    joined = [["+" in name for name in next(loader.epoch(epoch))[0].names] for epoch in range(8)]
    assert joined == [[True] * 12] * 6 + [[False] * 12] * 2
    plain = TrainLoader(split, DataConfig(image_size=64), batch_size=12, seed=0)
    assert are_equal(next(loader.epoch(7)), next(plain.epoch(7)))
    never_closed = TrainLoader(split, config, batch_size=12, seed=0)
    assert all("+" in name for name in next(never_closed.epoch(100))[0].names)
