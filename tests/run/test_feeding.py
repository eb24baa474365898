"""The batch that is measured, and the time of reading."""

from itertools import count

from detdistill.data import open_data
from detdistill.data.examples import CACHE
from detdistill.run.feeding import feed

from .recipes import small_recipe


def test_the_batch_is_one_of_the_training_images() -> None:
    recipe = small_recipe()
    fed = feed(recipe, open_data(recipe.data), 6, lambda ticks=count(): float(next(ticks)))
    assert fed.batch.images.shape == (4, 3, 64, 64)
    assert set(fed.batch.names) <= {record.name for record in open_data(recipe.data).split("train").records}
    assert (fed.loading.first, fed.loading.again, fed.loading.workers) == (1.0, 1.0, 0)
    assert fed.loading.cached == 1.0


def test_of_many_images_a_share_is_cached(monkeypatch) -> None:
    recipe = small_recipe(data={"path": "shapes:40", "scale": [0.5, 1.0]})  # the cache holds whole images
    monkeypatch.setattr("detdistill.run.feeding.CACHE", 10 * 3 * 128 * 160)
    fed = feed(recipe, open_data(recipe.data), 6, lambda: 0.0)
    assert fed.loading.cached == 0.25
    assert CACHE > 10 * 3 * 128 * 160


def test_without_data_the_images_are_built_in_and_take_no_time() -> None:
    fed = feed(small_recipe(), None, 2, lambda: 0.0)
    assert fed.batch.images.shape == (4, 3, 64, 64)
    assert any(len(labels) for labels in fed.targets.labels)
    assert fed.loading.first == 0.0
    assert all(labels.lt(2).all() for labels in fed.targets.labels)
