"""Select algorithms for instances of hard problems: the closed gap on scenarios of ASlib.

    OMP_NUM_THREADS=1 python benchmarks/selection.py [--data DIR] [--only SAT16 MIP] [--seeds 0 1 2]

Each scenario has the run times, or the accuracies, of several algorithms on each of some hundred instances, features of
the instances, what computing the features costs, and ten folds for testing. Run times are scored by PAR10: the time
until the instance is solved, and ten times the limit if it is not. The closed gap is

    (single best − selector) / (single best − virtual best)

in the mean over all instances: 0 for the algorithm that is best on the training folds, 1 for the best one of each
instance. Features are paid for: their cost counts as run time, also where the limit is then exceeded. Where a scenario
does not state the cost for an instance, it is the largest of the scenario.

Rows:

- `selector`: `Selector().choose`, as it is.
- `schedule`: the selector's weights of earlier instances (`Selector.neighbours`) weigh the run times of the training
  instances, and those choose a schedule: short runs before the features are computed, the same for all instances; then
  features; then a run of one algorithm, chosen for each instance. Two algorithms in turn, or no features, take its
  place where that is better, by more than a standard error, in a cross-validation within the training folds.

Published closed gaps (`PUBLISHED`) are 1 − nPAR10 of files of results with the code of Run2Survive (Tornede et al.,
ACML 2020, arXiv:2007.02816): github alexandertornede/algorithm_survival_analysis, survival_tests/results/normalized.csv
and run2survive_normalized_par10.csv. "-like" is their reimplementation. They have two of the six scenarios.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kshot.learners.choosing.selector import Selector

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Run = tuple[int, float]  # an algorithm and the most time that it gets, a share of the limit
PENALTY = 10  # of PAR10
INNER_FOLDS = 5
PRESOLVE = 0.003  # time for runs before the features, a share of the limit
SMOOTHING = 1.0  # standard deviation of the logarithm by which a run time may differ from that of an earlier instance
SHRINKAGE = 0.1  # share of all earlier instances, equally weighed, beside those that are near
SHORTEST_FIRST = 13  # among the durations that a schedule may use, the one of 10 % of the limit

PUBLISHED = {
    "CSP-Minizinc-Time-2016": {
        "Run2SurviveExp": 0.54,
        "SATzilla'11-like": 0.50,
        "regressors": 0.49,
        "SUNNY-like": 0.48,
        "ISAC-like": 0.30,
    },
    "MIP-2016": {
        "Run2SurvivePoly/Log": 0.04,
        "ISAC-like": -2.03,
        "Run2SurviveExp": -3.53,
        "SUNNY-like": -7.86,
        "SATzilla'11-like": -8.66,
        "regressors": -9.14,
    },
}


@dataclass
class Scenario:
    """n instances, p algorithms, d features.

    Attributes:
        values: (n, p), accuracies, or times as shares of the limit, infinite where the instance is not solved.
        cost: (n,), of the features, a share of the limit.
        presolved: (n,), whether computing the features solves the instance.
        fold: (n,), from 1.
    """

    name: str
    timed: bool
    values: Floats
    features: Floats
    cost: Floats
    presolved: NDArray[np.bool_]
    fold: NDArray[np.int64]

    @property
    def losses(self) -> Floats:
        """PAR10, with the limit as the unit, or inaccuracies, (n, p)."""
        return np.where(np.isinf(self.values), PENALTY, self.values) if self.timed else 1 - self.values

    def part(self, rows: NDArray[np.bool_]) -> Scenario:
        fields = (self.values, self.features, self.cost, self.presolved, self.fold)
        return Scenario(self.name, self.timed, *(field[rows] for field in fields))


def read_scenario(folder: Path) -> Scenario:
    """Read the ARFF files of a scenario; repeated runs count by their mean."""
    description = (folder / "description.txt").read_text()
    limit = float(re.search(r"algorithm_cutoff_time:\s*(\S+)", description)[1])
    maximise = re.search(r"maximize:\s*-?\s*(\w+)", description)[1] == "true"
    fold = {row[0]: int(float(row[2])) for row in arff(folder / "cv.arff") if float(row[1]) == 1}
    place = {name: i for i, name in enumerate(fold)}
    runs = list(arff(folder / "algorithm_runs.arff"))
    algorithms = sorted({row[2] for row in runs})
    total, count = np.zeros((2, len(place), len(algorithms)))
    for instance, _, algorithm, value, status, *_ in runs:
        cell = place[instance], algorithms.index(algorithm)
        solved = maximise or (status == "ok" and float(value) < limit)
        total[cell] += float(value) / (1 if maximise else limit) if solved else np.inf
        count[cell] += 1
    if not count.all():
        raise ValueError(f"{folder.name}: {np.sum(count == 0)} pairs of an instance and an algorithm have no run")
    features = np.array([row[1:] for row in by_instance(folder / "feature_values.arff", place)], float)[:, 1:]
    cost, presolved = np.zeros(len(place)), np.zeros(len(place), bool)
    if (folder / "feature_costs.arff").exists():
        rows = np.array([row[2:] for row in by_instance(folder / "feature_costs.arff", place)], float)
        cost = np.where(np.isnan(rows), np.nanmax(rows, axis=0), rows).sum(1) / limit
        presolved = np.array(["presolved" in row for row in by_instance(folder / "feature_runstatus.arff", place)])
    folds = np.array(list(fold.values()))
    return Scenario(folder.name, not maximise, total / count, features, cost, presolved, folds)


def arff(path: Path) -> Iterator[list[str]]:
    """The rows of an ARFF file; unknown values are "nan"."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().lower().startswith("@data"))
    for row in csv.reader(line for line in lines[start + 1 :] if line.strip() and not line.startswith("%")):
        values = [value.strip().strip("'\"") for value in row]
        yield ["nan" if value == "?" else value for value in values]


