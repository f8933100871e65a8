"""Histogram boosting of the pooled training rows, alone or with statistics of the support set as features.

Shape legend: n rows, F inputs, K statistics, D numbers of a target, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot.learner import Learner
from kshot.learners.baselines.pool import FIRST, unwatched
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.source import TaskSource, draw
from kshot.types import Batch, Split, Task, Tree

LEAST = 1e-6
"""Smallest probability of a class."""

Form = Literal["levels", "deviations"]
"""What is boosted: the targets, or their difference to the shrunken mean of the support set."""


class Boosting:
    """scikit-learn's histogram boosting as a function of rows: (n, F) to numbers (n, D), or log-probabilities (n, C).

    Args:
        inputs, targets: the training rows, (n, F) and (n, D), one-hot for classes; a model is fitted for each number.
        classifies: whether targets are classes; a class without rows has the probability `LEAST`.
        options: of `HistGradientBoostingRegressor` and `HistGradientBoostingClassifier`.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, *, classifies: bool, **options: Any) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        rows, columns = inputs.double().numpy(), targets.double().numpy()
        options = {"early_stopping": False, "random_state": 0, "max_leaf_nodes": 15, **options}
        self.num_outputs, self.classes = columns.shape[1], np.arange(0)
        self.models: list[Any] = []
        if not classifies:
            self.models = [HistGradientBoostingRegressor(**options).fit(rows, column) for column in columns.T]
            return
        labels = columns.argmax(1)
        self.classes = np.unique(labels)
        if len(self.classes) > 1:
            self.models = [HistGradientBoostingClassifier(**options).fit(rows, labels)]

    def __call__(self, inputs: Tensor) -> Tensor:
        rows = inputs.double().numpy()
        if not len(rows):
            return torch.zeros(0, self.num_outputs).double()
        if not len(self.classes):
            return torch.from_numpy(np.stack([model.predict(rows) for model in self.models], 1)).double()
        probabilities = np.zeros((len(rows), self.num_outputs))
        probabilities[:, self.classes] = self.models[0].predict_proba(rows) if self.models else 1.0
        return torch.from_numpy(probabilities).clamp_min(LEAST).log()


def out_of_fold(
    fit: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]], inputs: Tensor, targets: Tensor, group: np.ndarray
) -> Tensor:
    """Predictions (n, ...) for each row by a model that was fitted to other groups, in up to 5 folds."""
    from sklearn.model_selection import GroupKFold

    num_groups = int(group[-1]) + 1
    if num_groups < 2:
        return fit(inputs, targets)(inputs)
    predicted = torch.zeros(0)
    for train, test in GroupKFold(min(5, num_groups)).split(group, groups=group):
        values = fit(inputs[train], targets[train])(inputs[test])
        if not len(predicted):
            predicted = torch.zeros(len(inputs), *values.shape[1:], dtype=values.dtype)
        predicted[test] = values
    return predicted


class BoostedStatistics(Learner):
    """Boosting whose features are a row's inputs and statistics of the support set, fitted to training tasks.

    The statistics are the mean and standard deviation of the targets, or the smoothed shares of the classes, the
    logarithm of the number of rows, and the mean of the inputs. They are computed from the support sets of training
    tasks as they are at test time, so that the model learns how much a few rows say. The state is
    `{"statistics": (K,), "mean": (D,)}`.

    Args:
        source: of the tasks; only training tasks are read.
        tasks: training tasks, by default those of `training_tasks`.
        form: "levels", or "deviations" from the mean of the support shrunk by one row, for numbers only, since trees
            predict no level beyond those of the training groups.
        options: of `Boosting`.
    """

    def __init__(
        self,
        source: TaskSource,
        tasks: Sequence[Task] = (),
        *,
        form: Form = "levels",
        **options: Any,
    ) -> None:
        super().__init__(source.objective)
        source = unwatched(source)
        self.form = form
        self.shape = tuple(source.task("train", FIRST).support.targets.shape[1:])
        self.model = self._fit(tasks or training_tasks(source), **options)
        self.noise = torch.ones(1).double()
        if self.objective.predicts == "distribution":
            self.noise = self._held_out_variance(source, **options)

    def _fit(self, tasks: Sequence[Task], **options: Any) -> Boosting:
        rows, targets = (torch.cat(parts) for parts in zip(*(self._rows(task) for task in tasks)))
        return Boosting(rows, targets, classifies=self.objective.classifies, **options)

    def _rows(self, task: Task) -> tuple[Tensor, Tensor]:
        """The rows of a task's query as they are boosted, and what is boosted."""
        state, real = self._adapt(task.support), task.query.weight > 0
        targets = task.query.targets[real].double().flatten(1)
        return self._joined(state, task.query.inputs[real]), targets - self._level(state)

    def _held_out_variance(self, source: TaskSource, **options: Any) -> Tensor:
        """Mean squared error (D,) in groups that a model was not fitted to; in other tasks if there are no groups."""
        fitted, held = parts_of(source)
        model = self._fit(training_tasks(fitted), **options)
        errors = []
        for task in training_tasks(held, max_rows=2_000, first=FIRST + FIRST):
            rows, targets = self._rows(task)
            errors.append((model(rows) - targets).square())
        return torch.cat(errors).mean(0)

    def _adapt(self, support: Batch) -> Tree:
        weight = support.weight.detach().cpu().double()
        real = weight > 0
        weight, targets = weight[real], support.targets.detach().cpu().double()[real].flatten(1)
        inputs, count = support.inputs.detach().cpu().double()[real], weight.sum()
        if self.objective.classifies:
            mean = (weight @ targets + 1 / targets.shape[1]) / (count + 1)
            spread = torch.zeros(0).double()
        else:
            mean = weight @ targets / count.clamp_min(1e-12)
            spread = (weight @ (targets - mean).square() / count.clamp_min(1e-12)).sqrt()
        center = weight @ inputs / count.clamp_min(1e-12)
        shrunken = mean * count / (count + 1)
        return {"statistics": torch.cat([mean, spread, count.log1p()[None], center]), "mean": shrunken}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        state = {name: leaf.cpu() for name, leaf in state.items()}
        values = self.model(self._joined(state, inputs.detach().cpu())) + self._level(state)
        shape = len(inputs), *self.shape
        prediction = values.reshape(shape).to(inputs)
        if self.objective.predicts != "distribution":
            return prediction
        std = self.noise.clamp_min(LEAST).sqrt().expand_as(values).reshape(shape)
        return {"mean": prediction, "std": std.to(inputs)}

    def _joined(self, state: Tree, inputs: Tensor) -> Tensor:
        rows = inputs.double()
        return torch.cat([rows, state["statistics"].expand(len(rows), -1)], 1)

    def _level(self, state: Tree) -> Tensor:
        use_mean = self.form == "deviations" and not self.objective.classifies
        return state["mean"] if use_mean else torch.zeros_like(state["mean"])


