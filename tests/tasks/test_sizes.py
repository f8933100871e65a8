"""Tasks of classes whose sizes vary: ranges, imbalance, domains, noise, and classes that are too small."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

import kshot
from kshot import types
from kshot.data import ArrayDataset
from kshot.tasks import ClassTasks
from kshot.tasks.sampling import Range, distinct
from kshot.types import Batch, Task

SIZES = [20, 12, 31, 14, 12, 40, 25, 13]
STARTS = np.cumsum([0, *SIZES])
OWNER = np.repeat(np.arange(len(SIZES)), SIZES)
"""The class of each row."""


def source(sizes=SIZES, **options) -> ClassTasks:
    """Classes whose examples are their own row numbers, (n, 1)."""
    starts = np.cumsum([0, *sizes])
    rows = np.arange(starts[-1], dtype=np.float32)[:, None]
    pool = {f"class {c}": range(starts[c], starts[c + 1]) for c in range(len(sizes))}
    return ClassTasks(ArrayDataset(rows), {"train": pool}, **{"ways": 3, "shots": 2, "queries": 4, **options})


def rows_of(batch: Batch) -> np.ndarray:
    return batch.inputs[..., 0].long().numpy()


def real(batch: Batch) -> np.ndarray:
    return batch.weight.bool().numpy()


def counts(batch: Batch) -> np.ndarray:
    """Real rows of each label, (..., ways)."""
    return (batch.targets * batch.weight[..., None]).sum(-2).long().numpy()


def close(found: np.ndarray, expected: float, draws: int) -> bool:
    """Whether shares of so many draws are as expected, within 5 standard deviations."""
    return bool((np.abs(found - expected) < 5 * (expected * (1 - expected) / draws) ** 0.5).all())


sizes = st.tuples(st.integers(1, 4), st.integers(0, 2)).map(lambda pair: (pair[0], sum(pair)))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(2, 4), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair))),
    sizes,
    sizes,
    st.sampled_from([None, "random", "linear", "step"]),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 9),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=4),
)
def test_tasks_of_any_sizes_are_whole_disjoint_and_padded_last(ways, shots, queries, imbalance, noise, seed, indices):
    imbalance = imbalance if shots[0] < shots[1] else None
    noise = noise if shots[1] > 1 else 0.0
    options = {"ways": ways, "shots": shots, "queries": queries, "imbalance": imbalance, "label_noise": noise}
    tasks = source(seed=seed, **options)
    for task, index in zip(types.unstack(tasks.stack("train", indices)), indices):
        alone = tasks.task("train", index)
        assert all(map(torch.equal, types.tree_leaves(task), types.tree_leaves(alone)))
        taken = [*rows_of(task.support)[real(task.support)], *rows_of(task.query)[real(task.query)]]
        assert len(set(taken)) == len(taken)
        assert ways[0] <= len(set(OWNER[taken])) <= ways[1]
        for batch, (low, high) in ((task.support, shots), (task.query, queries)):
            assert batch.inputs.shape == (ways[1] * high, 1)
            assert batch.targets.shape == (ways[1] * high, ways[1])
            each = Counter(OWNER[rows_of(batch)[real(batch)]].tolist())
            assert set(each) == set(OWNER[taken])
            assert all(low <= count <= high for count in each.values())
            kept = real(batch).sum()
            assert real(batch)[:kept].all()
            assert set(rows_of(batch)[kept:]) <= {rows_of(batch)[0]}, "padding repeats the first row"
            assert torch.equal(batch.targets[kept:], batch.targets[:1].expand(len(batch.weight) - kept, -1))
            assert batch.targets.sum(1).tolist() == [1.0] * len(batch.weight)
            assert (counts(batch)[len(each) :] == 0).all(), "the labels of a task are the first ones"
        label = dict(zip(OWNER[rows_of(task.query)], task.query.targets.argmax(1).tolist()))
        assert sorted(label.values()) == list(range(len(label))), "a label stands for one class"


def test_a_range_of_one_size_is_that_size():
    fixed, ranged = source(), source(ways=(3, 3), shots=[2, 2], queries=(4, 4), train_queries=(4, 4))
    assert fixed.describe() == ranged.describe()
    assert torch.equal(fixed.task("train", 7).query.inputs, ranged.task("train", 7).query.inputs)


def test_every_size_of_a_range_is_equally_likely():
    stack = source(ways=(2, 5), shots=(1, 3), queries=(2, 3)).stack("train", range(4000))
    present = counts(stack.query) > 0
    for drawn, low, high in (
        (present.sum(1), 2, 5),
        (counts(stack.support).max(1), 1, 3),
        (counts(stack.query).max(1), 2, 3),
    ):
        shares = np.bincount(drawn, minlength=high + 1)[low : high + 1] / 4000
        assert shares.sum() == 1
        assert close(shares, 1 / (high - low + 1), 4000)
    same = counts(stack.support) == counts(stack.support).max(1, keepdims=True)
    assert (same == present).all(), "without imbalance all classes of a task have the same shots"


def test_every_class_and_every_example_of_it_is_equally_likely():
    stack = source(ways=(2, 5), shots=(1, 3)).stack("train", range(6000))
    rows = rows_of(stack.support)[real(stack.support)]
    share = np.bincount(OWNER[rows], minlength=len(SIZES)) / len(rows)
    assert np.abs(share - 1 / len(SIZES)).max() < 0.008
    for c in range(len(SIZES)):
        own = np.bincount(rows[OWNER[rows] == c] - STARTS[c], minlength=SIZES[c])
        assert close(own / own.sum(), 1 / SIZES[c], own.sum())


@pytest.mark.parametrize(
    ("imbalance", "ways", "expected"),
    [
        ("linear", 5, [1, 3, 5, 7, 9]),  # Ochal et al., arXiv:2101.02523: the 1-9shot 5-way linear task
        ("linear", 2, [1, 9]),
        ("linear", 8, [1, 2, 3, 4, 6, 7, 8, 9]),
        ("step", 5, [1, 1, 9, 9, 9]),
        ("step", 4, [1, 1, 9, 9]),
    ],
)
def test_the_shots_of_an_imbalanced_task_are_spread_as_asked(imbalance, ways, expected):
    stack = source(ways=ways, shots=(1, 9), queries=2, imbalance=imbalance).stack("train", range(400))
    shots = counts(stack.support)
    assert (np.sort(shots, 1) == expected).all()
    assert np.abs(shots.mean(0) - np.mean(expected)).max() < 0.9, "a label does not tell how many shots its class has"
    assert (counts(stack.query) == 2).all()


def test_random_imbalance_draws_the_shots_of_each_class_on_its_own():
    shots = counts(source(ways=4, shots=(1, 5), queries=2, imbalance="random").stack("train", range(4000)).support)
    for label in range(4):
        assert close(np.bincount(shots[:, label], minlength=6)[1:] / 4000, 1 / 5, 4000)
    assert np.abs(np.corrcoef(shots.T) - np.eye(4)).max() < 0.08


def test_label_noise_flips_its_share_of_the_support_and_nothing_else():
    clean, noisy = (source(ways=4, shots=5, label_noise=noise).stack("train", range(2000)) for noise in (0.0, 0.3))
    assert torch.equal(clean.support.inputs, noisy.support.inputs)
    assert all(map(torch.equal, clean.query, noisy.query))
    was, now = clean.support.targets.argmax(-1), noisy.support.targets.argmax(-1)
    assert close((was != now).float().mean().numpy(), 0.3, 2000 * 20)
    to = [(now[(was == a) & (now != a)] == b).float().mean() for a in range(4) for b in range(4) if a != b]
    assert np.abs(np.array(to) - 1 / 3).max() < 0.04, "the wrong labels are equally likely"
    right = torch.nn.functional.one_hot(was) * (was == now)[..., None]
    assert (right.sum(1) > 0).all(), "each class keeps an example"


def test_domains_are_equally_likely_and_a_task_stays_in_one():
    domains = {f"class {c}": "abc"[c * 3 // 8] for c in range(8)}  # 3, 3 and 2 classes
    tasks = source(ways=(2, 5), within=domains)
    assert tasks.describe()["domains"] == {"train": 3}
    stack = tasks.stack("train", range(3000))
    seen = Counter()
    for task in types.unstack(stack):
        own = {domains[f"class {c}"] for c in OWNER[rows_of(task.query)]}
        assert len(own) == 1
        seen.update(own)
    assert close(np.array([seen[name] / 3000 for name in "abc"]), 1 / 3, 3000)
    ways = (counts(stack.query) > 0).sum(1)
    assert set(ways) == {2, 3}, "the ways end at the domain's classes"
    assert stack.query.targets.shape[-1] == 5


def test_a_domain_that_is_missing_or_too_small_is_named():
    domains = {f"class {c}": "ab"[c == 7] for c in range(8)}
    with pytest.raises(ValueError, match="domain 'b' of the train split has 1 class, fewer than the 2 ways"):
        source(ways=2, within=domains)
    kept = source(ways=2, within=domains, on_too_few="drop")
    assert kept.dropped == {"domains in train with fewer than 2 classes": 1}
    assert 7 not in OWNER[rows_of(kept.stack("train", range(200)).query)]
    del domains["class 3"]
    with pytest.raises(ValueError, match="class 'class 3' in train has no domain"):
        source(ways=2, within=domains)


def test_small_classes_are_an_error_dropped_or_shrunk():
    mixed = [20, 5, 3, 1, 2]
    with pytest.raises(ValueError, match=r"class 'class 1' in train has 5 examples, .* need 6.* \(4 in train\)"):
        source(mixed)
    with pytest.raises(ValueError, match=r"has 1 class, fewer than the 3 ways.*classes in train with fewer than 6"):
        source(mixed, on_too_few="drop")
    dropped = source([20, 5, 6, 9], on_too_few="drop")
    assert dropped.describe()["dropped"] == {"classes in train with fewer than 6 examples": 1}
    assert tuple(dropped.classes("train")) == dropped.class_names["train"] == ("class 0", "class 2", "class 3")
    shrunk = source(mixed, shots=(1, 2), on_too_few="shrink")
    assert shrunk.class_names["train"] == ("class 0", "class 1", "class 2", "class 4")
    assert shrunk.dropped == {"classes in train with fewer than 2 examples": 1}
    starts = np.cumsum([0, *mixed])
    seen = set()
    for task in types.unstack(shrunk.stack("train", range(300))):
        for c in range(5):
            own = [
                int((real(batch) & (rows_of(batch) >= starts[c]) & (rows_of(batch) < starts[c + 1])).sum())
                for batch in task
            ]
            seen.add((c, *own))
    assert {own for own in seen if own[0] == 2} == {(2, 0, 0), (2, 1, 2), (2, 2, 1)}, "fewer queries, then none else"
    assert {own for own in seen if own[0] == 4} == {(4, 0, 0), (4, 1, 1)}, "then fewer shots within the range"


def test_a_hundred_thousand_classes_of_one_example_are_a_sentence_at_once():
    started = time.process_time()
    with pytest.raises(ValueError, match=r"'class 0' in train has 1 examples, but 2 shots.*\(100000 in train\)"):
        source([1] * 100_000)
    with pytest.raises(ValueError, match="split has 0 classes, fewer than the 3 ways"):
        source([1] * 100_000, on_too_few="drop")
    assert source([2] * 100_000, shots=1, queries=1).task("train", 3).query.inputs.shape == (3, 1)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ways": (1, 3)}, r"ways must be at least 2, and a range must not fall; got \(1, 3\)"),
        ({"shots": (3, 2)}, r"shots must be .* range must not fall; got \(3, 2\)"),
        ({"shots": 1.5}, "shots must be a whole number, or a range of two"),
        ({"queries": [1, 2, 3]}, "queries must be a whole number, or a range of two"),
        ({"train_queries": [True, 2]}, "train_queries must be a whole number, or a range"),
        ({"imbalance": "linear"}, "imbalance 'linear' needs shots as a range"),
        ({"imbalance": "steep", "shots": (1, 2)}, "imbalance must be one of random, linear, step"),
        ({"label_noise": 1.0}, "label_noise must be at least 0 and below 1"),
        ({"label_noise": 0.1, "shots": 1}, "label_noise needs at least 2 shots"),
        ({"on_too_few": "keep"}, "on_too_few must be one of error, drop, shrink"),
        ({"ways": (9, 12)}, "has 8 classes, fewer than the 9 ways"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        source(**options)


@given(st.data())
def test_so_many_distinct_numbers_as_each_row_wants(data):
    k = data.draw(st.integers(1, 8))
    wanted = np.array(data.draw(st.lists(st.integers(1, k), min_size=1, max_size=5)))
    counts = wanted + np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(wanted), max_size=len(wanted))))
    draws = np.random.default_rng(data.draw(st.integers(0, 99))).random((len(wanted), 2, k))
    for row, count, size in zip(distinct(draws, counts, wanted), counts, wanted):
        assert len(set(row[:size].tolist())) == size
        assert set(row[size:]) <= {row[0]}
        assert 0 <= row.min() <= row.max() < count


def test_ordered_choices_of_fewer_are_equally_likely_too():
    draws = np.random.default_rng(0).random((60_000, 2, 4))
    found = distinct(draws, np.array(3), np.full(60_000, 2))[:, :2]
    seen = Counter(map(tuple, found.tolist()))
    assert set(seen) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert close(np.array(list(seen.values())) / 60_000, 1 / 6, 60_000)


def test_a_range_draws_each_size_at_its_place():
    draws = np.array([0.0, 0.24, 0.25, 0.75, np.nextafter(1, 0)])
    assert Range(2, 5).at(draws).tolist() == [2, 2, 3, 5, 5]
    assert Range(2, 5).at(draws, most=np.array(3)).tolist() == [2, 2, 2, 3, 3]


def test_training_on_tasks_of_many_sizes():
    """Separable classes, tasks of 2 to 5 ways: what a learner makes of them is finite, and right."""
    points = 4 * one_hot(torch.arange(8)).float().repeat_interleave(12, 0)
    points = points + 0.3 * torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    pool = {f"class {c}": range(12 * c, 12 * (c + 1)) for c in range(8)}
    tasks = ClassTasks(
        ArrayDataset(points.numpy()),
        {"train": pool},
        ways=(2, 5),
        shots=(1, 5),
        queries=(2, 6),
        imbalance="random",
    )
    for learner in (
        kshot.maml(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)), inner_lr=0.5),
        kshot.learners.proto_maml(torch.nn.Linear(8, 8), inner_lr=0.1),
        kshot.protonet(torch.nn.Linear(8, 8)),
        kshot.learners.reptile(torch.nn.Linear(8, 5), inner_lr=0.1, minibatch=4),
    ):
        kshot.fit(learner, tasks, steps=20, tasks_per_step=4, outer_lr=0.03, mode="vmap")
        assert all(torch.isfinite(parameter).all() for parameter in learner.parameters())
        assert kshot.evaluate(learner, tasks, split="train", num_tasks=30, audit=False).metrics["accuracy"].mean > 0.9


def test_a_minibatch_of_padding_alone_has_no_effect():
    """Rows j, j + m, … of a padded support may be padding only; BatchNorm's statistics and the loss stand it."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    learner = kshot.learners.reptile(net, inner_lr=0.1, steps=8, minibatch=2)
    support = Batch.of(torch.randn(8, 2), torch.tensor([0, 1] * 4), ways=2, weight=torch.tensor([1.0] * 3 + [0.0] * 5))
    task = Task(support, support)
    learner(task).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


def test_training_tasks_may_have_more_ways_than_others_which_stay_as_they_were():
    pools = {
        "train": {f"class {c}": range(6 * c, 6 * c + 6) for c in range(12)},
        "test": {"a": range(80, 90), "b": range(90, 100)},
    }
    rows = ArrayDataset(np.arange(100.0)[:, None])

    def make(**options) -> ClassTasks:
        return ClassTasks(rows, pools, ways=2, shots=2, queries=3, **options)

    plain, wide = make(), make(train_ways=11)
    assert wide.task("train", 0).query.targets.shape == (33, 11)
    assert counts(wide.task("train", 4).support).tolist() == [2] * 11
    assert types.tree_map(torch.equal, wide.task("test", 5), plain.task("test", 5)) == types.tree_map(
        lambda leaf: True, plain.task("test", 5)
    )
    assert (wide.describe()["ways"], wide.describe()["train_ways"]) == (2, 11)
    assert "train_ways" not in plain.describe()
    with pytest.raises(ValueError, match="the train split has 12 classes, fewer than the 13 ways"):
        make(train_ways=13)
    with pytest.raises(ValueError, match="train_ways must be at least 2"):
        make(train_ways=1)