def by_instance(path: Path, place: dict[str, int]) -> list[list[str]]:
    return sorted((row for row in arff(path) if float(row[1]) == 1), key=lambda row: place[row[0]])


class Policy(NamedTuple):
    """What is done with an instance after the first runs: whether features are computed, and the most runs then."""

    features: bool
    runs: int


POLICIES = [Policy(features=True, runs=1), Policy(features=True, runs=2), Policy(features=False, runs=1)]


class Times:
    """Run times of earlier instances, N = 3 n copies of them with times a little shorter, equal and longer.

    Shape legend: m new instances, N copies, p algorithms, G durations.
    """

    copies = np.array([-1.22, 0.0, 1.22])
    durations = np.concatenate([np.geomspace(1e-3, 0.1, SHORTEST_FIRST + 1)[:-1], np.linspace(0.1, 1, 19)])  # of a run

    def __init__(self, times: Floats, smoothing: float = SMOOTHING) -> None:
        longer = np.exp(smoothing * np.tile(self.copies, len(times)))
        self.times = np.repeat(times, len(self.copies), axis=0) * longer[:, None]  # (N, p)
        self.solved = (self.times[:, :, None] <= self.durations + 1e-9).astype(np.float32)  # (N, p, G)
        self.spent = np.minimum(self.times[:, :, None], self.durations).astype(np.float32)

    def copied(self, weights: Floats) -> Floats:
        """The weights (m, n) of instances as weights (m, N) of copies."""
        return np.repeat(weights, len(self.copies), axis=1) / len(self.copies)

    def unsolved(self, runs: Sequence[Run]) -> NDArray[np.bool_]:
        """Which copies remain after the runs, (N,)."""
        return np.all([self.times[:, j] > duration for j, duration in runs], axis=0) | (not runs)

    def presolvers(self, weights: Floats, end: float, most: int = 3) -> list[Run]:
        """Runs up to the time `end`, each the one that solves most for its time, for weights (N,)."""
        runs: list[Run] = []
        left, elapsed = weights[None].astype(np.float32), 0.0
        while len(runs) < most:
            rate = self._after(left, self.solved)[0] / np.maximum(self._after(left, self.spent)[0], 1e-9)
            rate[:, self.durations > end - elapsed + 1e-9] = 0
            j, q = np.unravel_index(rate.argmax(), rate.shape)
            if rate[j, q] == 0:
                break
            runs.append((int(j), float(self.durations[q])))
            left, elapsed = left * (1 - self.solved[:, j, q]), elapsed + self.durations[q]
        return runs

    def schedules(self, weights: Floats, elapsed: Floats, most: int) -> list[list[Run]]:
        """The schedule of one run, or of at most two, of least PAR10 for each of m instances, by weights (m, N).

        The last run takes all the time that remains; of two, the first takes one of the durations from 10 % on.
        """
        best: list[list[Run]] = [[] for _ in elapsed]
        remaining = self._longest(1 - elapsed)
        for end in np.unique(remaining[remaining >= 0]):
            rows = np.flatnonzero(remaining == end)
            left = weights[rows].astype(np.float32)
            total = self._after(left, self._last(end))  # (m, p)
            least = total.min(1)
            for i, j in zip(rows, total.argmin(1)):
                best[i] = [(int(j), 1.0)]
            for q in range(SHORTEST_FIRST, end) if most > 1 else ():
                then = self._last(self._longest(self.durations[end] - self.durations[q]))
                both = (1 - self.solved[:, :, q])[:, :, None] * then[:, None, :]  # (N, p, p)
                total = self._after(left, both) + self._after(left, self.spent[:, :, q])[:, :, None]
                flat = total.reshape(len(rows), -1)
                for i in np.flatnonzero(flat.min(1) < least - 1e-9):
                    j, k = divmod(int(flat[i].argmin()), total.shape[2])
                    best[rows[i]] = [(j, float(self.durations[q])), (k, 1.0)]
                least = np.minimum(least, flat.min(1))
        return best

    def _after(self, left: Floats32, values: Floats32) -> Floats32:
        """The sums over copies of left (m, N) times values (N, …), (m, …)."""
        return (left @ values.reshape(len(values), -1)).reshape(len(left), *values.shape[1:])

    def _longest(self, time: ArrayLike) -> NDArray[np.int64]:
        """The longest duration that fits into the time, −1 if none."""
        return np.searchsorted(self.durations, np.asarray(time) + 1e-9, side="right") - 1

    def _last(self, q: int) -> Floats32:
        """The time, and the rest of the penalty, of a last run of the duration q, (N, p)."""
        return self.spent[:, :, q] + (PENALTY - 1) * (1 - self.solved[:, :, q])


