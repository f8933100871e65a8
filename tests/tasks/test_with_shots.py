"""A source with other shots is the source that its factory makes with them, and leaves the first as it was."""

import numpy as np
import polars as pl
import pytest
import torch

from kshot import objectives, sources, tasks
from kshot.data import ArrayDataset
from kshot.tasks import ClassTasks, GroupTasks
from kshot.types import tree_leaves

RANDOM = np.random.default_rng(0)
ROWS = {s: {f"{s} {c}": np.arange(12 * c, 12 * c + 12) for c in own}
        for s, own in (("train", range(4)), ("val", range(4, 8)), ("test", range(8, 12)))}  # fmt: skip


def classes(**options):
    images = np.random.default_rng(0).integers(0, 256, (144, 1, 4, 4), dtype=np.uint8)
    return ClassTasks(images, ROWS, **{"ways": 2, "queries": 3, "shots": 1} | options)


def groups(**options):
    examples = ArrayDataset((np.arange(288.0).reshape(144, 2), np.arange(144.0)[:, None]))
    return GroupTasks(examples, ROWS, **{"objective": objectives.mse, "queries": 3, "shots": 1} | options)


def mixed(**options):
    return sources.mixture({"a": sources.sinusoids(**options), "b": sources.sinusoids(seed=1, **options)})


def same(one, other, split="test"):
    pairs = zip(tree_leaves(one.stack(split, range(3))), tree_leaves(other.stack(split, range(3))))
    return all(torch.equal(*pair) for pair in pairs) and one.describe() == other.describe()


@pytest.mark.parametrize(
    "make", [classes, groups, mixed, sources.sinusoids, sources.gaussian_processes, sources.glyphs, sources.pixels]
)
def test_other_shots_are_those_of_the_factory(make):
    source = make()
    before = source.task("test", 0)
    assert same(source.with_shots(5), make(shots=5))
    assert all(map(torch.equal, tree_leaves(before), tree_leaves(source.task("test", 0))))


def test_imbalance_ends_and_what_is_too_small_is_left_out_anew():
    source = classes(shots=[1, 4], imbalance="linear")
    assert same(source.with_shots(3), classes(shots=3))
    with pytest.raises(ValueError, match="has 12 examples, but 10 shots"):
        source.with_shots(10)
    few = {s: {name: rows[: 12 if int(name[-1]) % 4 else 5] for name, rows in own.items()} for s, own in ROWS.items()}
    images = np.random.default_rng(0).integers(0, 256, (144, 1, 4, 4), dtype=np.uint8)
    dropping = ClassTasks(images, few, ways=2, queries=3, shots=1, on_too_few="drop", left_out={"bad images": 2})
    assert dropping.dropped == {"bad images": 2}
    dropped = dropping.with_shots(5).dropped
    assert {name: dropped[name] for name in list(dropped)[-2:]} == {
        "classes in test with fewer than 8 examples": 2, "bad images": 2,
    }  # fmt: skip


def test_ratings_keep_the_shots_of_training(tmp_path):
    rows = [(f"u{u}", f"i{i}", 1 + (u + i) % 5) for u in range(40) for i in RANDOM.permutation(30)[:14]]
    pl.DataFrame(rows, schema=["user", "item", "rating"], orient="row").write_csv(tmp_path / "r.csv")
    source = sources.ratings(tmp_path / "r.csv", shots=2, train_shots=[1, 3], queries=4)
    assert same(source.with_shots(6), sources.ratings(tmp_path / "r.csv", shots=6, train_shots=[1, 3], queries=4))
    assert source.with_shots(6).shots["train"] == (1, 3)


def test_frozen_tasks_stay_and_priors_refuse(tmp_path):
    tasks.freeze(sources.sinusoids(shots=5), tmp_path / "test", num_tasks=3)
    frozen = sources.episodes(tmp_path / "test")
    assert frozen.with_shots(3) is frozen.with_shots(5) is frozen
    with pytest.raises(ValueError, match="the frozen tasks have 5 shots, fewer than 6"):
        frozen.with_shots(6)
    with pytest.raises(ValueError, match="the number of shots of TabularPriors is fixed"):
        sources.tabular_priors().with_shots(3)


def test_a_watched_source_gives_one_that_is_not_logged():
    source = tasks.watched(sources.sinusoids())
    source.with_shots(3).task("test", 0)
    assert not source.reads
