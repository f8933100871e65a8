"""N-way K-shot tasks from a pool of images."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot import types
from kshot.tasks import ClassTasks
from kshot.tasks.sampling import distinct
from kshot.types import Task

SIZES = {"train": [20, 7, 31, 9, 12, 40], "val": [8, 9, 10, 11], "test": [7, 7, 30, 9]}
NUM_IMAGES = sum(map(sum, SIZES.values()))


def tell_tale_images() -> np.ndarray:
    """Images that each spell their own row in their first two pixels."""
    images = np.zeros((NUM_IMAGES, 1, 3, 2), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(NUM_IMAGES), 256)
    return images


def pool() -> dict:
    """Classes of unequal sizes, their rows scattered over the images."""
    rows = np.random.default_rng(5).permutation(NUM_IMAGES)
    cuts = iter(np.split(rows, np.cumsum([size for sizes in SIZES.values() for size in sizes])[:-1]))
    return {split: {f"{split} {c}": next(cuts) for c in range(len(sizes))} for split, sizes in SIZES.items()}


def rows_of(inputs: torch.Tensor) -> np.ndarray:
    pixels = (inputs * 255).round().long()
    return (256 * pixels[..., 0, 0, 0] + pixels[..., 0, 0, 1]).numpy()


def source(**options) -> ClassTasks:
    return ClassTasks(tell_tale_images(), pool(), **{"ways": 3, "shots": 2, "queries": 4, **options})


def equal(a: Task, b: Task) -> bool:
    leaves = zip(types.tree_leaves(a), types.tree_leaves(b))
    return all(x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y) for x, y in leaves)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 9),
    st.sampled_from(["train", "val", "test"]),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=5),
)
def test_any_ways_shots_and_queries_give_whole_disjoint_tasks(ways, shots, queries, seed, split, indices):
    tasks = source(ways=ways, shots=shots, queries=queries, seed=seed)
    stack = tasks.stack(split, indices)
    owner = {row: name for name, rows in tasks.classes(split).items() for row in rows}
    for task, index in zip(types.unstack(stack), indices):
        assert equal(task, tasks.task(split, index))
        named: dict[int, set[str]] = {}
        for batch, each in ((task.support, shots), (task.query, queries)):
            assert batch.inputs.shape == (ways * each, 1, 3, 2)
            assert batch.inputs.dtype == batch.targets.dtype == batch.weight.dtype == torch.float32
            assert batch.targets.sum(0).tolist() == [each] * ways
            assert set(batch.targets.unique().tolist()) == {0.0, 1.0}
            assert batch.targets.sum(1).tolist() == batch.weight.tolist() == [1.0] * (ways * each)
            for row, label in zip(rows_of(batch.inputs), batch.targets.argmax(1).tolist()):
                named.setdefault(label, set()).add(owner[row])
        assert all(len(names) == 1 for names in named.values()), "a label stands for one class"
        assert len(set.union(*named.values())) == ways
        taken = [*rows_of(task.support.inputs), *rows_of(task.query.inputs)]
        assert len(set(taken)) == len(taken) == ways * (shots + queries)


def test_a_stack_is_bitwise_the_tasks_stacked():
    tasks, indices = source(), [3, 0, 3, 77]
    assert equal(tasks.stack("train", indices), types.stack([tasks.task("train", index) for index in indices]))


def test_a_task_depends_on_seed_split_and_index_only():
    first, again = source(seed=4), source(seed=4)
    again.stack("train", range(9))
    again.pretraining_batch(0, 8)
    torch.manual_seed(1)
    np.random.default_rng(1)
    assert equal(first.task("train", 5), again.task("train", 5))
    assert not equal(first.task("train", 5), first.task("train", 6))
    assert not equal(first.task("train", 5), source(seed=5).task("train", 5))
    same = ClassTasks(tell_tale_images(), dict.fromkeys(["train"], pool()["train"]), ways=3, shots=2, queries=4, seed=4)
    assert equal(first.task("train", 5), same.task("train", 5)), "the other splits have no say"


def test_inputs_are_the_pixels_over_255():
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 5, 4), dtype=np.uint8)
    tasks = ClassTasks(images, {"train": {"a": range(4), "b": range(4, 8)}}, ways=2, shots=1, queries=3)
    task = tasks.task("train", 0)
    shown = torch.cat([task.support.inputs, task.query.inputs])
    expected = torch.from_numpy(images).float() / 255
    assert shown.shape == expected.shape
    assert {row.numpy().tobytes() for row in shown} == {row.numpy().tobytes() for row in expected}


def test_position_and_label_tell_nothing():
    stack = source(ways=3, shots=2, queries=4).stack("train", range(3000))
    for batch, each in ((stack.support, 2), (stack.query, 4)):
        share = batch.targets.mean(0)  # of each label at each position
        assert (share - 1 / 3).abs().max() < 5 * (2 / 9 / 3000) ** 0.5
        assert len({tuple(row) for row in batch.targets[:200].argmax(-1).tolist()}) > 20 * each
    labels = Counter(zip(rows_of(stack.support.inputs)[:, 0].tolist(), stack.support.targets[:, 0].argmax(-1).tolist()))
    of_class = {name: set(rows.tolist()) for name, rows in pool()["train"].items()}
    for name, rows in of_class.items():
        seen = [sum(n for (row, label), n in labels.items() if row in rows and label == c) for c in range(3)]
        assert min(seen) > 0.6 * max(seen), f"{name} falls on every label"


def test_every_ordered_choice_is_equally_likely():
    draws = np.random.default_rng(0).random((60_000, 2, 2))
    seen = Counter(map(tuple, distinct(draws, np.array(3)).tolist()))
    assert set(seen) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert max(abs(count - 10_000) for count in seen.values()) < 5 * (60_000 * 5 / 36) ** 0.5


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 2**31))
def test_drawn_numbers_are_distinct_and_below_their_count(k, more, seed):
    counts = np.array([k, k + more])
    draws = np.random.default_rng(seed).random((2, 2, k))
    draws.ravel()[seed % draws.size] = np.nextafter(1, 0)  # the largest number a generator gives
    for row, count in zip(distinct(draws, counts), counts):
        assert len(set(row.tolist())) == k
        assert row.min() >= 0
        assert row.max() < count


def test_pretraining_batches_name_every_training_class():
    tasks = source()
    batch = tasks.pretraining_batch(3, 400)
    assert batch.inputs.shape == (400, 1, 3, 2)
    assert batch.targets.shape == (400, len(SIZES["train"]))
    names = tasks.class_names["train"]
    for row, target in zip(rows_of(batch.inputs), batch.targets):
        assert target.sum() == 1
        assert row in tasks.classes("train")[names[int(target.argmax())]]
    share = batch.targets.mean(0) * sum(SIZES["train"])
    assert torch.allclose(share, torch.tensor(SIZES["train"], dtype=torch.float32), atol=9), "all drawings alike"
    assert torch.equal(batch.inputs, source().pretraining_batch(3, 400).inputs)
    assert not torch.equal(batch.inputs, tasks.pretraining_batch(4, 400).inputs)
    assert not torch.equal(batch.inputs, source(seed=1).pretraining_batch(3, 400).inputs)


def test_the_description_says_what_a_report_needs():
    assert source(seed=9, name="tell-tale").describe() == {
        "source": "tell-tale",
        "ways": 3,
        "shots": 2,
        "queries": 4,
        "train_queries": 4,
        "seed": 9,
        "classes": {"train": 6, "val": 4, "test": 4},
        "image_size": [1, 3, 2],
    }


def test_arrays_that_cannot_be_written_to_or_lie_reversed_are_taken():
    images = tell_tale_images()
    frozen = images.copy()
    frozen.flags.writeable = False
    for same in (frozen, np.ascontiguousarray(images[::-1])[::-1]):
        tasks = ClassTasks(same, pool(), ways=3, shots=2, queries=4)
        assert equal(tasks.task("val", 1), source().task("val", 1))


@pytest.mark.parametrize(("count", "ways"), [(12, 5), (5, 5), (4, 4), (1, 2)])
def test_ways_are_those_of_the_smallest_split_where_it_has_fewer_than_five(count, ways):
    pools = {"train": {f"t{c}": range(20 * c, 20 * c + 20) for c in range(8)}}
    pools["val"] = {f"v{c}": range(200 + 20 * c, 220 + 20 * c) for c in range(count)}
    images = np.zeros((500, 1, 4, 4), np.uint8)
    if count == 1:
        with pytest.raises(ValueError, match="the val split has 1 class, fewer than the 2 ways.*split: {rows"):
            ClassTasks(images, pools)
        return
    tasks = ClassTasks(images, pools)
    assert {ways_of.high for ways_of in tasks.ways.values()} == {ways}
    assert tasks.with_training(ways=6).ways["train"].high == 6
    assert tasks.with_training(shots=2).ways["train"].high == ways


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ways": 1}, "ways must be at least 2"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"ways": 5}, "the val split has 4 classes, fewer than the 5 ways.*lower ways or add classes"),
        ({"shots": 4}, "class 'train 1' in train has 7 examples, but 4 shots . 4 queries need 8.*lower shots or"),
    ],
)
def test_options_that_the_pool_cannot_serve(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        source(**options)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (tell_tale_images().astype(np.float32), "must be uint8 .num_images, C, H, W., got float32.*scale floats"),
        (tell_tale_images()[:, 0], r"got uint8 \(210, 3, 2\).*channel axis of 1"),
        (tell_tale_images()[:100], "rows 0 … 2.., but there are rows 0 … 99"),
    ],
)
def test_images_of_another_kind(images, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassTasks(images, pool(), ways=3, shots=2, queries=4)


def test_classes_that_overlap_are_refused():
    images, options = tell_tale_images(), {"ways": 2, "shots": 1, "queries": 1}
    train = {"a": [0, 1], "b": [2, 3]}
    for classes, sentence in (
        ({"train": train, "test": {"c": [4, 5], "d": [6, 3]}}, "row 3 is in test and in another split"),
        ({"train": train, "test": {"c": [4, 5], "a": [6, 7]}}, "class 'a' is in test and in another split"),
        ({"train": {"a": [0, 1], "b": [1, 2]}}, "row . is listed twice in train"),
        ({"train": {"a": [0, 0], "b": [1, 2]}}, "row . is listed twice in train"),
        ({"train": {"a": [0, -1], "b": [1, 2]}}, "rows -1 … 2"),
        ({"train": {"a": [0.0, 1.0], "b": [1, 2]}}, "class .a.: the rows must be integers .k,., got float64"),
        ({"train": {"a": [0, 1], "b": []}}, "class 'b' in train has 0 examples"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ClassTasks(images, classes, **options)


def test_a_split_without_classes_is_named_when_asked_for():
    tasks = ClassTasks(tell_tale_images(), {"train": pool()["train"]}, ways=3, shots=1, queries=1)
    with pytest.raises(ValueError, match="no 'test' split, only train"):
        tasks.task("test", 0)


def test_importing_the_sources_stays_light():
    code = (
        "import sys, kshot.tasks; heavy = {'PIL', 'matplotlib', 'platformdirs', 'scipy', 'polars'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_ways_and_other_ways_in_test():
    images = np.random.default_rng(0).integers(0, 256, (120, 1, 4, 4), dtype=np.uint8)
    rows = {"train": range(12), "val": range(12, 16), "test": range(16, 24)}
    classes = {s: {f"class {c}": range(5 * c, 5 * c + 5) for c in own} for s, own in rows.items()}

    def ways(**options):
        source = ClassTasks(images, classes, shots=1, queries=2, **options)
        return [source.task(split, 0).query.targets.shape[-1] for split in rows], source.describe()

    assert ways(ways="all")[0] == [12, 4, 8]
    assert ways(ways=3, test_ways="all")[0] == [3, 3, 8]
    assert ways(ways=3, test_ways=6, train_ways=10)[0] == [10, 3, 6]
    about = ways(ways=3, test_ways=6, train_ways=10)[1]
    assert (about["ways"], about["val_ways"], about["train_ways"]) == (6, 3, 10)
    task = ClassTasks(images, classes, ways="all", shots=1, queries=2).task("test", 0)
    assert task.query.targets.sum(0).tolist() == [2.0] * 8, "each class of the split is there"
    with pytest.raises(ValueError, match="ways: all takes all classes of a split"):
        ways(ways="all", within=dict.fromkeys(classes["train"], "a"))
    with pytest.raises(ValueError, match="ways must be"):
        ways(ways="some")