def parts_of(source: TaskSource) -> tuple[TaskSource, TaskSource]:
    """Two sources of the training groups, every fifth of which is in the second; the source twice without groups."""
    names = list(source.members("train"))
    if not isinstance(source, GroupTasks) or len(names) < 2:
        return source, source
    held = set(names[:: min(5, len(names))])
    groups = source.groups("train")
    sources = []
    for chosen in (groups.keys() - held, held):
        part: dict[Split, dict[str, np.ndarray]] = {"train": {name: groups[name] for name in names if name in chosen}}
        sources.append(
            GroupTasks(
                source.examples, part, objective=source.objective, shots=source.shots.plain(), order=source.order,
                queries=source.queries["train"].plain(), gap=source.gap, on_too_few=source.on_too_few, seed=source.seed,
            )
        )  # fmt: skip
    return sources[0], sources[1]


def training_tasks(source: TaskSource, *, max_rows: int = 10_000, first: int = FIRST) -> list[Task]:
    """Training tasks from number `first` on, at most 2,000, with about `max_rows` query rows in all.

    A row is the query of at most about 10 tasks.
    """
    source = unwatched(source)
    max_rows = min(max_rows, 10 * sum(source.sizes("train").values()) or max_rows)
    per_task = len(source.task("train", first).query.weight)
    end = first + max(1, min(2_000, max_rows // max(per_task, 1)))
    return [
        task for start in range(first, end, 100) for task in draw(source, "train", range(start, min(start + 100, end)))
    ]


class EncodedBoosting:
    """Boosting of inputs whose random codes of categories are replaced by scikit-learn's target encoding.

    A source of tables encodes a column of more than 32 words as random codes, which trees cannot split well. Each code
    is one word, so that the words can be recovered: rows of equal code have equal words. The training rows are encoded
    by cross-fitting, so that no row is encoded by its own target; unknown words become the mean.

    Args:
        inputs, targets, classifies, options: as in `Boosting`.
        codes: the places of the features of each such column.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, codes: Sequence[Sequence[int]], *, classifies: bool, **options: Any
    ) -> None:
        from sklearn.model_selection import KFold
        from sklearn.preprocessing import TargetEncoder

        self.codes = [list(places) for places in codes]
        coded = {place for places in self.codes for place in places}
        self.kept = [place for place in range(inputs.shape[1]) if place not in coded]
        self.words: list[dict[bytes, int]] = []
        for places in self.codes:
            distinct = dict.fromkeys(_keys(inputs, places))
            self.words.append({key: number for number, key in enumerate(distinct)})
        columns = [targets.numpy().argmax(1)] if classifies else list(targets.double().numpy().T)
        self.encoders, numbers, encoded = [], self._places(inputs), [inputs[:, self.kept].double()]
        for column in columns:
            num_values = len(np.unique(column))
            if num_values > 1:  # a constant target says nothing of the words
                kind = "continuous" if not classifies else "binary" if num_values == 2 else "multiclass"
                make = partial(TargetEncoder, target_type=kind)
                self.encoders.append(make().fit(numbers, column))
                crossed = self.encoders[-1].transform(numbers)
                for fitted, held in KFold(min(5, len(column)), shuffle=True, random_state=0).split(numbers):
                    if len(np.unique(column[fitted])) == num_values:  # else a rare class has no column in this fold
                        crossed[held] = make().fit(numbers[fitted], column[fitted]).transform(numbers[held])
                encoded.append(torch.from_numpy(crossed).double())
        self.boosting = Boosting(torch.cat(encoded, 1), targets, classifies=classifies, **options)

    def __call__(self, inputs: Tensor) -> Tensor:
        if not len(inputs):
            return self.boosting(inputs)
        places = self._places(inputs)
        encoded = [torch.from_numpy(encoder.transform(places)).double() for encoder in self.encoders]
        return self.boosting(torch.cat([inputs[:, self.kept].double(), *encoded], 1))

    def _places(self, inputs: Tensor) -> np.ndarray:
        """The number of the word of each row and column, int64 (n, columns); -1 for words without training rows."""
        pairs = zip(self.codes, self.words)
        return np.array([[words.get(key, -1) for key in _keys(inputs, places)] for places, words in pairs]).T


def _keys(inputs: Tensor, places: Sequence[int]) -> list[bytes]:
    return [row.tobytes() for row in inputs[:, places].float().numpy().round(4)]
