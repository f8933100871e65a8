"""A mixture of the best plans and simple baselines, with weights that are learned on validation tasks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from kshot.app.auto.plans import MIXTURE, Plan
from kshot.app.auto.race import Entrant, Race
from kshot.app.auto.ranking import UNKNOWN, Expectation
from kshot.app.progress import Display
from kshot.app.run import train
from kshot.app.trained import load
from kshot.evaluation.evaluate import Scored, evaluate, units_of
from kshot.evaluation.intervals import BOUNDS, interval
from kshot.evaluation.units import Units, joined
from kshot.files import owned
from kshot.learner import Learner
from kshot.learners.choosing.choose import mixed
from kshot.learners.choosing.mixture import Mixture, fit_weights
from kshot.objectives import Objective
from kshot.tasks.read_log import during
from kshot.types import Batch, Tree, tree_leaves

CANDIDATES, FOLDS = 4, 5
"""How many of the best are weighed, and how often a part of the validation tasks is left out to compare."""
SHRINKAGE, LEAST_WEIGHT = 3.0, 0.05
"""The former, over the number of validation units, draws weights to equal ones; smaller ones than the latter are 0.

Weights without a penalty had 4 % more test error on the nine grouped tables, of 5 to 28 validation groups, on which the
penalty was found.
"""
MOST_NUMBERS = 2**27
"""Of predictions that are kept to find the weights."""


def mix(race: Race, num_tasks: int, seconds: float) -> None:
    """Let a mixture of the best entrants enter the race, if it is better than to choose one of them.

    Both are cross-validated on validation tasks, or on their units where each has one: the weights, and the choice of
    the best, for a part of them are those that the others give.
    """
    candidates = race.ranked()[:CANDIDATES]
    if MIXTURE in race.entrants or len(candidates) < 2 or race.source.objective.predicts is None:
        return
    entrant = race.entrants[MIXTURE] = Entrant(Plan(MIXTURE, {"kind": MIXTURE}))
    race.time(entrant, lambda: _measure(race, entrant, candidates, num_tasks), seconds)


class _Tasks(NamedTuple):
    """Validation tasks of all splits.

    Attributes:
        predictions: of each candidate for the queries, by task.
        queries: of each task.
        objectives: of each task; that of its split, whose metrics are in the units of the data.
        alone: the candidates' figures (P, T).
        unit_T: the unit of each task as a number from 0; its own where tasks have none, or several.
        units: of the tasks, for intervals.
    """

    predictions: list[list[Tree]]
    queries: list[Batch]
    objectives: list[Objective]
    alone: np.ndarray
    unit_T: np.ndarray
    units: Units | None


def _measure(race: Race, entrant: Entrant, candidates: Sequence[Entrant], num_tasks: int) -> dict[str, Any]:
    """Find the weights of a mixture, make its run folder, and return its cross-validated figure; ValueError if it is no
    better than to choose one of the candidates."""
    metric = race.target.metric
    splits = [race, *race.splits]
    predictions, queries, objectives, alone, unit_T, units = _predict(splits, candidates, num_tasks)
    num_tasks = len(queries)
    if len(np.unique(unit_T)) < 2:
        raise ValueError("all validation tasks are of one unit, by which weights cannot be compared")
    mixture, single = np.zeros(num_tasks), np.zeros(num_tasks)
    for fold in range(FOLDS):
        held, others = np.flatnonzero(unit_T % FOLDS == fold), np.flatnonzero(unit_T % FOLDS != fold)
        if not len(held) or not len(others):
            continue
        weight_P = _weights(race, [predictions[t] for t in others], [queries[t] for t in others], unit_T[others])
        mean_P = alone[:, others].mean(1)
        single[held] = alone[mean_P.argmax() if race.target.at_least else mean_P.argmin(), held]
        for number in held:
            mixture[number] = _figure(objectives[number], metric, predictions[number], queries[number], weight_P)
    figure, other = (interval(each.tolist(), units, bounds=BOUNDS.get(metric)) for each in (mixture, single))
    if not (figure.mean > other.mean if race.target.at_least else figure.mean < other.mean):
        raise ValueError(f"it is no better than to choose the best: {figure} and {other}, cross-validated")
    weight_P = _weights(race, predictions, queries, unit_T)
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
    learners = {each.plan.slug: learner_of(race, each) for each in candidates}
    folder = race.folder / entrant.plan.slug
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted call

    def fill(learner: Learner) -> None:
        assert isinstance(learner, Mixture)
        for slug, part in learner.parts.items():
            part.load_state_dict(learners[slug].state_dict())

    with owned(folder), Display(Console(quiet=True), metric) as display:
        spec = race.make_spec(entrant.plan, {"rounds": 1, "minutes": None})
        trained = train(spec, folder, race.source, display, resume=False, fill=fill)
    return {
        "figure": figure._asdict(),
        "finished": True,
        "parameters": sum(parameter.numel() for parameter in trained.learner.parameters()),
        "learner": entrant.plan.learner,
        "expected": asdict(_expected(race, [candidates[number] for number in taken], weight_P.numpy()[taken])),
    }


def _expected(race: Race, parts: Sequence[Entrant], weight_P: np.ndarray) -> Expectation:
    """What is expected of a mixture: the mean over its parts, of which simple baselines have their measured gain."""
    known = [each.expected or UNKNOWN for each in parts]
    gains = [race.gain(part) if part.simple else each.gain for part, each in zip(parts, known)]
    share_P = weight_P / weight_P.sum()
    return Expectation(float(share_P @ gains), 0.0, None, float(share_P @ [each.spread for each in known]))


def learner_of(race: Race, entrant: Entrant) -> Learner:
    """The learner of an entrant, as its latest figure was measured."""
    if not entrant.simple:
        return load(race.folder / entrant.plan.slug).learner
    return race.baseline(entrant.plan.learner["name"])


def _predict(races: Sequence[Race], candidates: Sequence[Entrant], num_tasks: int) -> _Tasks:
    """What the candidates predict for the queries of the validation tasks of each split."""
    predictions, queries, objectives, numbers = list[list[Tree]](), list[Batch](), list[Objective](), 0
    alone, unit_T, units = list[np.ndarray](), list[np.ndarray](), list[Units]()

    def keep(scored: Scored) -> None:
        nonlocal numbers
        numbers += sum(leaf.numel() for leaf in tree_leaves(scored.prediction))
        if numbers > MOST_NUMBERS:
            raise ValueError("the predictions are too large to be mixed")
        if (place := first + scored.number) == len(queries):
            queries.append(scored.task.query)
            objectives.append(race.source.objective)
            predictions.append([])
        predictions[place].append(scored.prediction)

    for race in races:
        first, figures = len(queries), []
        for each in candidates:
            learner = learner_of(race, race.entrants[each.plan.name])
            with during(race.source, "tuning"):
                result = evaluate(learner, race.source, split="val", num_tasks=num_tasks, audit=False, observe=keep)
            figures.append(result.per_task[race.target.metric])
        alone.append(np.array(figures))
        own = _units(race, num_tasks)
        unit_T.append(own + sum(len(np.unique(each)) for each in unit_T))
        units += [found] if (found := units_of(race.source, "val", num_tasks)) is not None else []
    return _Tasks(predictions, queries, objectives, np.concatenate(alone, 1), np.concatenate(unit_T), joined(units))


def _units(race: Race, num_tasks: int) -> np.ndarray:
    """The unit of each task as a number from 0 (T,); its own where tasks have none, or several."""
    numbers = race.source.units("val", range(num_tasks))
    if numbers is None or numbers.ndim > 1:
        return np.arange(num_tasks)
    place = {unit: place for place, unit in enumerate(dict.fromkeys(numbers.tolist()))}
    return np.array([place[unit] for unit in numbers.tolist()])


def _weights(race: Race, predictions: Sequence[Sequence[Tree]], queries: Sequence[Batch], unit_T: np.ndarray) -> Tensor:
    """The weights of the candidates, 0 for the small ones."""
    shrinkage = SHRINKAGE / len(np.unique(unit_T))
    weight_P = fit_weights(race.source.objective, predictions, queries, shrinkage=shrinkage)
    weight_P = torch.where(weight_P >= LEAST_WEIGHT, weight_P, 0.0)
    return weight_P / weight_P.sum()


def _figure(objective: Objective, metric: str, predictions: Sequence[Tree], query: Batch, weight_P: Tensor) -> float:
    """A metric of a mixture on one task."""
    taken = [number for number, weight in enumerate(weight_P) if weight > 0]
    prediction = mixed(objective, [predictions[number] for number in taken], [weight_P[number] for number in taken])
    return float(({"loss": objective.loss(prediction, query)} | objective.metrics(prediction, query))[metric])
