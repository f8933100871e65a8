"""Multi-label tasks: which labels and examples they have."""

import numpy as np
import pytest

import kshot
from kshot.data.dataset import ArrayDataset
from kshot.tasks import LabelTasks
from kshot.types import SPLITS

LABELS = {"train": ["a", "b", "c", "d"], "val": ["e", "f"], "test": ["g", "h", "i"]}
HAS = np.random.default_rng(0).random((600, 9)) < 0.13


def make(**options) -> LabelTasks:
    names = [name for of_split in LABELS.values() for name in of_split]
    rows = {name: np.flatnonzero(HAS[:, number]) for number, name in enumerate(names)}
    labels = {split: {name: rows[name] for name in of_split} for split, of_split in LABELS.items()}
    x = np.random.default_rng(1).random((len(HAS), 2)).astype(np.float32)
    x[:, 0] = np.arange(len(HAS))
    return LabelTasks(ArrayDataset(x), labels, **{"ways": 2, "shots": 2, "queries": 3} | options)


def test_the_contract():
    kshot.testing.check_source(make())


@pytest.mark.parametrize("split", SPLITS)
def test_each_label_has_its_shots_and_as_many_without(split):
    source = make()
    for index in range(30):
        for batch, least in zip(source.task(split, index), (2, 3)):
            assert len(batch.targets) == 2 * 2 * least
            assert (batch.targets.sum(0) >= least).all()
            assert ((1 - batch.targets).sum(0) >= least).all()


def test_targets_are_those_of_the_rows_in_the_order_of_the_names():
    source = make()
    names = [name for of_split in LABELS.values() for name in of_split]
    for split in SPLITS:
        for index in range(10):
            task, (labels,) = source.task(split, index), source.classes_of(split, [index])
            for batch, rows in zip(task, source.example_rows(split, index)):
                assert (batch.inputs[:, 0] == rows).all()
                expected = HAS[rows][:, [names.index(label) for label in labels]]
                np.testing.assert_array_equal(batch.targets, expected)
                assert len(set(rows.tolist())) == len(rows)


def test_no_image_with_a_label_of_test_is_in_another_split():
    rows = {split: make().members(split)["examples"] for split in SPLITS}
    assert not HAS[rows["train"], 4:].any()
    assert not HAS[rows["val"], 6:].any()
    assert HAS[rows["test"], 6:].any(1).all()
    assert sorted(np.concatenate([*rows.values()]).tolist()) == list(range(len(HAS)))


def test_labels_are_equally_likely_and_in_random_order():
    units = make().units("test", range(600))
    counts = [np.bincount(column, minlength=3) for column in units.T]
    assert np.abs(np.array(counts) - 200).max() < 60  # standard deviation 11.5


def test_rare_labels_are_an_error_or_left_out():
    with pytest.raises(ValueError, match=r"have label 'a', and a task needs 90 with it and as many without; lower"):
        make(shots=80, queries=10)
    of_train = make().sizes("train")
    assert of_train == {name: HAS[~HAS[:, 4:].any(1), number].sum() for number, name in enumerate("abcd")}
    most = max(of_train.values())
    few = make(shots=most - 3, queries=3, ways=1, on_too_few="drop")
    assert few.sizes("train") == {name: size for name, size in of_train.items() if size == most}
    assert sum(few.describe()["dropped"].values()) == 9 - sum(len(few.sizes(split)) for split in SPLITS)
    with pytest.raises(ValueError, match="the val split has 2 labels with enough examples"):
        make(ways=3)


def test_more_shots_keep_the_labels():
    source = make()
    longer = source.with_shots(4)
    assert len(longer.task("test", 0).support.targets) == 16
    assert longer.describe()["shots"] == 4
    assert source.shots == 2


def test_it_gives_nothing_to_pretrain_on():
    with pytest.raises(ValueError, match="each task has labels of its own"):
        make().pretraining_batch(0, 8)