def run(schedule: Sequence[Run], times: Floats, elapsed: float) -> tuple[float, bool]:
    """Run a schedule on an instance: the time elapsed, and whether it is solved within the limit."""
    for j, duration in schedule:
        allowed = min(duration, 1 - elapsed)
        if times[j] <= allowed:
            return elapsed + times[j], True
        elapsed += allowed
    return elapsed, False


def losses_of(policy: Policy, earlier: Scenario, new: Scenario, near: Floats, times: Times | None) -> Floats:
    """What a policy loses on new instances, (m,), with weights of the earlier instances (m, n)."""
    m, n = near.shape
    shrinkage = SHRINKAGE if policy.features else 1.0
    weights = (1 - shrinkage) * near + shrinkage / n
    if times is None:
        return new.losses[np.arange(m), (weights @ earlier.losses).argmin(1)]
    first = times.presolvers(times.copied(np.full((1, n), 1 / n))[0], PRESOLVE)
    outcomes = [run(first, row, 0.0) for row in new.values]
    elapsed, solved = np.array([o[0] for o in outcomes]), np.array([o[1] for o in outcomes])
    if policy.features:
        elapsed = np.where(solved, elapsed, elapsed + new.cost)
        solved |= new.presolved & (elapsed < 1)
    left = np.flatnonzero(~solved & (elapsed < 1))
    remaining = times.copied(weights[left]) * times.unsolved(first)
    for i, schedule in zip(left, times.schedules(remaining, elapsed[left], policy.runs)):
        elapsed[i], solved[i] = run(schedule, new.values[i], elapsed[i])
    return np.where(solved, elapsed, PENALTY)


