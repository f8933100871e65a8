"""Each audit catches a planted bug of its kind, and lets everything pass that is in order."""

import json
import math

import pytest
import torch
from evaluation.audit.bugs import (
    PLANTED,
    Around,
    Centroid,
    Ensemble,
    SeesOtherQueries,
    Weighs,
    audited,
    failed,
    pool,
    results,
)
from zoo import ZOO, make_task, names

import kshot
from kshot import Learner, objectives
from kshot.evaluation.audit.findings import Audit, Result, trust
from kshot.evaluation.audit.run import UntrustedFigure
from kshot.evaluation.report.report import to_json
from kshot.objectives import Objective, weighted_mean
from kshot.sources import sinusoids
from kshot.tasks import TaskSource
from kshot.tasks.source import generator
from kshot.training.checkpoint import save_checkpoint


@pytest.mark.parametrize("bug", PLANTED)
def test_each_bug_fails_its_audit_and_no_other(bug):
    make, source, expected = PLANTED[bug]
    found = audited(make(), source(), num_tasks=80 if bug == "tasks change" else 40)  # which comes late
    assert failed(found) == expected
    assert not found.trusted


def test_weighted_queries_may_be_declared():
    class Declared(Weighs):
        weighted_queries = True

    found = kshot.evaluate(Centroid(), Declared(), num_tasks=20)
    assert found.trusted
    (audit,) = [audit for audit in found.audits if audit.name == "query weights"]
    assert "As the source declares: 220 of 240 queries have weights other than 1, from 0.1 to 1" in audit.finding


def test_a_declared_ensemble_is_reported_as_one():
    found = kshot.evaluate(Ensemble(2), pool(), num_tasks=20)
    assert found.trusted
    assert found.num_members == found.summary()["num_members"] == 2
    (audit,) = [audit for audit in found.audits if audit.name == "one checkpoint"]
    assert "ensemble of 2" in audit.finding


def test_most_audits_idle_is_no_trust():
    def of(*words):
        return [Audit(f"a{n}", "?", Result[word], "Nothing.").to_json() for n, word in enumerate(words)]

    assert trust(of("PASSED", "PASSED", "IDLE")).trusted
    assert not trust(of("PASSED", "IDLE")).trusted
    assert not trust(of("PASSED", "PASSED", "FAILED")).trusted
    assert trust(of("PASSED", "NOT_APPLICABLE", "NOT_APPLICABLE")).trusted
    assert not trust([]).trusted
    sentence = trust(of("PASSED", "IDLE", "IDLE")).sentence
    assert sentence.startswith("not trusted: 1 of 3 audits passed, 2 idle: a1, a2 (nothing)")

    class DeclaresAll(Centroid):
        transductive = ordered = True

    found = kshot.evaluate(DeclaresAll(), Around(), num_tasks=1)
    assert failed(found) == set()
    idle = [name for name, result in results(found).items() if result is Result.IDLE]
    assert found.trusted == (len(idle) < len(found.audits) - len(idle))
    assert f"{len(idle)} idle: " in found.summary()["trust"]


def test_weights_other_than_those_of_the_checkpoint_are_told(tmp_path):
    learner = Centroid()
    save_checkpoint(tmp_path / "round-1", learner, None, {})
    assert audited(learner, pool(), num_tasks=20, checkpoint=tmp_path / "round-1").trusted
    with torch.no_grad():
        learner.scale.mul_(1.01)
    assert failed(audited(learner, pool(), num_tasks=20, checkpoint=tmp_path / "round-1")) == {"one checkpoint"}


class OfTheZoo(TaskSource):
    def __init__(self, row, seed):
        self.row, self.seed = row, seed
        self.objective = row.objective

    def task(self, split, index):
        return make_task(self.row, seed=int(generator(self.seed, split, index).integers(2**31)))


