"""Honest tasks and learners, and bugs that are planted in them."""

import warnings

import numpy as np
import torch
from torch import nn

import kshot
from kshot import Batch, Learner, Task, objectives
from kshot.evaluation.audit.findings import Result
from kshot.evaluation.audit.run import UntrustedFigure
from kshot.objectives import Objective, weighted_mean
from kshot.tasks import ClassTasks, TaskSource
from kshot.tasks.source import generator
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


def maml(steps=3):
    return kshot.maml(nn.Sequential(nn.Flatten(), kshot.models.mlp(64, 4, [32])), inner_lr=1.0, steps=steps)


def results(evaluation):
    return {audit.name: audit.result for audit in evaluation.audits}
