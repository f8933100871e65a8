"""A task is a group: which rows it takes, and in what order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot import objectives, types
from kshot.data import ArrayDataset
from kshot.tasks import GroupTasks
from kshot.types import Batch

SIZES = [9, 30, 12, 7, 21]
STARTS = np.cumsum([0, *SIZES])
ORDER = np.random.default_rng(3).permutation(STARTS[-1])
"""The rows of all groups end to end, scattered; place p of the order holds row ORDER[p]."""
PLACE = ORDER.argsort()
OWNER = np.repeat(np.arange(len(SIZES)), SIZES)[PLACE]


def source(split="train", sizes=SIZES, **options) -> GroupTasks:
    """Groups whose inputs and targets are their own row numbers, (n, 1) and (n, 2)."""
    starts = np.cumsum([0, *sizes])
    rows = np.arange(STARTS[-1], dtype=np.float32)[:, None]
    pool = {f"group {g}": ORDER[starts[g] : starts[g + 1]] for g in range(len(sizes))}
    examples = ArrayDataset(({"row": rows}, np.repeat(rows, 2, 1)))
    return GroupTasks(
        examples, {split: pool}, **{"objective": objectives.mse, "shots": 3, "queries": 4, "seed": 1, **options}
    )


def rows_of(batch: Batch) -> np.ndarray:
    return batch.inputs["row"][..., 0].long().numpy()


def real_rows(batch: Batch) -> list[int]:
    return rows_of(batch)[batch.weight.bool().numpy()].tolist()


sizes = st.tuples(st.integers(1, 3), st.integers(0, 1)).map(lambda pair: (pair[0], sum(pair)))


@settings(max_examples=60, deadline=None)
@given(
    sizes,
    st.tuples(st.integers(1, 2), st.integers(0, 1)).map(lambda pair: (pair[0], sum(pair))),
    st.sampled_from(["random", "given"]),
    st.integers(0, 9),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=4),
)
def test_a_task_is_of_one_group_whole_and_disjoint(shots, queries, order, seed, indices):
    tasks = source(shots=shots, queries=queries, order=order, seed=seed)
    for task, index in zip(types.unstack(tasks.stack("train", indices)), indices):
        alone = tasks.task("train", index)
        assert all(map(torch.equal, types.tree_leaves(task), types.tree_leaves(alone)))
        support, query = map(real_rows, task)
        assert shots[0] <= len(support) <= shots[1]
        assert queries[0] <= len(query) <= queries[1]
        assert len({*support, *query}) == len(support) + len(query)
        assert len(set(OWNER[support + query])) == 1
        for batch, own, (_, high) in ((task.support, support, shots), (task.query, query, queries)):
            assert batch.weight.tolist() == [1.0] * len(own) + [0.0] * (high - len(own))
            assert rows_of(batch)[len(own) :].tolist() == [own[0]] * (high - len(own))
            assert torch.equal(batch.targets, batch.inputs["row"].expand(-1, 2)), "targets belong to their inputs"
        if order == "given":
            places = PLACE[support + query]
            assert (np.diff(places) == 1).all(), "neighbours in the group's order, the support before the query"


def test_groups_and_runs_are_equally_likely():
    stack = source(order="given").stack("train", range(8000))
    first = rows_of(stack.support)[:, 0]
    share = np.bincount(OWNER[first], minlength=len(SIZES)) / 8000
    assert np.abs(share - 0.2).max() < 5 * (0.16 / 8000) ** 0.5
    for g, size in enumerate(SIZES):
        begins = PLACE[first[OWNER[first] == g]] - STARTS[g]
        runs = size - 7 + 1
        assert set(begins) == set(range(runs))
        seen = np.bincount(begins, minlength=runs) / len(begins)
        assert (np.abs(seen - 1 / runs) <= 5 * (1 / runs / len(begins)) ** 0.5).all()


def test_random_order_takes_every_row_to_either_side_alike():
    stack = source().stack("train", range(8000))
    for batch, taken in ((stack.support, 3), (stack.query, 4)):
        seen = np.bincount(rows_of(batch).ravel(), minlength=STARTS[-1])
        expected = 8000 / 5 * taken / np.array(SIZES)[OWNER]
        assert (np.abs(seen - expected) < 6 * expected**0.5).all()


def test_a_task_depends_on_seed_split_and_index_only():
    tasks, again = source(), source()
    again.stack("train", range(5))
    again.pretraining_batch(0, 8)
    assert rows_of(tasks.task("train", 3).query).tolist() == rows_of(again.task("train", 3).query).tolist()
    others = source(seed=2).task("train", 3), source("test").task("test", 3), tasks.task("train", 4)
    for other in others:
        assert rows_of(tasks.task("train", 3).query).tolist() != rows_of(other.query).tolist()


def test_training_tasks_may_have_fewer_queries():
    tasks = source(train_queries=1)
    assert len(tasks.task("train", 0).query.weight) == 1
    assert len(source("val", train_queries=1).task("val", 0).query.weight) == 4


def test_small_groups_are_an_error_dropped_or_shrunk():
    small = [9, 1, 3, 6, 2]
    with pytest.raises(ValueError, match=r"group 'group 1' in train has 1 examples, .* 3 shots . 4 queries need 7"):
        source(sizes=small)
    dropped = source(sizes=small, on_too_few="drop")
    assert dropped.group_names["train"] == ("group 0",)
    assert dropped.describe()["dropped"] == {"groups in train with fewer than 7 examples": 4}
    shrunk = source(sizes=small, shots=(2, 3), on_too_few="shrink", order="given")
    assert shrunk.group_names["train"] == ("group 0", "group 2", "group 3")
    for task in types.unstack(shrunk.stack("train", range(200))):
        support, query = map(real_rows, task)
        size = small[np.searchsorted(np.cumsum(small), PLACE[support[0]], side="right")]
        assert len(support) >= 2
        assert len(query) >= 1
        assert len(support) + len(query) <= size
        assert len(query) == 4 or len(support) + len(query) == size, "no fewer queries than there must be"
    with pytest.raises(ValueError, match="the train split has no groups; left out were groups in train with fewer"):
        source(sizes=[1, 1], on_too_few="drop")


def test_pretraining_batches_are_rows_of_the_training_groups():
    batch = source().pretraining_batch(2, 500)
    assert set(batch.weight.tolist()) == {1.0}
    assert torch.equal(batch.targets, batch.inputs["row"].expand(-1, 2))
    assert len(set(real_rows(batch))) > 0.9 * STARTS[-1] * (1 - np.exp(-500 / STARTS[-1]))
    assert real_rows(batch) != real_rows(source().pretraining_batch(3, 500))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="objective is objectives.shared_classification"):
        source(objective=objectives.classification)
    with pytest.raises(ValueError, match="order must be one of random, given"):
        source(order="time")
    with pytest.raises(ValueError, match="no 'test' split, only train; give it groups there"):
        source().task("test", 0)
    examples = ArrayDataset((np.zeros((4, 1)), np.zeros((4, 1))))
    options = {"objective": objectives.mse, "shots": 1, "queries": 1}
    with pytest.raises(ValueError, match="row 1 is in test and in another split"):
        GroupTasks(examples, {"train": {"a": [0, 1]}, "test": {"b": [1, 2]}}, **options)
    with pytest.raises(ValueError, match="group 'a' is in test and in another split"):
        GroupTasks(examples, {"train": {"a": [0, 1]}, "test": {"a": [2, 3]}}, **options)


def test_examples_of_arrays_keep_their_structure_and_come_as_torch_likes_them():
    arrays = {"f": np.arange(6, dtype=">f8").reshape(3, 2), "i": np.arange(3, dtype=np.uint16), "b": np.ones(3, bool)}
    taken = ArrayDataset(arrays).take(np.array([[2, 0]]))
    assert {name: leaf.dtype for name, leaf in taken.items()} == {
        "f": torch.float32, "i": torch.int64, "b": torch.bool
    }  # fmt: skip
    assert taken["f"].tolist() == [[[4.0, 5.0], [0.0, 1.0]]]
    for arrays, sentence in (
        ({"a": np.zeros(3), "b": np.zeros(4)}, r"same number of examples on their first axis, got \[3, 4\]"),
        (np.array(["a", "b"]), "must hold numbers or booleans, got <U1"),
        ({}, r"same number of examples on their first axis, got \[\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ArrayDataset(arrays)
