"""Each check of a source catches the defect that it is there for, and says which."""

import numpy as np
import pytest
import torch

import kshot
from kshot import Batch, Task, TaskSource, objectives, sources, tasks
from kshot.evaluation.shots import FewerShots
from kshot.tasks.source import generator
from kshot.testing import check_source, source_checks
from kshot.types import SPLITS


class Blobs(TaskSource):
    """Three Gaussian classes: a source that keeps the contract; each subclass below breaks one part of it."""

    objective = objectives.classification
    seed = 0

    def task(self, split, index):
        random = generator(self.seed, split, index)
        centres, noise = random.normal(size=(3, 4)), 0.3 * random.normal(size=(15, 4))
        labels = np.arange(15) % 3
        x = torch.from_numpy((centres[labels] + noise).astype(np.float32))
        both = Batch.of(x, torch.from_numpy(labels), ways=3)
        return Task(both.rows(slice(6)), both.rows(slice(6, None)))


class Changing(Blobs):
    def task(self, split, index):
        task = super().task(split, index)
        return task._replace(query=task.query._replace(inputs=task.query.inputs + torch.rand(1)))


class AdvancingGlobalNumbers(Blobs):
    def task(self, split, index):
        np.random.rand()  # noqa: NPY002
        return super().task(split, index)


class IgnoringTheIndex(Blobs):
    def task(self, split, index):
        return super().task(split, 0)


class StackingOthers(Blobs):
    def stack(self, split, indices):
        return super().stack(split, [index + 1 for index in indices])


class SharingSplits(Blobs):
    def task(self, split, index):
        return super().task("train", index)


class QueryInSupport(Blobs):
    def task(self, split, index):
        task = super().task(split, index)
        return task._replace(query=task.support)


class Ragged(Blobs):
    def task(self, split, index):
        task = super().task(split, index)
        return task._replace(query=task.query._replace(weight=task.query.weight[:-1]))


class OtherColumns(Blobs):
    def task(self, split, index):
        task = super().task(split, index)
        return task._replace(query=task.query._replace(inputs=task.query.inputs[:, :3]))


class NotFinite(Blobs):
    def task(self, split, index):
        task = super().task(split, index)
        task.query.inputs[0, 0] = torch.nan
        return task


class Weightless(Blobs):
    def task(self, split, index):
        task = super().task(split, index)
        return task._replace(support=task.support._replace(weight=0 * task.support.weight))


class ClassIds(Blobs):
    def task(self, split, index):
        return Task(*(batch._replace(targets=batch.targets.argmax(1)) for batch in super().task(split, index)))


class Unnormalised(Blobs):
    def task(self, split, index):
        return Task(*(batch._replace(targets=2 * batch.targets) for batch in super().task(split, index)))


class UnseenClasses(Blobs):
    def task(self, split, index):
        task = super().task(split, index)
        return Task(*(batch.rows(batch.targets.argmax(1) == way) for way, batch in enumerate(task)))


class WeighingPadding(Blobs):
    objective = objectives.classification._replace(
        metrics=lambda prediction, batch: {"share": batch.targets[:, 0].mean()}
    )


class VectorMetric(Blobs):
    objective = objectives.classification._replace(metrics=lambda prediction, batch: {"error": batch.weight})


class NotJson(Blobs):
    def describe(self):
        return {"seed": self.seed, "mean": np.float32(0.5)}


class Seedless(Blobs):
    def describe(self):
        return {"source": "blobs"}


class FewUnits(Blobs):
    def units(self, split, indices):
        return np.zeros(1)


class FrozenPretraining(Blobs):
    def pretraining_batch(self, step, size):
        return super().task("train", 0).support


class RandomPretraining(Blobs):
    def pretraining_batch(self, step, size):
        batch = super().task("train", step).support
        return batch._replace(inputs=batch.inputs + torch.rand(1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Changing, "purity: task 7 of train is another one when it is drawn again"),
        (AdvancingGlobalNumbers, "purity: drawing task 7 of train advances the global random numbers"),
        (IgnoringTheIndex, "purity: the first 8 tasks of train are all the same"),
        (StackingOthers, "stack: the support of task 7 of train differs in stack"),
        (SharingSplits, "splits: 120 of 120 examples of train are in val too"),
        (QueryInSupport, "support and query: 144 of 144 queries are copies"),
        (Ragged, r"shapes: the query of task 0 of train has 8 weights, and inputs of \[9\] rows"),
        (OtherColumns, r"shapes: a row of inputs has the shapes \[\(4,\)\] in the support"),
        (NotFinite, "values: the query of task 0 of train has inputs that are not finite"),
        (Weightless, "values: the support of task 0 of train has no row of positive weight"),
        (ClassIds, r"targets: the support of task 0 of train has targets that are not one-hot"),
        (Unnormalised, "targets: the support of task 0 of train has targets that are no probabilities"),
        (UnseenClasses, "targets: 72 of 72 queries are of a class without support examples"),
        (WeighingPadding, "objective: a row of weight 0 changes the metric 'share'"),
        (VectorMetric, r"objective: the metric 'error' of the support .* is no tensor of shape \(\)"),
        (NotJson, "description: describe\\(\\) cannot be written as JSON: .*float32"),
        (Seedless, "description: .* must have the entry 'seed'"),
        (FewUnits, "units: .* one entry for each of 8 tasks"),
        (FrozenPretraining, "pretraining: pretraining_batch gives the same batch at steps 0 and 1"),
        (RandomPretraining, "pretraining: .* is another batch when it is drawn again"),
    ],
)
def test_each_defect_is_named(source, message):
    with pytest.raises(AssertionError, match=f"the source {source.__name__} fails .* checks:(?s:.*)- {message}"):
        check_source(source())


def test_a_source_that_keeps_the_contract_passes():
    check_source(Blobs())
    with pytest.raises(ValueError, match="num_tasks must be at least 2, got 1"):
        check_source(Blobs(), num_tasks=1)


def test_classes_of_a_task_are_not_pooled_for_pretraining():
    with pytest.raises(ValueError, match="Blobs cannot pretrain: each task has classes of its own"):
        kshot.pretrain(torch.nn.Linear(4, 3), Blobs(), steps=1)


SHIPPED = {
    "sinusoids": sources.sinusoids,
    "sinusoids, distribution": lambda: sources.sinusoids(noise=0.1, target_type="distribution"),
    "gaussian processes": sources.gaussian_processes,
    "tabular priors": lambda: sources.tabular_priors(rows=(10, 30)),
    "tabular priors, regression": lambda: sources.tabular_priors(target_type="regression", rows=(10, 30)),
    "glyphs": lambda: sources.glyphs(ways=(2, 4), shots=(1, 3), queries=2),
    "mixture": lambda: sources.mixture({"a": sources.sinusoids(), "b": sources.sinusoids(seed=1)}),
    "watched": lambda: tasks.watched(sources.sinusoids()),
    "fewer shots": lambda: FewerShots(sources.sinusoids(shots=5), 2),
}


@pytest.mark.parametrize("make", SHIPPED.values(), ids=SHIPPED.keys())
def test_sources_that_need_no_files_pass(make):
    check_source(make(), num_tasks=4)


def test_frozen_tasks_pass(tmp_path):
    for split in ("val", "test"):
        tasks.freeze(sources.sinusoids(), tmp_path / split, split=split, num_tasks=4)
    splits = ("val", "test")
    for _, check in source_checks(tasks.episodes([tmp_path / name for name in splits]), splits=splits, num_tasks=4):
        check()
    assert set(splits) < set(SPLITS)