def near_weights(earlier: Scenario, new: Scenario, seed: int, trees: int) -> Floats:
    selector = Selector(seed=seed, trees=trees, leaf_sizes=(1,), shrinkages=(0.0,))
    return selector.fit(earlier.features, earlier.losses).neighbours(new.features)


def chosen_policy(earlier: Scenario, seed: int, trees: int) -> Policy:
    """The policy of least loss in a cross-validation, if better than the first by more than a standard error."""
    part = np.random.default_rng(seed).permutation(len(earlier.fold)) % INNER_FOLDS
    lost = np.zeros((len(POLICIES), len(earlier.fold)))
    for k in range(INNER_FOLDS):
        rest, held = earlier.part(part != k), earlier.part(part == k)
        near, times = near_weights(rest, held, seed, trees), Times(rest.values) if rest.timed else None
        lost[:, part == k] = [losses_of(policy, rest, held, near, times) for policy in POLICIES]
    best = int(lost.mean(1).argmin())
    gain = lost[0] - lost[best]
    return POLICIES[best if gain.mean() > gain.std() / np.sqrt(len(gain)) else 0]


def evaluate(scenario: Scenario, seed: int, trees: int) -> dict[str, Floats]:
    """What each row, the single best and the virtual best lose on each instance, (n,)."""
    losses = scenario.losses
    result = {name: np.zeros(len(losses)) for name in ("single", "selector", "schedule")}
    for k in np.unique(scenario.fold):
        held = scenario.fold == k
        earlier, new = scenario.part(~held), scenario.part(held)
        result["single"][held] = new.losses[:, earlier.losses.mean(0).argmin()]
        selector = Selector(seed=seed, trees=trees).fit(earlier.features, earlier.losses)
        loss = new.losses[np.arange(len(new.fold)), selector.choose(new.features)]
        if scenario.timed:
            loss = np.where(new.presolved, 0, loss) + new.cost
            loss = np.where(loss < 1, loss, PENALTY)
        result["selector"][held] = loss
        policy = chosen_policy(earlier, seed, trees)
        times = Times(earlier.values) if scenario.timed else None
        near = near_weights(earlier, new, seed, 3 * trees)
        result["schedule"][held] = losses_of(policy, earlier, new, near, times)
        print(f"  {scenario.name}, seed {seed}, fold {k}: {policy}", flush=True)
    return {**result, "virtual": losses.min(1)}


def closed_gap(result: dict[str, Floats], row: str) -> tuple[float, float]:
    """The closed gap, and the half width of its 95 % interval over instances."""
    gain = (result["single"] - result[row]) / (result["single"].mean() - result["virtual"].mean())
    return float(gain.mean()), float(1.96 * gain.std(ddof=1) / np.sqrt(len(gain)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--data", type=Path, default=shared / "data" / "aslib")
    parser.add_argument("--only", nargs="+", help="only scenarios whose name contains one of these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trees", type=int, default=200)
    options = parser.parse_args()
    rows, table = ("selector", "schedule"), {}
    for folder in sorted(path for path in options.data.iterdir() if path.is_dir()):
        if options.only and not any(part in folder.name for part in options.only):
            continue
        scenario, started = read_scenario(folder), time.monotonic()
        results = [evaluate(scenario, seed, options.trees) for seed in options.seeds]
        mean = {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}
        table[folder.name] = [closed_gap(mean, row) for row in rows]
        print(folder.name, table[folder.name], f"{time.monotonic() - started:.0f} s", flush=True)
    print("| scenario | selector | schedule | published |\n| --- | --- | --- | --- |")
    for name, gaps in table.items():
        published = ", ".join(f"{who} {gap:.2f}" for who, gap in PUBLISHED.get(name, {}).items()) or "–"
        cells = " | ".join(f"{gap:.2f} ± {ci95:.2f}" for gap, ci95 in gaps)
        print(f"| {name} | {cells} | {published} |")
    print("| mean |", " | ".join(f"{np.mean([gaps[i][0] for gaps in table.values()]):.2f}" for i in range(2)), "| |")


if __name__ == "__main__":
    main()