@pytest.mark.parametrize("name", names())
def test_every_row_of_the_zoo_passes(name):
    row = ZOO[name]
    learner = row.make(3)
    found = kshot.evaluate(learner, OfTheZoo(row, 0), num_tasks=20)
    assert found.trusted
    of = results(found)
    never = {"label order", "test reads"} | ({"other queries"} if learner.transductive else set())
    never |= set() if row.classes else {"class order", "chance"}
    if (
        row.objective == objectives.next_token
    ):  # read in order, of few symbols, with metrics of its own; no query sees those after it
        never |= {"support order", "padding", "support and query", "splits"}
        never = never - {"other queries"} | ({"query order"} if learner.transductive else set())
    if row.objective.name and row.objective.name.startswith("forecast"):  # windows in order, with metrics of their own
        never |= {"support order", "padding", "metric"}
    if row.objective == objectives.segmentation:  # with metrics of its own
        never |= {"metric"}
    idle = {name for name, result in of.items() if result in (Result.IDLE, Result.NOT_APPLICABLE)}
    assert never <= idle <= never | {"chance"}  # a learner that gives one answer to all is at chance by arithmetic


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_honest_tasks_of_all_sizes_pass(seed):
    source = pool(ways=[2, 5], shots=[1, 4], queries=[1, 4], on_too_few="shrink", label_noise=0.2, seed=seed)
    found = kshot.evaluate(Centroid(), source, num_tasks=80)
    assert found.trusted
    assert {name for name, result in results(found).items() if result is not Result.PASSED} == {"test reads"}


class OfFewRows(TaskSource):
    """Groups of a table that have from one to three rows of support and of query."""

    objective, seed = objectives.mse, 0

    def task(self, split, index):
        random = generator(self.seed, split, index)
        return kshot.Task(*(self.rows(random, count) for count in random.integers(1, 4, 2)))

    def rows(self, random, count):
        inputs = torch.from_numpy(random.normal(size=(count, 2))).float()
        return kshot.Batch.of(inputs, inputs.sum(1, keepdim=True))


def test_tasks_of_one_query_beside_longer_ones_are_audited():
    source, learner = OfFewRows(), kshot.maml(torch.nn.Linear(2, 1), inner_lr=0.1, objective=objectives.mse)
    counts = {len(source.task("test", index).query.weight) for index in range(20)}
    assert counts == {1, 2, 3}
    assert kshot.evaluate(learner, source, num_tasks=20).trusted


class OfWords(OfFewRows):
    """Groups with a class of each row, of which small support sets lack some."""

    objective = objectives.shared_classification

    def rows(self, random, count):
        inputs = torch.from_numpy(random.normal(size=(count, 2))).float()
        return kshot.Batch.of(inputs, torch.from_numpy(random.integers(0, 3, count)), ways=3)


def test_an_infinite_log_loss_of_a_class_with_probability_0_is_a_figure():
    source = OfWords()
    learner = kshot.learners.nearest_centroid(objectives.shared_classification)
    found = kshot.evaluate(learner, source, num_tasks=20)
    assert found.trusted
    (audit,) = [audit for audit in found.audits if audit.name == "finite"]
    assert "The log loss of" in audit.finding
    assert math.isinf(max(found.per_task["loss"]))

    class WithNan(type(learner)):
        def predict(self, state, inputs):
            return super().predict(state, inputs) * math.nan

    learner.__class__ = WithNan
    with pytest.warns(UntrustedFigure, match="Are predictions and figures finite"):
        assert "finite" in failed(kshot.evaluate(learner, source, num_tasks=20))


class MeanAndSpread(Learner):
    """Predicts a tree."""

    def _adapt(self, support):
        return {"mean": support.targets.mean(0), "spread": support.targets.std(0)}

    def predict(self, state, inputs):
        return {name: value.expand(len(inputs), 1) for name, value in state.items()}


def test_predictions_may_be_trees():
    def loss(prediction, batch):
        return weighted_mean(((prediction["mean"] - batch.targets) / prediction["spread"]).square()[:, 0], batch.weight)

    learner = MeanAndSpread(Objective(loss, lambda prediction, batch: {}))
    found = audited(learner, sinusoids(), num_tasks=10)
    assert failed(found) == {"padding"}  # it does count padding
    assert results(found)["metric"] is Result.IDLE


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_few_tasks_are_audited_as_far_as_they_go(tasks):
    assert kshot.evaluate(Centroid(), pool(), num_tasks=tasks).trusted


def test_a_failed_audit_warns_and_is_in_the_summary():
    with pytest.warns(UntrustedFigure, match="other queries"):
        found = kshot.evaluate(SeesOtherQueries(), pool(), num_tasks=10)
    summary = json.loads(json.dumps(to_json(found.summary())))
    assert summary["trusted"] is False
    (entry,) = [audit for audit in summary["audits"] if audit["result"] == "FAILED"]
    assert entry["figure"] > entry["tolerance"]
    unaudited = kshot.evaluate(SeesOtherQueries(), pool(), num_tasks=10, audit=False)
    assert not unaudited.trusted
    assert unaudited.audits == ()
