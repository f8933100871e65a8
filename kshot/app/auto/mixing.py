"""A mixture of the best plans and simple baselines, with weights that are learned on validation tasks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from kshot.app.auto.plans import MIXTURE, Plan
from kshot.app.auto.race import Entrant, Race
from kshot.app.progress import Display
from kshot.app.run import train
from kshot.app.trained import load
from kshot.evaluation.baselines import Baseline
from kshot.evaluation.evaluate import Scored, evaluate, units_of
from kshot.evaluation.intervals import BOUNDS, Interval, interval
from kshot.files import owned
from kshot.learner import Learner
from kshot.learners.choosing.choose import mixed
from kshot.learners.choosing.mixture import Mixture, fit_weights
from kshot.tasks.read_log import during
from kshot.types import Batch, Tree, tree_leaves

CANDIDATES, MOST_PARTS = 6, 4
"""How many of the best are weighed, and how many of them a mixture has at most."""
LEAST_WEIGHT = 0.05
MOST_NUMBERS = 2**27
"""Of predictions that are kept to find the weights."""


def mix(race: Race, num_tasks: int, seconds: float) -> None:
    """Let a mixture of the best entrants enter the race, if it is better than each on validation tasks.

    Its figure is cross-fitted: the weights for each half of the tasks, or of their units, are those of the other half.
    """
    candidates = race.ranked()[:CANDIDATES]
    if MIXTURE in race.entrants or len(candidates) < 2 or race.source.objective.predicts is None:
        return
    entrant = race.entrants[MIXTURE] = Entrant(Plan(MIXTURE, {"kind": MIXTURE}))
    race.time(entrant, lambda: _measure(race, entrant, candidates, num_tasks), seconds)


def _measure(race: Race, entrant: Entrant, candidates: Sequence[Entrant], num_tasks: int) -> dict[str, Any]:
    """Find the weights of a mixture, make its run folder, and return its cross-fitted figure; ValueError if it is no
    better than the best candidate."""
    learners = [_learner(race, each) for each in candidates]
    predictions, queries, figures = _predict(race, learners, num_tasks)
    fold_T = _folds(race, num_tasks)
    values = [0.0] * num_tasks
    for fold in (0, 1):
        others = [number for number in range(num_tasks) if fold_T[number] != fold]
        weight_P = _weights(race, [predictions[t] for t in others], [queries[t] for t in others])
        for number in set(range(num_tasks)).difference(others):
            values[number] = _figure(race, predictions[number], queries[number], weight_P)
    metric, units = race.target.metric, units_of(race.source, "val", num_tasks)
    figure = interval(values, units, bounds=BOUNDS.get(metric))
    best = (max if race.target.at_least else min)(figures, key=lambda each: each.mean)
    if not (figure.mean > best.mean if race.target.at_least else figure.mean < best.mean):
        raise ValueError(f"it is no better than its best part: {figure} and {best}")
    weight_P = _weights(race, predictions, queries)
    taken = [number for number in range(len(candidates)) if weight_P[number] > 0]
    if len(taken) < 2:
        raise ValueError("one part has all the weight")
    parts = {candidates[number].plan.slug: candidates[number].plan for number in taken}
    of_slug = dict(zip(parts, taken))
    entrant.plan = Plan(
        MIXTURE,
        {
            "kind": MIXTURE,
            "among": {
                slug: plan.learner | ({"model": plan.model} if plan.model else {}) for slug, plan in parts.items()
            },
            "weights": {slug: round(float(weight_P[number]), 4) for slug, number in of_slug.items()},
        },
    )
    folder = race.folder / entrant.plan.slug
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted call

    def fill(learner: Learner) -> None:
        assert isinstance(learner, Mixture)
        for slug, part in learner.parts.items():
            part.load_state_dict(learners[of_slug[slug]].state_dict())

    with owned(folder), Display(Console(quiet=True), metric) as display:
        spec = race.make_spec(entrant.plan, {"rounds": 1, "minutes": None})
        trained = train(spec, folder, race.source, display, resume=False, fill=fill)
    return {
        "figure": figure._asdict(),
        "finished": True,
        "parameters": sum(parameter.numel() for parameter in trained.learner.parameters()),
        "learner": entrant.plan.learner,
    }


def _learner(race: Race, entrant: Entrant) -> Learner:
    """The learner of an entrant, as its latest figure was measured."""
    if not entrant.simple:
        return load(race.folder / entrant.plan.slug).learner
    learner = Baseline(entrant.plan.learner["name"], race.source.objective)
    with during(race.source, "tuning"):
        learner.fit_to_training(race.source)
    return learner


def _predict(
    race: Race, learners: Sequence[Learner], num_tasks: int
) -> tuple[list[list[Tree]], list[Batch], list[Interval]]:
    """What the learners predict for the queries of validation tasks, by task; the queries; and each one's figure."""
    predictions: list[list[Tree]] = [[] for _ in range(num_tasks)]
    queries, figures, numbers = list[Batch](), list[Interval](), 0

    def keep(scored: Scored) -> None:
        nonlocal numbers
        numbers += sum(leaf.numel() for leaf in tree_leaves(scored.prediction))
        if numbers > MOST_NUMBERS:
            raise ValueError("the predictions are too large to be mixed")
        predictions[scored.number].append(scored.prediction)
        if learner is learners[0]:
            queries.append(scored.task.query)

    with during(race.source, "tuning"):
        for learner in learners:
            result = evaluate(learner, race.source, split="val", num_tasks=num_tasks, audit=False, observe=keep)
            figures.append(race.target.of(result.metrics))
    return predictions, queries, figures


def _folds(race: Race, num_tasks: int) -> list[int]:
    """The half that each task belongs to; those of one unit, where tasks have one each, are in the same."""
    numbers = race.source.units("val", range(num_tasks))
    if numbers is None or numbers.ndim > 1:
        return [number % 2 for number in range(num_tasks)]
    place = {unit: place for place, unit in enumerate(dict.fromkeys(numbers.tolist()))}
    return [place[unit] % 2 for unit in numbers.tolist()]


def _weights(race: Race, predictions: Sequence[Sequence[Tree]], queries: Sequence[Batch]) -> Tensor:
    """The weights of the candidates, 0 for the small ones."""
    if not queries:
        raise ValueError("the tasks have too few units")
    weight_P = fit_weights(race.source.objective, predictions, queries)
    least = weight_P.sort(descending=True).values[:MOST_PARTS].min()
    weight_P = torch.where((weight_P >= LEAST_WEIGHT) & (weight_P >= least), weight_P, 0.0)
    return weight_P / weight_P.sum()


def _figure(race: Race, predictions: Sequence[Tree], query: Batch, weight_P: Tensor) -> float:
    """The target's metric of a mixture on one task."""
    objective = race.source.objective
    taken = [number for number, weight in enumerate(weight_P) if weight > 0]
    prediction = mixed(objective, [predictions[number] for number in taken], [weight_P[number] for number in taken])
    return float(
        ({"loss": objective.loss(prediction, query)} | objective.metrics(prediction, query))[race.target.metric]
    )
