"""Each audit catches a planted bug of its kind, and lets everything pass that is in order."""

import copy
import itertools
import json
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from zoo import ZOO, make_task, names

import kshot
from kshot import Batch, Learner, Task, objectives
from kshot.checking.scan import scan
from kshot.evaluation.audit.chance import Guessing
from kshot.evaluation.audit.findings import Audit, Result, trust
from kshot.evaluation.audit.invariance import Pair, compare_distributions
from kshot.evaluation.audit.run import UntrustedFigure
from kshot.evaluation.report.report import to_json
from kshot.learners import SupportMean
from kshot.objectives import Objective, weighted_mean
from kshot.sources import sinusoids
from kshot.tasks import ClassTasks, TaskSource, watched
from kshot.tasks.source import generator
from kshot.training.checkpoint import save_checkpoint
from kshot.types import stack

# honest tasks and learners, for bugs to be planted in ---------------------------------------------------------------

CLASSES = {"train": range(40), "val": range(40, 60), "test": range(60, 80)}
EACH = 12  # examples of a class


def pictures(step: int = 1) -> np.ndarray:
    """80 classes of 8 × 8 images: a pattern each, brighter by `step` from class to class within a split, and noise."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 60, (80, 1, 1, 8, 8)) + step * (np.arange(80) % 20)[:, None, None, None, None]
    noise = random.integers(0, 40, (80, EACH, 1, 8, 8))
    return (patterns + noise).reshape(-1, 1, 8, 8).astype(np.uint8)


def pool(images: np.ndarray | None = None, **options) -> ClassTasks:
    rows = {split: {f"class {c}": range(EACH * c, EACH * (c + 1)) for c in own} for split, own in CLASSES.items()}
    given_ = {"ways": 4, "shots": 2, "queries": 3} | options
    return ClassTasks(pictures() if images is None else images, rows, **given_)


class Around(TaskSource):
    """Honest tasks with something done to them."""

    def __init__(self, source: TaskSource | None = None):
        self.source = source or pool()
        self.objective, self.seed = self.source.objective, 0

    def change(self, task: Task, split: str, index: int) -> Task:
        return task

    def task(self, split, index):
        return self.change(self.source.task(split, index), split, index)


class Centroid(Learner):
    """The nearest class mean, with places to plant a bug in."""

    def __init__(self, objective: Objective = objectives.classification):
        super().__init__(objective)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def weigh(self, weight):
        return weight

    def _adapt(self, support):
        share = support.targets * self.weigh(support.weight)[:, None]
        return {"means": (share.mT @ support.inputs.flatten(1)) / share.sum(0).clamp_min(1e-9)[:, None]}

    def predict(self, state, inputs):
        return -self.scale * torch.cdist(inputs.flatten(1), state["means"])


class OnePixel(Centroid):
    """One that is often wrong."""

    def _adapt(self, support):
        return super()._adapt(support._replace(inputs=support.inputs[..., :1, :1]))

    def predict(self, state, inputs):
        return super().predict(state, inputs[..., :1, :1])


# bugs ---------------------------------------------------------------------------------------------------------------


class SeesOtherQueries(Centroid):
    def predict(self, state, inputs):
        return super().predict(state, inputs - inputs.mean(0))


class GoesByPosition(Centroid):
    def predict(self, state, inputs):
        logits = super().predict(state, inputs)
        return logits + 0.1 * (torch.arange(len(logits))[:, None] % logits.shape[1] == torch.arange(logits.shape[1]))


class TrustsTheFirst(Centroid):
    def weigh(self, weight):
        return weight / (1 + torch.arange(len(weight)))


class CountsPadding(Centroid):
    def weigh(self, weight):
        return torch.ones_like(weight)


class CountsTasks(Centroid):
    def _adapt(self, support):
        self.seen += 1
        return super()._adapt(support)


class Remembers(Centroid):
    """Shrinks means to those of earlier tasks, kept where no checkpoint sees them."""

    before = None

    def _adapt(self, support):
        state = super()._adapt(support)
        state["means"] = state["means"] if self.before is None else 0.5 * (state["means"] + self.before)
        self.before = state["means"]
        return state


class DrawsAnew(Centroid):
    random = np.random.default_rng(0)

    def predict(self, state, inputs):
        logits = super().predict(state, inputs)
        return logits + torch.from_numpy(self.random.random(logits.shape)).to(logits.dtype)


class GivesNan(Centroid):
    def predict(self, state, inputs):
        logits = super().predict(state, inputs)
        return torch.where(logits < logits.median(), torch.nan, logits)


class Ensemble(Learner):
    def __init__(self, declared=1):
        super().__init__(objectives.classification)
        self.members = nn.ModuleList([Centroid(), Centroid()])
        self.num_members = declared

    def _adapt(self, support):
        return {str(number): member.adapt(support) for number, member in enumerate(self.members)}

    def predict(self, state, inputs):
        return sum(member.predict(state[str(number)], inputs) for number, member in enumerate(self.members))


class HiddenEnsemble(Centroid):
    def __init__(self):
        super().__init__()
        self._others = [Centroid(), Centroid()]


class Noisy(Centroid):
    """One that draws a random mask over the pixels for each row, so that it draws more for more queries."""

    noise = 0.02

    def masked(self, inputs):
        return inputs * (torch.rand(inputs.shape, dtype=inputs.dtype) > self.noise)

    def _adapt(self, support):
        return super()._adapt(support._replace(inputs=self.masked(support.inputs)))

    def predict(self, state, inputs):
        drawn = self.masked(inputs.flip(0)).flip(0)  # the first query gets the last numbers
        return super().predict(state, drawn)


class NoisySeesOtherQueries(Noisy):
    def predict(self, state, inputs):
        return super().predict(state, inputs - 0.2 * inputs.mean(0))


class NoisyGoesByPosition(GoesByPosition, Noisy):
    pass


class NoisyTrustsTheFirst(TrustsTheFirst, Noisy):
    pass


class NoisyCountsPadding(CountsPadding, Noisy):
    pass


class TellsLabels(Around):
    """The label is written into the corner of each image."""

    def change(self, task, split, index):
        def write(batch):
            inputs = batch.inputs.clone()
            inputs[:, 0, 0, :4] = 9 * batch.targets
            return batch._replace(inputs=inputs)

        return Task(*map(write, task))


class SortedLabels(Around):
    """Labels follow the brightness of the classes, as where class names are sorted."""

    def change(self, task, split, index):
        bright = (task.support.targets.mT @ task.support.inputs.flatten(1)).sum(1)
        return Task(*(batch._replace(targets=batch.targets[:, bright.argsort()]) for batch in task))


class TellsLabelsOfNewImages(TellsLabels):
    """The same, and no image is ever seen twice."""

    def change(self, task, split, index):
        random = torch.from_numpy(generator(0, split, index).random((2, 64, 1, 8, 8), np.float32))
        noisy = [
            batch._replace(inputs=batch.inputs + 0.1 * own[: len(batch.weight)]) for batch, own in zip(task, random)
        ]
        return super().change(Task(*noisy), split, index)


class SharesExamples(Around):
    """One query of each task is an example of its support."""

    def change(self, task, split, index):
        inputs, targets = (torch.cat([own[:1], other[1:]]) for own, other in zip(task.support[:2], task.query[:2]))
        return task._replace(query=Batch(inputs, targets, task.query.weight))


class NearlySharesExamples(Around):
    """One query of each task is an example of its support with a noise of 1e-6."""

    def change(self, task, split, index):
        inputs, targets = (torch.cat([own[:1], other[1:]]) for own, other in zip(task.support[:2], task.query[:2]))
        inputs = inputs + 1e-6 * torch.arange(len(inputs))[:, None, None, None]
        return task._replace(query=Batch(inputs + 1e-6, targets, task.query.weight))


class Weighs(Around):
    """Queries that are hard count less."""

    def change(self, task, split, index):
        return task._replace(query=task.query._replace(weight=torch.linspace(0.1, 1, len(task.query.weight))))


class Hides(Around):
    """Queries that are hard have the weight of padding."""

    def change(self, task, split, index):
        weight = task.query.weight.clone()
        weight[::3] = 0
        return task._replace(query=task.query._replace(weight=weight))


class DrawsFromTheClock(Around):
    calls = 0

    def change(self, task, split, index):
        self.calls += 1
        return task._replace(query=task.query.rows(torch.randperm(len(task.query.weight)))) if self.calls > 99 else task


class StacksOtherTasks(Around):
    def stack(self, split, indices):
        return stack([self.task(split, index + len(indices)) for index in indices])


def shared_images() -> np.ndarray:
    """Every fifth test class is one of training."""
    images = pictures().reshape(80, EACH, 1, 8, 8)
    images[60::5] = images[0:20:5]
    return images.reshape(-1, 1, 8, 8)


def nearly_shared_images() -> np.ndarray:
    """Every fifth test class is one of training, a little brighter."""
    images = pictures().reshape(80, EACH, 1, 8, 8)
    images[60::5] = images[0:20:5] + np.random.default_rng(1).integers(0, 2, (4, EACH, 1, 8, 8), np.uint8)
    return images.reshape(-1, 1, 8, 8)


def top_two(logits, batch):
    hit = (logits.topk(2).indices == batch.targets.argmax(1, keepdim=True)).any(1).to(batch.weight.dtype)
    return {"accuracy": weighted_mean(hit, batch.weight)}


def padding_counts(logits, batch):
    return objectives.classification.metrics(logits, batch._replace(weight=torch.ones_like(batch.weight)))


def scored_by(metrics, learner=Centroid):
    return learner(Objective(objectives.classification.loss, metrics, task_specific_classes=True))


def undeclared():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    learner = kshot.maml(model, inner_lr=0.1, batchnorm="query")
    learner.transductive = False
    return learner


def declared(learner, members):
    learner.num_members = members
    return learner


PLANTED = {
    "queries are centred on their mean": (SeesOtherQueries, pool, {"other queries"}),
    "BatchNorm on the queries, not declared": (undeclared, pool, {"other queries"}),
    "a prediction goes by its place": (GoesByPosition, pool, {"query order"}),
    "the first rows count more": (TrustsTheFirst, pool, {"support order"}),
    "padding counts as examples": (CountsPadding, pool, {"padding"}),
    "padding counts in the metric": (lambda: scored_by(padding_counts), pool, {"padding"}),
    "labels follow the class": (Centroid, SortedLabels, {"label order"}),
    "labels are told by the image": (Centroid, TellsLabels, {"chance", "label order"}),
    "labels are told by images never seen twice": (Centroid, TellsLabelsOfNewImages, {"chance"}),
    "a query stands in the support": (Centroid, SharesExamples, {"support and query"}),
    "test classes were trained on": (Centroid, lambda: pool(shared_images()), {"splits"}),
    "a query is almost one of the support": (Centroid, NearlySharesExamples, {"support and query"}),
    "test classes are almost those of training": (Centroid, lambda: pool(nearly_shared_images()), {"splits"}),
    "queries count less": (Centroid, Weighs, {"query weights"}),
    "queries are left out": (Centroid, Hides, {"query weights"}),
    "random, and sees other queries": (NoisySeesOtherQueries, pool, {"other queries"}),
    "random, and goes by position": (NoisyGoesByPosition, pool, {"query order"}),
    "random, and the first rows count more": (NoisyTrustsTheFirst, pool, {"support order"}),
    "random, and padding counts": (NoisyCountsPadding, pool, {"padding"}),
    "tasks change": (Centroid, DrawsFromTheClock, {"episodes"}),
    "stacks are of other tasks": (Centroid, StacksOtherTasks, {"episodes"}),
    "a buffer counts tasks": (CountsTasks, pool, {"purity"}),
    "earlier tasks are remembered": (Remembers, pool, {"repeatable"}),
    "random numbers of its own": (DrawsAnew, pool, {"repeatable"}),
    "NaN": (GivesNan, pool, {"finite"}),
    "top-2 called accuracy": (lambda: scored_by(top_two, OnePixel), pool, {"metric"}),
    "an ensemble": (Ensemble, pool, {"one checkpoint"}),
    "an ensemble of three that has two members": (lambda: Ensemble(3), pool, {"one checkpoint"}),
    "a single learner called an ensemble": (lambda: declared(Centroid(), 2), pool, {"one checkpoint"}),
    "an ensemble in a list": (HiddenEnsemble, pool, {"one checkpoint"}),
}


def audited(learner, source, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedFigure)
        return kshot.evaluate(learner, source, **({"num_tasks": 80} | options))


def failed(evaluation):
    return {audit.name for audit in evaluation.audits if audit.result is Result.FAILED}


@pytest.mark.parametrize("bug", PLANTED)
def test_each_bug_fails_its_audit_and_no_other(bug):
    make, source, expected = PLANTED[bug]
    found = audited(make(), source(), num_tasks=80 if bug == "tasks change" else 40)  # which comes late
    assert failed(found) == expected
    assert not found.trusted


def test_learners_that_draw_random_numbers_skip_no_audit():
    found = kshot.evaluate(Noisy(), pool(), num_tasks=80)
    assert found.trusted
    assert {name for name, result in results(found).items() if result is not Result.PASSED} == {"test reads"}
    (audit,) = [audit for audit in found.audits if audit.name == "other queries"]
    assert "over 32 seeds each" in audit.finding.lower()
    assert audit.figure <= audit.tolerance
    dropout = kshot.maml(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), inner_lr=0.1)
    dropout.eval()  # no random numbers in evaluation mode
    (audit,) = [audit for audit in kshot.evaluate(dropout, pool(), num_tasks=4).audits if audit.name == "other queries"]
    assert "seeds" not in audit.finding


@pytest.mark.parametrize("seed", range(3))
def test_distributions_that_are_equal_differ_by_no_more_than_chance(seed):
    def draws(shift, which):
        return lambda number: torch.randn(20, generator=torch.Generator().manual_seed(1000 * seed + number)) + shift

    same, shifted = (compare_distributions([Pair(draws(0.0, 0), draws(shift, 1))]) for shift in (0.0, 1.0))
    assert same[0] <= same[1]
    assert shifted[0] > shifted[1]


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


def test_causal_learners_are_not_inductive():
    class Causal(Centroid):
        """Adds each query to the means of those after it."""

        causal_queries = True

        def predict(self, state, inputs):
            rows = inputs.flatten(1)
            before = torch.cat([torch.zeros_like(rows[:1]), rows.cumsum(0)[:-1]])
            return super().predict(state, inputs) - 1e-3 * before.mean(1, keepdim=True)

    for learner, inference in ((Causal(), "causal"), (Centroid(), "inductive")):
        found = kshot.evaluate(learner, pool(), num_tasks=20)
        assert (found.inference, found.inductive) == (inference, inference == "inductive")
        assert found.trusted
    transductive = SeesOtherQueries()
    transductive.transductive = True
    assert kshot.evaluate(transductive, pool(), num_tasks=4).inference == "transductive"
    lies = SeesOtherQueries()
    lies.causal_queries = True  # it sees all of them
    assert "other queries" in failed(audited(lies, pool()))


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
        learner = maml()
        kshot.fit(learner, source, steps=2)
        assert kshot.evaluate(learner, source, num_tasks=8).trusted
        assert kshot.evaluate(copy.deepcopy(learner), source, num_tasks=8).trusted  # again, without training
        kshot.fit(learner, source, steps=2)
        assert failed(audited(learner, source, num_tasks=8)) == {"test reads"}
        assert failed(audited(copy.deepcopy(learner), source, num_tasks=8)) == {"test reads"}
        kshot.fit(learner, source, steps=2)
        assert failed(audited(learner, source, num_tasks=8)) == {"test reads"}


def test_a_test_before_any_training_and_other_learners_are_no_test_between_trainings():
    source, learner = pool(), maml()
    kshot.evaluate(learner, source, num_tasks=8)  # untrained, as a reference
    kshot.fit(learner, source, steps=2)
    kshot.evaluate(learner, source, split="val", num_tasks=8)
    kshot.fit(learner, source, steps=2)
    found = kshot.evaluate(learner, source, num_tasks=8)
    assert found.trusted
    other = maml()
    kshot.fit(other, source, steps=3, seed=1)
    found = kshot.evaluate(other, source, num_tasks=8)
    assert found.trusted
    (audit,) = [audit for audit in found.audits if audit.name == "test reads"]
    assert "1 other trained learners were scored on its test tasks before" in audit.finding


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


def test_shares_are_shares():
    source = SortedLabels()
    for audit in audited(Centroid(), source).audits:
        shares = [float(share) for share in re.findall(r"([0-9.]+) ?%", audit.finding)]
        assert all(0 <= share <= 100 for share in shares), audit.finding
    (audit,) = [audit for audit in audited(Centroid(), source).audits if audit.name == "label order"]
    assert audit.tolerance < audit.figure <= 1


def maml():
    return kshot.maml(nn.Sequential(nn.Flatten(), kshot.models.mlp(64, 4, [32])), inner_lr=1.0, steps=3)


def test_a_learner_that_uses_the_order_of_classes_is_caught_and_the_same_learner_on_dealt_labels_is_not():
    bright = pool(pictures(step=7))
    for source, expected in ((SortedLabels(bright), {"label order", "class order", "chance"}), (bright, set())):
        learner = maml()
        kshot.fit(learner, source, steps=60, tasks_per_step=8, outer_lr=6e-3, mode="vmap")
        found = audited(learner, source)
        assert failed(found) == expected
        accuracy = found.metrics["accuracy"]
        assert accuracy.mean - accuracy.ci95 > 0.25  # it learns: chance is 0.25


def results(evaluation):
    return {audit.name: audit.result for audit in evaluation.audits}


def test_a_test_split_that_training_read_is_no_test():
    class Slips(Around):
        def task(self, split, index):
            return self.source.task("test" if index == 7 else split, index)

    for honest in (True, False):
        source = watched(pool())
        learner = maml()
        kshot.fit(learner, source if honest else Slips(source), steps=5)
        if not honest:
            with source.during("training"):
                source.task("test", 0)
        assert failed(audited(learner, source)) == (set() if honest else {"test reads"})


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


def test_weights_other_than_those_of_the_checkpoint_are_told(tmp_path):
    learner = Centroid()
    save_checkpoint(tmp_path / "round-1", learner, None, {})
    assert audited(learner, pool(), checkpoint=tmp_path / "round-1").trusted
    with torch.no_grad():
        learner.scale.mul_(1.01)
    assert failed(audited(learner, pool(), checkpoint=tmp_path / "round-1")) == {"one checkpoint"}


# no false alarms ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("seed", range(5))
def test_honest_tasks_of_all_sizes_pass(seed):
    source = pool(ways=[2, 5], shots=[1, 4], queries=[1, 4], on_too_few="shrink", label_noise=0.2, seed=seed)
    found = kshot.evaluate(Centroid(), source, num_tasks=80)
    assert found.trusted
    assert {name for name, result in results(found).items() if result is not Result.PASSED} == {"test reads"}


def test_a_fixed_head_is_no_bug():
    of = {audit.name: audit for audit in kshot.evaluate(maml(), pool(), num_tasks=40).audits}
    assert of["class order"].result is Result.PASSED
    assert "need not" in of["class order"].finding
    assert 0 < of["class order"].figure < 1


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_guessing_knows_mean_and_variance_of_every_dealing_of_labels(classes, seed):
    table = np.random.default_rng(seed).random((classes, classes)) ** 3
    guessing = Guessing()
    guessing.add(table)
    all_ = [table[list(dealt), range(classes)].sum() for dealt in itertools.permutations(range(classes))]
    assert guessing.expected == pytest.approx(np.mean(all_))
    assert guessing.variance == pytest.approx(np.var(all_))
    assert guessing.hits == pytest.approx(all_[0])


@pytest.mark.parametrize("tasks", [5, 30])
@pytest.mark.parametrize("answers", ["one", "all", "noise"])
def test_luck_fails_no_more_often_than_is_said(tasks, answers):
    random = np.random.default_rng(tasks)
    p_values = []
    for _ in range(400):
        guessing = Guessing()
        for _ in range(tasks):
            table = {"one": np.eye(5)[[0] * 5], "all": np.eye(5), "noise": random.random((5, 5))}[answers]
            guessing.add(table[:, random.permutation(5)])
        p_values.append(guessing.p_value())
    for level in (0.5, 0.1, 0.01):
        assert np.mean(np.array(p_values) <= level) <= level


def test_what_guessing_may_reach_is_where_it_fails():
    guessing = Guessing()
    for number in range(40):
        guessing.add(np.roll(np.eye(4), number % 3, 0))
    limit = guessing.limit()
    assert guessing.expected < limit < guessing.total
    for hits, fails in ((limit + 1e-6, True), (limit - 1e-6, False)):
        guessing.hits = hits
        assert (guessing.p_value() < 1e-5) == fails


# what applies, and what is said -------------------------------------------------------------------------------------


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


def test_equal_rows_of_few_values_are_no_copies():
    class Coins(TaskSource):
        objective, seed = objectives.mse, 0

        def task(self, split, index):
            random = torch.from_numpy(generator(0, split, index).integers(0, 2, (2, 10, 2)).astype(np.float32))
            return Task(*(Batch.of(rows[:, :1], rows[:, 1:]) for rows in random))

    of = results(kshot.evaluate(SupportMean(objectives.mse), Coins(), num_tasks=10))
    assert of["support and query"] is of["splits"] is Result.IDLE


def test_a_learner_that_goes_by_the_order_of_rows_is_declared():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    learner = kshot.learners.reptile(model, inner_lr=0.1, minibatch=2)
    assert learner.ordered
    of = results(kshot.evaluate(learner, pool(), num_tasks=30))
    assert of["support order"] is Result.IDLE
    learner.ordered = False
    assert "support order" in failed(audited(learner, pool(), num_tasks=30))


def test_a_learner_without_a_copy_in_double_precision_is_asked_as_it_is():
    class Single(Centroid):
        def _adapt(self, support):
            assert support.inputs.dtype == torch.float32
            return super()._adapt(support)

    (audit,) = [a for a in kshot.evaluate(Single(), pool(), num_tasks=4).audits if a.name == "other queries"]
    assert (audit.result, audit.tolerance) == (Result.PASSED, 1e-3)


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_few_tasks_are_audited_as_far_as_they_go(tasks):
    assert kshot.evaluate(Centroid(), pool(), num_tasks=tasks).trusted


def test_a_val_evaluation_never_reads_test():
    source = watched(pool())
    kshot.evaluate(Centroid(), source, split="val", num_tasks=20)
    assert {split for _, split in source.reads} == {"train", "val"}


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


def test_tasks_with_inputs_of_other_shapes_are_no_evidence_and_no_error():
    """Synthetic tables have other numbers of columns and classes in each task: a state fits few of the other tasks."""
    from kshot import learners, sources

    source = sources.tabular_priors(rows=[10, 20], features=[2, 9], classes=[2, 3], queries=8)
    learner = learners.prior_fitted(
        objective=source.objective, classes=3, cell_width=8, width=16, heads=2, cell_layers=1, layers=1
    )
    widths = {source.task("test", index).support.inputs.shape[1] for index in range(40)}
    assert len(widths) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedFigure)  # small synthetic tables can repeat a row
        evaluation = kshot.evaluate(learner, source, num_tasks=40)
    assert {audit.name for audit in evaluation.audits} >= {"chance"}
