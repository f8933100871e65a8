"""The units of tasks: each source names those that the content of its tasks shows, and nothing changes them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import kshot
from kshot import objectives
from kshot.data.dataset import ArrayDataset
from kshot.evaluation.evaluate import units_of
from kshot.evaluation.per_task import read_tasks, write_tasks
from kshot.evaluation.shots import FewerShots
from kshot.sources.pixels import pixels
from kshot.sources.tabular_prior import GROUP
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.frozen import episodes, freeze
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.loader import from_loader
from kshot.tasks.mixture import mixture


def marked_classes(ways=3, seed=0, within=None, first=0):
    """Classes whose examples hold the number of their class in the split."""
    classes, marks = {}, []
    for split, count in (("train", 9), ("val", 5), ("test", 6)):
        classes[split] = {}
        for number in range(count):
            classes[split][f"{split} {number}"] = range(len(marks), len(marks) + 8)
            marks += [first + number] * 8
    examples = ArrayDataset(np.array(marks, np.float32)[:, None])
    return ClassTasks(examples, classes, ways=ways, shots=2, queries=(1, 3), seed=seed, within=within)


def marked_groups(order="random", seed=0):
    groups, marks = {}, []
    for split, count in (("train", 9), ("val", 3), ("test", 4)):
        groups[split] = {}
        for number in range(count):
            groups[split][f"{split} {number}"] = range(len(marks), len(marks) + 7)
            marks += [number] * 7
    inputs = np.array(marks, np.float32)[:, None]
    noise = np.random.default_rng(0).normal(size=inputs.shape).astype(np.float32)
    options = {"objective": objectives.mse, "shots": 3, "queries": 2, "order": order, "seed": seed}
    return GroupTasks(ArrayDataset((inputs, inputs + noise)), groups, **options)


def marks(task):
    real = task.support.weight > 0
    return set(task.support.inputs[real, 0].long().tolist())


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    "source",
    [marked_classes(), marked_classes((2, 5)), marked_groups(), marked_groups("given"), FewerShots(marked_groups(), 1)],
    ids=["classes", "ways", "groups", "ordered", "fewer shots"],
)
def test_units_are_the_members_whose_examples_a_task_holds(source, split):
    units = source.units(split, range(50))
    for index, own in enumerate(units):
        assert set(np.atleast_1d(own).tolist()) - {-1} == marks(source.task(split, index))
    assert len({str(own) for own in units}) > 2
    assert np.array_equal(source.units(split, [31, 4]), units[[31, 4]])
    assert np.array_equal(kshot.tasks.watched(source).units(split, range(50)), units)


def test_classes_within_a_domain_are_the_units():
    within = {f"test {n}": "low" if n < 3 else "high" for n in range(6)}
    within |= {f"{split} {n}": "low" for split, count in (("train", 9), ("val", 5)) for n in range(count)}
    source = marked_classes(3, within=within)
    for index, own in enumerate(source.units("test", range(30))):
        assert set(own.tolist()) == marks(source.task("test", index)) in ({0, 1, 2}, {3, 4, 5})


def test_a_mixture_keeps_the_units_of_its_sources_apart():
    both = mixture({"a": marked_classes(2), "b": marked_classes(2, seed=1)})
    units, names = both.units("test", range(60)), both.unit_names("test")
    for index, own in enumerate(units):
        name = both.source_of("test", index)
        assert {names[number] for number in own} == {f"{name}: test {mark}" for mark in marks(both.task("test", index))}
    assert len(names) == 12
    assert units_of(both, "test", 1).unit == "class"
    assert mixture({"a": kshot.sources.sinusoids(), "b": kshot.sources.sinusoids(seed=1)}).units("test", [0]) is None


def test_frozen_tasks_keep_their_units(tmp_path):
    source = marked_groups()
    source.unit = "patient"
    freeze(source, tmp_path / "test.safetensors", num_tasks=9)
    freeze(marked_classes((2, 4)), tmp_path / "classes.safetensors", num_tasks=9)
    freeze(kshot.sources.sinusoids(), tmp_path / "own.safetensors", num_tasks=3)
    frozen = episodes(tmp_path / "test.safetensors")
    assert np.array_equal(frozen.units("test", range(9)), source.units("test", range(9)))
    found, expected = units_of(frozen, "test", 9), units_of(source, "test", 9)
    assert (found.unit, found.of_task(8)) == ("patient", expected.of_task(8))
    classes = episodes(tmp_path / "classes.safetensors")
    assert np.array_equal(classes.units("test", [8, 2]), marked_classes((2, 4)).units("test", [8, 2]))
    assert episodes(tmp_path / "own.safetensors").units("test", [1]) is None


def test_a_loader_is_told_its_units():
    x, y = torch.randn(20, 4, 2), torch.tensor([0, 1, 0, 1]).expand(20, 4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    source = from_loader(test=loader, ways=2, shots=1, units={"test": ["b"] * 10 + ["a"] * 10}, unit="patient")
    assert source.units("test", [0, 9, 10]).tolist() == [0, 0, 1]
    found = units_of(source, "test", 20)
    assert (found.unit, found.names, found.of_task(19)) == ("patient", ["b", "a"], ["a"])
    for numbers in (torch.arange(20) % 3, np.arange(20) % 3):
        source_of_numbers = from_loader(test=loader, ways=2, shots=1, units={"test": numbers})
        assert units_of(source_of_numbers, "test", 5).of_task(4) == ["1"]
    with pytest.raises(ValueError, match="units are given for val, of which there is no iterable"):
        from_loader(test=loader, ways=2, shots=1, units={"val": [0]})
    assert from_loader(test=loader, ways=2, shots=1).units("test", [0]) is None
    with pytest.raises(ValueError, match="units has 20 entries for test, but task 20 was asked for"):
        source.units("test", [20])


def test_generated_tasks_are_units_unless_they_share_their_sizes():
    assert kshot.sources.sinusoids().units("test", [0, 1]) is None
    tables = kshot.sources.tabular_priors(rows=(4, 9), features=(1, 4))
    shapes = [tuple(tables.task("test", index).support.inputs.shape) for index in (0, GROUP - 1, GROUP)]
    assert shapes[0] == shapes[1]
    assert tables.units("test", [0, GROUP - 1, GROUP]).tolist() == [0, 0, 1]
    found = units_of(tables, "test", GROUP + 1)
    assert (found.unit, found.of_task(GROUP)) == ("size of table", ["1"])


def test_a_mixture_of_sources_whose_units_are_only_numbered_keeps_them_apart():
    both = mixture({name: kshot.sources.tabular_priors(rows=8, features=3, seed=n) for n, name in enumerate("ab")})
    assert not both.unit_names("test")
    of_unit = {}
    for index, unit in enumerate(both.units("test", range(3 * GROUP)).tolist()):
        of_unit.setdefault(unit, set()).add((both.source_of("test", index), index // GROUP))
    assert len(of_unit) == 6
    assert all(len(found) == 1 for found in of_unit.values())


def test_the_unit_of_an_image_to_complete_is_its_class():
    source = pixels("glyphs", shots=4, queries=4)
    names = list(source.of.classes("test"))
    for index, own in enumerate(source.units("test", range(20))):
        rows = source.of.classes("test")[names[own]]
        images = source.of.examples.take(np.asarray(rows))
        assert (images == source.image("test", index)).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("make", "unit"),
    [
        (lambda path: kshot.sources.table(path, group="patient_id", target="y", shots=2, queries=2), "patient"),
        (
            lambda path: kshot.sources.series(
                path, series="patient_id", time="t", value="y", context_length=2, horizon=1, shots=1, queries=1
            ),
            "series",
        ),
        (
            lambda path: kshot.sources.corpus(path, task="patient_id", text="note", length=4, shots=1, queries=1),
            "patient",
        ),
    ],
)
def test_units_have_the_name_of_their_column(tmp_path, make, unit):
    random = np.random.default_rng(0)
    rows = [f"p{p},{t},{random.normal():.3f},word {random.integers(9)} more" for p in range(20) for t in range(9)]
    path = Path(tmp_path / "rows.csv")
    path.write_text("patient_id,t,y,note\n" + "\n".join(rows))
    source = make(path)
    found = units_of(source, "train", 5)
    assert (found.unit, len(found.numbers)) == (unit, 5)
    assert found.of_task(3)[0].startswith("p")


def test_an_evaluation_is_over_the_units_and_its_table_keeps_them(tmp_path):
    source = marked_classes((2, 4))
    learner = kshot.learners.SupportMean(objectives.classification)
    found = kshot.evaluate(learner, source, num_tasks=40, audit=False)
    accuracy = found.metrics["accuracy"]
    assert (accuracy.num_tasks, accuracy.num_units, accuracy.unit) == (40, 6, "class")
    write_tasks(tmp_path / "tasks.csv", found, {}, "accuracy")
    read, _ = read_tasks(tmp_path / "tasks.csv")
    assert [read.units.of_task(task) for task in range(40)] == [found.units.of_task(task) for task in range(40)]
    assert read.units.unit == "class"
    paired = kshot.evaluation.paired_difference(found, read, "accuracy")
    assert (paired.mean, paired.p, paired.num_units, math.isnan(paired.ci95)) == (
        0.0,
        1.0,
        6,
        True,
    )  # all equal, so that no interval is known


def test_a_watched_source_has_all_attributes_of_the_source():
    source = marked_groups()
    attributes = kshot.TaskSource.__annotations__
    for name in attributes:
        setattr(source, name, object())
    watched = kshot.tasks.watched(source)
    assert all(getattr(watched, name) is getattr(source, name) for name in attributes)
