"""How often 95 % intervals cover the truth, and how often equal learners are declared different, in simulations.

    python benchmarks/coverage.py [--repeats 4000] [--json FILE]

Each situation draws data whose true mean is known, `repeats` times, and asks `kshot.evaluation.intervals` for the
interval, or for the p value of a difference that is 0. "covered" must be 93 to 97 %; situations without spread have
exact bounds, which are wider. Beside it is what Student's t over tasks gives, which is what papers report. The standard
error of a share is 0.35 % for 4,000 repeats.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from kshot.evaluation.intervals import LEVEL, Units, difference, holm, interval

Random = np.random.Generator
Draw = Callable[[Random], bool]
"""Draws data and says whether the interval covers the truth, or whether a false claim was avoided."""


class Situation(NamedTuple):
    """A situation: its name, a draw for kshot's method and one for t over tasks; `exact` ones may exceed 97 %."""

    name: str
    ours: Draw
    plain: Draw | None = None
    exact: bool = False


def of_values(name: str, draw: Callable[[Random], np.ndarray], truth: float, **options: object) -> Situation:
    """Independent tasks with a known mean."""

    def ours(random: Random) -> bool:
        found = interval(draw(random), **options)  # type: ignore[arg-type]
        return found.low <= truth <= found.high

    return Situation(name, ours, lambda random: by_t(draw(random), truth))


def of_units(name: str, sizes: list[int], between: float, within: float, skewed: bool = False) -> Situation:
    """Tasks of units: the number of tasks of each, and the standard deviations between units and within."""

    def draw(random: Random) -> tuple[np.ndarray, np.ndarray]:
        unit = np.repeat(np.arange(len(sizes)), sizes)
        effect = random.exponential(size=len(sizes)) - 1 if skewed else random.normal(size=len(sizes))
        return between * effect[unit] + within * random.normal(size=len(unit)), unit

    def ours(random: Random) -> bool:
        values, unit = draw(random)
        found = interval(values, Units(unit))
        return found.low <= 0 <= found.high

    return Situation(name, ours, lambda random: by_t(draw(random)[0], 0.0))


def of_classes(name: str, num_classes: int, num_tasks: int, ways: int = 5, pairs: float = 0.02) -> Situation:
    """Accuracies of N-way tasks of a test split: classes and pairs of classes differ in difficulty, and tasks too."""

    def draw(random: Random) -> tuple[np.ndarray, np.ndarray]:
        tasks = random.random((num_tasks, num_classes)).argsort(1)[:, :ways]
        effect, pair = 0.1 * random.normal(size=num_classes), pairs * random.normal(size=(num_classes, num_classes))
        of_pairs = pair[tasks[:, :, None], tasks[:, None, :]] * (1 - np.eye(ways))
        values = effect[tasks].mean(1) + of_pairs.sum((1, 2)) / ways + 0.06 * random.normal(size=num_tasks)
        return values, tasks

    def ours(random: Random) -> bool:
        values, tasks = draw(random)
        found = interval(values, Units(tasks))
        return found.low <= 0 <= found.high

    return Situation(name, ours, lambda random: by_t(draw(random)[0], 0.0))


def of_seeds(name: str, counts: tuple[int, int], spread: float) -> Situation:
    """Two equal learners with several seeds each: no difference may be claimed."""

    def ours(random: Random) -> bool:
        hard = random.normal(size=200)
        sides = [
            hard + spread * random.normal(size=(count, 1)) + 0.5 * random.normal(size=(count, 200)) for count in counts
        ]
        return not difference(*sides).p < LEVEL

    return Situation(name, ours)


def of_ties(name: str, num_tasks: int, differing: float) -> Situation:
    """Two learners that mostly agree: on a share of the tasks one of them is better by one query, at random."""

    def draw(random: Random) -> np.ndarray:
        return (random.random(num_tasks) < differing) * random.choice([-0.2, 0.2], num_tasks)

    def plain(random: Random) -> bool:
        values = draw(random)
        return not values.any() or by_t(values, 0.0)

    return Situation(name, lambda random: not difference([draw(random)], [np.zeros(num_tasks)]).p < LEVEL, plain, True)


