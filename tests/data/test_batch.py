import numpy as np
import pytest
import torch

from detdistill.data import EvalLoader, Split, TrainLoader, open_data, read_images
from detdistill.errors import UserError
from detdistill.recipe import DataConfig

CONFIG = DataConfig(path="shapes:12", image_size=64, scale=(0.6, 1.6), photometric=True)


@pytest.fixture(scope="module")
def split():
    return open_data(CONFIG).split("train")


def same(one, other):
    (batch, targets), (again, goals) = one, other
    return (
        batch.names == again.names
        and torch.equal(batch.images, again.images)
        and torch.equal(batch.sizes, again.sizes)
        and torch.equal(batch.ids, again.ids)
        and all(
            torch.equal(a, b) for a, b in zip(targets.boxes + targets.labels, goals.boxes + goals.labels, strict=True)
        )
    )


def test_workers_do_not_change_a_pixel(split):
    alone = TrainLoader(split, CONFIG, batch_size=4, seed=3)
    helped = TrainLoader(split, CONFIG, batch_size=4, seed=3, workers=2)
    for epoch in (0, 1):
        pairs = list(zip(alone.epoch(epoch), helped.epoch(epoch), strict=True))
        assert len(pairs) == alone.steps == 3
        assert all(same(*pair) for pair in pairs)


def test_an_epoch_can_be_entered_at_any_step(split):
    whole = list(TrainLoader(split, CONFIG, batch_size=4, seed=3).epoch(5))
    for workers in (0, 2):
        loader = TrainLoader(split, CONFIG, batch_size=4, seed=3, workers=workers)
        for start in range(4):
            rest = list(loader.epoch(5, start))
            assert len(rest) == 3 - start
            assert all(same(*pair) for pair in zip(whole[start:], rest, strict=True))
    with pytest.raises(ValueError, match="step 4 of an epoch of 3"):
        loader.epoch(5, 4)


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(split):
    first, second = (next(TrainLoader(split, CONFIG, batch_size=12, seed=3).epoch(epoch)) for epoch in (0, 1))
    other = next(TrainLoader(split, CONFIG, batch_size=12, seed=4).epoch(0))
    assert sorted(first[0].names) == sorted(second[0].names)
    assert first[0].names != second[0].names
    assert first[0].names != other[0].names
    name = first[0].names[0]
    shown = [batch.sizes[batch.names.index(name)].tolist() for batch, _ in (first, second, other)]
    assert shown[0] != shown[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_alone(split, workers):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(TrainLoader(split, CONFIG, batch_size=4, seed=3, workers=workers).epoch(0))
    list(EvalLoader(split, CONFIG, batch_size=4, workers=workers))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ranks_share_every_batch_of_one_process(split):
    whole = list(TrainLoader(split, CONFIG, batch_size=4, seed=3).epoch(2))
    ranks = [list(TrainLoader(split, CONFIG, batch_size=4, seed=3, rank=rank, processes=2).epoch(2)) for rank in (0, 1)]
    for (batch, _), (left, _), (right, _) in zip(whole, *ranks, strict=True):
        assert len(left) == len(right) == 2
        assert sorted(left.names + right.names) == sorted(batch.names)
    with pytest.raises(UserError, match="multiple of 3"):
        TrainLoader(split, CONFIG, batch_size=4, seed=3, processes=3)


def test_the_last_incomplete_batch_is_dropped_unless_it_is_the_only_one(split):
    loader = TrainLoader(split, CONFIG, batch_size=5, seed=0)
    assert loader.steps == 2
    assert [len(batch) for batch, _ in loader.epoch(0)] == [5, 5]
    loader = TrainLoader(split, CONFIG, batch_size=50, seed=0)
    assert [len(batch) for batch, _ in loader.epoch(0)] == [12]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_shows_every_image_once(split, processes):
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
    assert targets.labels[0].tolist() == [1]  # the crowd is no target
    assert targets.boxes[0].tolist() == [[1.75, 3.5, 19.25, 12.25]]  # times 70 / 40 and 35 / 20
    assert targets.boxes[1].shape == (0, 4)


def test_boxes_go_back_to_the_file_by_the_ratio_of_sizes(split):
    for batch, targets in EvalLoader(split, CONFIG, batch_size=4):
        for size, original, id, boxes in zip(batch.sizes, batch.originals, batch.ids, targets.boxes, strict=True):
            record = next(record for record in split.records if record.id == int(id))
            torch.testing.assert_close(boxes * (original / size).flip(0).repeat(2), record.boxes)


def test_images_are_kept_within_the_budget(split):
    config = DataConfig(image_size=64)
    examples = TrainLoader(split, config, batch_size=4, seed=0).feed.loader.dataset
    examples.budget = 3 * 64 * 51 * 5  # five of twelve
    first = [examples[(0, index)].image.clone() for index in range(12)]
    assert len(examples.kept) == 5
    assert all(torch.equal(examples[(0, index)].image, image) for index, image in enumerate(first))


def test_an_older_pass_with_workers_is_refused(split):
    loader = TrainLoader(split, CONFIG, batch_size=2, seed=0, workers=1)
    older = loader.epoch(0)
    next(older)
    newer = loader.epoch(1)
    expected = next(TrainLoader(split, CONFIG, batch_size=2, seed=0).epoch(1))
    assert same(next(newer), expected)
    with pytest.raises(RuntimeError, match="another pass"):
        next(older)


def test_images_to_predict_on_are_a_split(tmp_path, picture):
    picture(tmp_path / "a.png")
    records = read_images([tmp_path], DataConfig())
    ((batch, targets),) = EvalLoader(Split("images", tuple(records)), DataConfig(image_size=64), batch_size=2)
    assert batch.images.shape == (1, 3, 32, 64)
    assert targets.boxes[0].shape == (0, 4)


def test_a_backward_range_of_scales_is_told_before_the_first_batch(split):
    with pytest.raises(UserError, match=r"data\.scale is 1\.5 to 1; give the smaller factor first"):
        TrainLoader(split, DataConfig(scale=(1.5, 1.0)), batch_size=4, seed=0)


def test_take_spreads_over_the_split(split):
    assert [record.id for record in split.take(4).records] == [1, 4, 7, 10]
    assert len(split.take(99)) == 12
    truth = split.take(2).ground_truth()
    assert len(truth["images"]) == 2
    assert {annotation["image_id"] for annotation in truth["annotations"]} <= {1, 7}
    assert np.isfinite([annotation["area"] for annotation in truth["annotations"]]).all()
