"""Segmentation tasks: which classes, images and masks they have."""

import numpy as np
import pytest

import kshot
from kshot.data.dataset import ArrayDataset
from kshot.tasks import MaskClass, MaskTasks
from kshot.types import SPLITS

NAMES = {"train": [1, 2, 3, 4], "val": [5, 6], "test": [7, 8, 9]}
RANDOM = np.random.default_rng(0)
MASKS = np.zeros((400, 6, 6), np.int16)
for mask in MASKS:
    for value in RANDOM.choice(10, 2, replace=False):
        y, x = RANDOM.integers(0, 4, 2)
        mask[y : y + 3, x : x + 3] = value
MASKS[:, 0, 0] = -1


def make(**options) -> MaskTasks:
    shown = [np.flatnonzero((value == MASKS).any((1, 2))) for value in range(10)]
    classes = {split: {f"c{value}": MaskClass(value, shown[value]) for value in of} for split, of in NAMES.items()}
    inputs = np.arange(400.0)[:, None, None, None] * np.ones((400, 3, 6, 6))
    return MaskTasks(ArrayDataset(inputs), MASKS, classes, **{"shots": 2, "queries": 3} | options)


@pytest.mark.parametrize("ways", [1, 2])
def test_the_contract(ways):
    kshot.testing.check_source(make(ways=ways))


@pytest.mark.parametrize("split", SPLITS)
def test_targets_are_the_masks_of_the_classes_of_a_task(split):
    source = make(ways=2)
    for index in range(20):
        task, classes = source.task(split, index), source.units(split, [index])[0]
        values = [int(source.class_names[split][number][1:]) for number in classes]
        for batch, rows, count in zip(task, source.example_rows(split, index), (4, 6)):
            assert (batch.inputs[:, 0, 0, 0] == rows).all()
            assert len(set(rows.tolist())) == count
            masks = MASKS[rows]
            for k, value in enumerate(values, 1):
                np.testing.assert_array_equal(batch.targets[:, k], masks == value)
                assert (masks == value).any((1, 2)).sum() >= count // 2
            background = ~np.isin(masks, [*values, -1])
            np.testing.assert_array_equal(batch.targets[:, 0], background)
            assert (batch.targets[:, :, 0, 0] == 0).all()


def test_no_pixel_of_a_test_class_is_seen_in_training():
    source = make()
    rows = {split: source.members(split)["images"] for split in SPLITS}
    assert MASKS[rows["train"]].max() <= 4
    assert MASKS[rows["val"]].max() <= 6
    assert source.sizes("test") == {f"c{value}": (value == MASKS).any((1, 2)).sum() for value in (7, 8, 9)}


def test_one_class_is_the_unit_of_a_task():
    source = make()
    assert source.units("test", range(5)).shape == (5,)
    assert source.describe()["classes"] == {"train": 4, "val": 2, "test": 3}
    assert len(source.with_shots(4).task("test", 0).support.targets) == 4


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"images in train show class 'c1', and a task needs 203; lower shots"):
        make(shots=200)
    with pytest.raises(ValueError, match="the val split has 2 classes with enough images, fewer than the 3 ways"):
        make(ways=3)
    with pytest.raises(ValueError, match=r"masks must be integers \(num_images, H, W\) for 400 images, got float64"):
        MaskTasks(make().examples, MASKS.astype(float), {})
    with pytest.raises(ValueError, match="each task has classes of its own"):
        make().pretraining_batch(0, 8)
    largest = max(make().sizes("train").values())
    few = make(shots=largest - 3, on_too_few="drop", train_queries=3, queries=1) if largest < 60 else None
    assert few is None or list(few.sizes("train").values()) == [largest]