def of_boards(name: str, num_learners: int, num_units: int) -> Situation:
    """A learner beside several equal ones, with p values by Holm: no difference may be claimed, in all of them."""

    def ours(random: Random) -> bool:
        unit = np.repeat(np.arange(num_units), 10)
        hard = random.normal(size=len(unit))
        scores = [
            hard + random.normal(size=num_units)[unit] + random.normal(size=len(unit)) for _ in range(num_learners)
        ]
        return min(holm([difference([scores[0]], [other], Units(unit)).p for other in scores[1:]])) >= LEVEL

    return Situation(name, ours, exact=True)


def by_t(values: np.ndarray, truth: float) -> bool:
    """Whether Student's interval over tasks covers the truth."""
    half = float(student.ppf(0.975, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
    return abs(values.mean() - truth) <= half


def accuracies(num_tasks: int, queries: int, a: float, b: float = 1.0) -> Callable[[Random], np.ndarray]:
    """Accuracies of tasks whose true accuracy is beta distributed."""
    return lambda random: random.binomial(queries, random.beta(a, b, num_tasks)) / queries


UNIT = (0.0, 1.0)
SITUATIONS = [
    of_values("normal, 5 tasks", lambda random: random.normal(size=5), 0.0),
    of_values("normal, 600 tasks", lambda random: random.normal(size=600), 0.0),
    of_values("heavy tails (t, 3 degrees), 50 tasks", lambda random: random.standard_t(3, 50), 0.0),
    of_values("skewed errors (exponential), 10 tasks", lambda random: random.exponential(size=10), 1.0),
    of_values("skewed errors (lognormal), 20 tasks", lambda random: random.lognormal(size=20), math.exp(0.5)),
    of_values("skewed errors (lognormal), 100 tasks", lambda random: random.lognormal(size=100), math.exp(0.5)),
    of_values("accuracy about 0.9, 15 queries, 100 tasks", accuracies(100, 15, 9), 0.9, bounds=UNIT),
    of_values("accuracy about 0.97, 25 queries, 50 tasks", accuracies(50, 25, 30), 30 / 31, bounds=UNIT),
    of_values("accuracy about 0.99, 75 queries, 600 tasks", accuracies(600, 75, 99), 0.99, bounds=UNIT),
    Situation(
        "all right but one in 1,000, 20 tasks",
        lambda random: interval(1.0 - (random.random(20) < 0.001), bounds=UNIT).low <= 0.999,
        exact=True,
    ),
    of_units("600 tasks of 6 patients", [100] * 6, 1.0, 0.5),
    of_units("600 tasks of 40 schools", [15] * 40, 1.0, 2.0),
    of_units("12 users with 1 to 100 tasks", [1, 1, 2, 3, 5, 8, 12, 20, 30, 45, 70, 100], 1.0, 1.0),
    of_units("25 firms, skewed between firms", [8] * 25, 1.0, 0.5, skewed=True),
    of_units("300 tasks of 300 users", [1] * 300, 1.0, 0.0),
    of_classes("5-way, 600 tasks of 8 classes", 8, 600),
    of_classes("5-way, 600 tasks of 20 classes", 20, 600),
    of_classes("5-way, 600 tasks of 400 classes", 400, 600),
    of_seeds("two equal learners, 3 seeds against 3", (3, 3), 0.3),
    of_seeds("two equal learners, 3 seeds against 1", (3, 1), 0.3),
    of_ties("two learners that differ on 3 % of 200 tasks", 200, 0.03),
    of_boards("one learner beside 6 equal ones, 15 units, Holm", 7, 15),
]


def share(draw: Draw, repeats: int, seed: int) -> float:
    """The share of draws that are right."""
    random = np.random.default_rng(seed)
    return sum(draw(random) for _ in range(repeats)) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("| situation | covered | t over tasks |\n| --- | --- | --- |", flush=True)
    for number, situation in enumerate(SITUATIONS):
        ours = share(situation.ours, options.repeats, number)
        plain = share(situation.plain, options.repeats, number) if situation.plain else math.nan
        rows.append({"situation": situation.name, "covered": ours, "t": plain, "exact": situation.exact})
        of_t = "" if math.isnan(plain) else f"{plain:.1%}"
        print(f"| {situation.name} | {ours:.1%} | {of_t} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
