"""What training and evaluation read: copies among the splits, and tests between trainings."""

import copy

import numpy as np
import pytest
import torch
from evaluation.audit.bugs import (
    Around,
    Centroid,
    audited,
    failed,
    maml,
    pool,
    results,
)

import kshot
from kshot import Batch, Task, objectives
from kshot.checking.scan import scan
from kshot.evaluation.audit.findings import Result
from kshot.learners import SupportMean
from kshot.sources import sinusoids
from kshot.tasks import ClassTasks, TaskSource, watched
from kshot.tasks.source import generator


def test_copies_in_large_splits_are_found_among_all_rows():
    each, classes = 20, 150
    images = np.random.default_rng(0).integers(0, 256, (3 * classes * each, 1, 8, 8), dtype=np.uint8)
    rows = {
        split: {f"{split} {c}": range(each * (classes * n + c), each * (classes * n + c + 1)) for c in range(classes)}
        for n, split in enumerate(("train", "val", "test"))
    }
    images[-each * 4 :] = images[: each * 4]  # 80 of 3000 test examples
    found = audited(Centroid(), ClassTasks(images, rows, ways=4, shots=1, queries=2), num_tasks=8)
    assert failed(found) == {"splits"}
    (audit,) = [audit for audit in found.audits if audit.name == "splits"]
    assert audit.figure == pytest.approx(80 / 3000)
    assert "80 of 3,000 test examples (2.67%) also occur in train: 80 exactly" in audit.finding
    assert "all 9,000 examples" in audit.finding


def test_a_scan_that_has_no_time_says_how_much_it_read():
    source = pool()
    scanned = scan(source, ["test", "train"], seconds=0)
    assert (scanned.looked_at, scanned.total) == (256, 720)
    scan_again = scan(watched(source), ["test", "train"])
    assert scan_again is scanned  # kept


def test_a_test_between_trainings_is_seen_whatever_the_source():
    for source in (pool(), watched(pool())):
        learner = maml(steps=1)
        kshot.fit(learner, source, steps=2)
        assert kshot.evaluate(learner, source, num_tasks=8).trusted
        assert kshot.evaluate(copy.deepcopy(learner), source, num_tasks=8).trusted  # again, without training
        kshot.fit(learner, source, steps=2)
        assert failed(audited(learner, source, num_tasks=8)) == {"test reads"}
        assert failed(audited(copy.deepcopy(learner), source, num_tasks=8)) == {"test reads"}
        kshot.fit(learner, source, steps=2)
        assert failed(audited(learner, source, num_tasks=8)) == {"test reads"}


def test_a_test_before_any_training_and_other_learners_are_no_test_between_trainings():
    source, learner = pool(), maml(steps=1)
    kshot.evaluate(learner, source, num_tasks=8)  # untrained, as a reference
    kshot.fit(learner, source, steps=2)
    kshot.evaluate(learner, source, split="val", num_tasks=8)
    kshot.fit(learner, source, steps=2)
    found = kshot.evaluate(learner, source, num_tasks=8)
    assert found.trusted
    other = maml(steps=1)
    kshot.fit(other, source, steps=3, seed=1)
    found = kshot.evaluate(other, source, num_tasks=8)
    assert found.trusted
    (audit,) = [audit for audit in found.audits if audit.name == "test reads"]
    assert "1 other trained learners were scored on its test tasks before" in audit.finding


def test_a_test_split_that_training_read_is_no_test():
    class Slips(Around):
        def task(self, split, index):
            return self.source.task("test" if index == 7 else split, index)

    for honest in (True, False):
        source = watched(pool())
        learner = maml(steps=1)
        kshot.fit(learner, source if honest else Slips(source), steps=5)
        if not honest:
            with source.during("training"):
                source.task("test", 0)
        assert failed(audited(learner, source, num_tasks=20)) == (set() if honest else {"test reads"})


def test_rounds_read_train_and_val_and_the_audit_sees_that():
    source = watched(sinusoids())
    learner = kshot.maml(kshot.models.mlp(1, 1, [8]), inner_lr=0.02, objective=objectives.mse)
    options = {"steps_per_round": 2, "tasks_per_step": 2, "num_val_tasks": 4}
    kshot.run_until(learner, source, "mse <= 0", budget=kshot.Budget(rounds=2), **options)
    assert set(source.reads) == {("rounds", "train"), ("rounds", "val")}
    found = kshot.evaluate(learner, source, num_tasks=8)
    assert results(found)["test reads"] is Result.PASSED
    untrained = kshot.maml(kshot.models.mlp(1, 1, [8]), inner_lr=0.02, objective=objectives.mse)
    for one, result in ((learner, Result.PASSED), (untrained, Result.IDLE)):
        assert results(kshot.evaluate(one, sinusoids(), num_tasks=8))["test reads"] is result
    kshot.evaluate(learner, source, num_tasks=8)  # evaluations are no decisions

    def peeks(history):
        kshot.evaluate(learner, source, num_tasks=2, audit=False)
        return kshot.deciding.decisions.Stop(kshot.deciding.decisions.Outcome.NO_PROGRESS, "enough")

    kshot.run_until(learner, source, "mse <= 0", policy=peeks, **options)
    assert failed(audited(learner, source, num_tasks=8)) == {"test reads"}


def test_equal_rows_of_few_values_are_no_copies():
    class Coins(TaskSource):
        objective, seed = objectives.mse, 0

        def task(self, split, index):
            random = torch.from_numpy(generator(0, split, index).integers(0, 2, (2, 10, 2)).astype(np.float32))
            return Task(*(Batch.of(rows[:, :1], rows[:, 1:]) for rows in random))

    of = results(kshot.evaluate(SupportMean(objectives.mse), Coins(), num_tasks=10))
    assert of["support and query"] is of["splits"] is Result.IDLE


def test_a_val_evaluation_never_reads_test():
    source = watched(pool())
    kshot.evaluate(Centroid(), source, split="val", num_tasks=20)
    assert {split for _, split in source.reads} == {"train", "val"}
