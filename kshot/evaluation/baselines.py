"""The learners without meta-learning that suit a source, fitted to its training split and tuned on validation tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.learners.baselines import (
    clicks,
    features,
    functions,
    known_classes,
    label_names,
    language,
    masks,
    plain_table,
    ratings,
    series,
    tables,
)
from kshot.learners.baselines.simple import SupportMean, nearest_centroid
from kshot.learners.pooling.fitted import FittedToTraining
from kshot.objectives import Objective, rates_items
from kshot.tasks.names import without_names
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource, check_source
from kshot.types import Batch, Tree

Candidates = Callable[[], Sequence[Learner]]
"""Fits a baseline to the training split, and gives the learners among which validation tasks choose."""

LOSS = Target("loss", at_least=False, value=0.0)

FIELDS: Sequence[Callable[[TaskSource], Mapping[str, Candidates]]] = (
    tables.baselines,
    series.baselines,
    language.baselines,
    ratings.baselines,
    clicks.baselines,
    lambda source: functions.baselines(source) or plain_table.baselines(source) or features.baselines(source),
    label_names.baselines,
    known_classes.baselines,
    masks.baselines,
)
"""What an expert of each field would use, for the sources of that field."""


def of_fields(source: TaskSource) -> dict[str, Candidates]:
    """The baselines of the fields that a source belongs to, by name."""
    return {name: candidates for field in FIELDS for name, candidates in field(source).items()}


def without_model(source: TaskSource) -> dict[str, Candidates]:
    """The baselines that need nothing but the support set, by name; {} for ratings, whose inputs are items."""
    objective = source.objective
    if rates_items(objective):
        return {}
    if objective.classifies:
        return {"centroid": lambda: [nearest_centroid(objective)]}
    if objective.predicts in ("values", "distribution", "labels"):
        return {"support_mean": lambda: [SupportMean(objective)]}
    return {}


def best_first(
    candidates: Sequence[Learner],
    source: TaskSource,
    target: Target,
    *,
    num_val_tasks: int,
    device: torch.device | str | None = None,
) -> list[Learner]:
    """The candidates with a finite figure on validation tasks, best first; a single one is not tried.

    Args:
        target: its metric is compared, in its direction.
        device: where the candidates are moved to.
    """
    candidates = [each.to(device) for each in candidates] if device is not None else list(candidates)
    if len(candidates) == 1:
        return list(candidates)
    means = []
    with during(source, "tuning"):
        for each in candidates:
            result = evaluate(each, source, split="val", num_tasks=num_val_tasks, audit=False)
            means.append((-1 if target.at_least else 1) * target.of(result.metrics).mean)
    finite = [number for number, mean in enumerate(means) if math.isfinite(mean)]
    return [candidates[number] for number in sorted(finite, key=means.__getitem__)]


def baselines(source: TaskSource, *, num_val_tasks: int = 20) -> dict[str, Learner]:
    """What an expert would use on these tasks without meta-learning, by name: to be evaluated beside a learner.

    Each is fitted to the training split, and its hyperparameters are those with the least loss on validation tasks.
    Baselines that need a model, such as fine-tuning, are `learners.fine_tune` and `learners.from_scratch`; run files
    have them all.

    Example:
        >>> tasks = kshot.sources.sinusoids(shots=3)
        >>> found = {name: kshot.evaluate(each, tasks, num_tasks=20) for name, each in baselines(tasks).items()}
        >>> found["gaussian_process"].metrics["mse"].mean < found["support_mean"].metrics["mse"].mean
        True
    """
    check_source(source)
    source = without_names(source)
    chosen = dict[str, Learner]()
    for name, candidates in (of_fields(source) | without_model(source)).items():
        ranked = best_first(candidates(), source, LOSS, num_val_tasks=num_val_tasks)
        if ranked:
            chosen[name] = ranked[0]
    return chosen


class Baseline(FittedToTraining):
    """A baseline as the learner of a run file, so that it can be kept, adapted and served like any other.

    It is fitted to the training split when a run starts, and again when a run folder is opened: its fitted values are
    those of a library, and not in a checkpoint.

    Args:
        name: one of those that `baselines` gives for the source.
        objective: objective of the tasks.
        target: metric by which its hyperparameters are chosen, and its direction, as the target of a run.
        num_val_tasks: validation tasks on which they are.

    Raises:
        ValueError: when fitted, no baseline for the source has this name, or no setting of it gives a finite figure.

    Example:
        >>> source = kshot.sources.sinusoids()
        >>> learner = Baseline("support_mean", source.objective)
        >>> learner.fit_to_training(source)
        >>> learner(source.task("test", 0)).shape
        torch.Size([])
    """

    def __init__(self, name: str, objective: Objective, *, target: Target = LOSS, num_val_tasks: int = 20) -> None:
        super().__init__(objective)
        self.name, self.target, self.num_val_tasks = name, target, num_val_tasks
        self.register_buffer("fitted", torch.zeros(()))
        self._chosen: tuple[Learner, ...] = ()  # no submodule, as it is not in a checkpoint

    def fit_to_training(self, source: TaskSource) -> None:
        """Fit the baseline, and choose its hyperparameters on validation tasks."""
        known = of_fields(source) | without_model(source)
        if self.name not in known:
            raise ValueError(f"baseline {self.name!r} does not suit these tasks, which {', '.join(known)} do")
        ranked = best_first(known[self.name](), source, self.target, num_val_tasks=self.num_val_tasks)
        if not ranked:
            raise ValueError(f"no setting of baseline {self.name!r} gives a finite {self.target.metric} on these tasks")
        chosen = ranked[0].to(self.fitted.device).eval()
        self.transductive, self.ordered = chosen.transductive, chosen.ordered
        self.causal_queries, self.num_members = chosen.causal_queries, chosen.num_members
        self._chosen = (chosen,)
        self.fitted.fill_(1)

    def _adapt(self, support: Batch) -> Tree:
        return self._fitted_one().adapt(support)

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        return self._fitted_one().predict(state, inputs)

    def _fitted_one(self) -> Learner:
        if not self._chosen:
            raise ValueError(f"baseline {self.name!r} is not fitted yet: call fit_to_training")
        return self._chosen[0]


def fit_baselines(learner: Learner, source: Callable[[], TaskSource]) -> None:
    """Fit the baselines that a learner is, or has among its parts; `source` is called if there are any."""
    if of_learner := baselines_of(learner):
        tasks = source()
        for each in of_learner:
            each.fit_to_training(tasks)


def baselines_of(learner: Learner) -> list[Baseline]:
    """The baselines that a learner is, or has among its parts."""
    return [part for part in learner.modules() if isinstance(part, Baseline)]


def baseline(name: str, objective: Objective, *, target: str = str(LOSS)) -> Baseline:
    """A `Baseline`, for run files: `learner: {kind: kshot.evaluation.baselines:baseline, name: mixed_model}`."""
    return Baseline(name, objective, target=Target.parse(target))
