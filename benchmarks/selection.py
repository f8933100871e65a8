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
  instances, and those choose a schedule: short runs before the features are computed, the same for all instances;
  features, given up after a limit; runs of one or several algorithms, different for each instance. Of the policies
  (`POLICIES`) the one that costs least in a cross-validation within the training folds is used. Where accuracy is
  scored, a policy is only a shrinkage.

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
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kshot.learners.choosing.selector import Selector

Floats = NDArray[np.float64]
PENALTY = 10  # of PAR10
INNER_FOLDS = 5

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
    limit = float(re.search(r"algorithm_cutoff_time:\s*(\S+)", description)[1])  # type: ignore[index]
    maximise = re.search(r"maximize:\s*-?\s*(\w+)", description)[1] == "true"  # type: ignore[index]
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
    """How a schedule is chosen.

    Attributes:
        smoothing: standard deviation of the logarithm by which a run time may differ from that of an earlier instance.
        runs: most runs after the features.
        before: time for runs before the features, a share of the limit.
        features: features that take longer are given up, a share of the limit; with 0 none are computed.
        shrinkage: share of all earlier instances, equally weighed, beside those that are near.
    """

    smoothing: float
    runs: int
    before: float
    features: float
    shrinkage: float


POLICIES = [
    *(Policy(*values) for values in product((0.5, 1.0), (1, 2, 4), (0.0, 0.003, 0.01), (0.1, 1.0), (0.0, 0.2))),
    *(Policy(*values, 0.0, 0.0, 1.0) for values in product((0.5, 1.0), (1, 2, 4))),  # a schedule without features
]
SHRINKAGES = [Policy(0.0, 1, 0.0, 1.0, shrinkage) for shrinkage in (0.0, 0.1, 0.25, 0.5, 1.0)]


class Times:
    """Run times of earlier instances, N = 3 n copies of them with times a little shorter, equal and longer.

    Shape legend: m new instances, N copies, p algorithms, G durations.
    """

    copies = np.array([-1.22, 0.0, 1.22])
    durations = np.geomspace(1e-3, 1, 25)  # of a run, shares of the limit

    def __init__(self, times: Floats, smoothing: float) -> None:
        longer = np.exp(smoothing * np.tile(self.copies, len(times)))
        self.times = np.repeat(times, len(self.copies), axis=0) * longer[:, None]  # (N, p)
        self.solved = (self.times[:, :, None] <= self.durations).astype(np.float32)  # (N, p, G)
        self.spent = np.minimum(self.times[:, :, None], self.durations).astype(np.float32)

    def copied(self, weights: Floats) -> Floats:
        """The weights (m, n) of instances as weights (m, N) of copies."""
        return np.repeat(weights, len(self.copies), axis=1) / len(self.copies)

    def unsolved(self, runs: Sequence[tuple[int, float]]) -> NDArray[np.bool_]:
        """Which copies remain after the runs, (N,)."""
        return np.all([self.times[:, j] > duration for j, duration in runs], axis=0) | (not runs)

    def schedules(self, weights: Floats, elapsed: Floats, most: int, end: float = 1.0, *, finish: bool = True) -> list:
        """A schedule (algorithm, duration) of at most `most` runs for each of m instances, by weights (m, N).

        Each run is the one with the most solved for the time spent, given what the runs before it left unsolved. Of
        these schedules' beginnings, each followed by one run that takes all that remains, the one of least PAR10 is
        taken (`finish`), or the whole of it up to the time `end`.
        """
        m, p, rows = len(weights), self.times.shape[1], np.arange(len(weights))
        left, elapsed, paid = weights.astype(np.float32), elapsed.copy(), np.zeros(m)
        running: list[list[tuple[int, float]]] = [[] for _ in rows]
        best: list[list[tuple[int, float]]] = [[] for _ in rows]
        least, live = np.full(m, np.inf), elapsed < end
        for step in range(most):
            solved = (left @ self.solved.reshape(len(self.times), -1)).reshape(m, p, -1)
            spent = (left @ self.spent.reshape(len(self.times), -1)).reshape(m, p, -1)
            if finish:
                remaining = np.searchsorted(self.durations, end - elapsed + 1e-9, side="right") - 1
                remaining = np.maximum(remaining, 0)
                unsolved = left.sum(1)[:, None] - solved[rows, :, remaining]
                total = paid[:, None] + spent[rows, :, remaining] + unsolved * (PENALTY - 1)
                last = total.argmin(1)
                for i in np.flatnonzero(live & (total[rows, last] < least - 1e-9)):
                    least[i], best[i] = total[i, last[i]], [*running[i], (int(last[i]), 1.0)]
                if step == most - 1:
                    break
            fits = self.durations <= (end - elapsed)[:, None, None] + 1e-9
            rate = np.where(fits, solved / np.maximum(spent, 1e-9), 0).reshape(m, -1)
            chosen = rate.argmax(1)
            live &= rate[rows, chosen] > 0
            if not live.any():
                break
            j, q = np.divmod(chosen, len(self.durations))
            for i in np.flatnonzero(live):
                running[i].append((int(j[i]), float(self.durations[q[i]])))
            paid += np.where(live, spent[rows, j, q], 0)
            elapsed += np.where(live, self.durations[q], 0)
            left *= np.where(live[:, None], 1 - self.solved[:, j, q].T, 1)
        return best if finish else running


def run(schedule: Sequence[tuple[int, float]], times: Floats, elapsed: float) -> tuple[float, bool]:
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
    if times is None:
        mixed = (1 - policy.shrinkage) * near + policy.shrinkage / n
        return new.losses[np.arange(m), (mixed @ earlier.losses).argmin(1)]
    first: list[tuple[int, float]] = []
    if policy.before:
        (first,) = times.schedules(times.copied(np.full((1, n), 1 / n)), np.zeros(1), 3, policy.before, finish=False)
    outcomes = [run(first, row, 0.0) for row in new.values]
    elapsed, solved = np.array([o[0] for o in outcomes]), np.array([o[1] for o in outcomes])
    known = new.cost <= policy.features if policy.features else np.zeros(m, bool)
    after = elapsed + np.minimum(new.cost, policy.features)
    now = ~solved & known & new.presolved & (after < 1)
    elapsed, solved = np.where(solved, elapsed, after), solved | now
    shrinkage = np.where(known, policy.shrinkage, 1.0)[:, None]
    weights = times.copied((1 - shrinkage) * near + shrinkage / n) * times.unsolved(first)
    open_ = np.flatnonzero(~solved & (elapsed < 1))
    for i, schedule in zip(open_, times.schedules(weights[open_], elapsed[open_], policy.runs)):
        elapsed[i], solved[i] = run(schedule, new.values[i], elapsed[i])
    return np.where(solved, elapsed, PENALTY)


def near_weights(earlier: Scenario, new: Scenario, seed: int, trees: int) -> Floats:
    selector = Selector(seed=seed, trees=trees, leaf_sizes=(1,), shrinkages=(0.0,))
    return selector.fit(earlier.features, earlier.losses).neighbours(new.features)


def chosen_policy(earlier: Scenario, policies: Sequence[Policy], seed: int, trees: int) -> Policy:
    """The policy of least loss in a cross-validation."""
    part = np.random.default_rng(seed).permutation(len(earlier.fold)) % INNER_FOLDS
    total = np.zeros(len(policies))
    for k in range(INNER_FOLDS):
        rest, held = earlier.part(part != k), earlier.part(part == k)
        near = near_weights(rest, held, seed, trees)
        tables = {s: Times(rest.values, s) if rest.timed else None for s in {policy.smoothing for policy in policies}}
        total += [losses_of(policy, rest, held, near, tables[policy.smoothing]).sum() for policy in policies]
    return policies[int(total.argmin())]


def evaluate(scenario: Scenario, seed: int, trees: int) -> dict[str, Floats]:
    """What each row, the single best and the virtual best lose on each instance, (n,)."""
    losses, policies = scenario.losses, POLICIES if scenario.timed else SHRINKAGES
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
        policy = chosen_policy(earlier, policies, seed, trees)
        times = Times(earlier.values, policy.smoothing) if scenario.timed else None
        near = near_weights(earlier, new, seed, 3 * trees)
        result["schedule"][held] = losses_of(policy, earlier, new, near, times)
        print(f"  {scenario.name}, seed {seed}, fold {k}: {policy}", flush=True)
    return {**result, "virtual": losses.min(1)}


def closed_gap(result: dict[str, Floats], row: str) -> float:
    single, virtual = result["single"].mean(), result["virtual"].mean()
    return float((single - result[row].mean()) / (single - virtual))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--data", type=Path, default=shared / "data" / "aslib")
    parser.add_argument("--only", nargs="+", help="only scenarios whose name contains one of these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trees", type=int, default=200)
    options = parser.parse_args()
    table: dict[str, dict[str, list[float]]] = {}
    for folder in sorted(path for path in options.data.iterdir() if path.is_dir()):
        if options.only and not any(part in folder.name for part in options.only):
            continue
        scenario, started = read_scenario(folder), time.monotonic()
        results = [evaluate(scenario, seed, options.trees) for seed in options.seeds]
        table[folder.name] = {row: [closed_gap(result, row) for result in results] for row in ("selector", "schedule")}
        print(folder.name, table[folder.name], f"{time.monotonic() - started:.0f} s", flush=True)
    print("| scenario | selector | schedule | published |\n| --- | --- | --- | --- |")
    for name, gaps in table.items():
        published = ", ".join(f"{who} {gap:.2f}" for who, gap in PUBLISHED.get(name, {}).items()) or "–"
        print(f"| {name} | {np.mean(gaps['selector']):.2f} | {np.mean(gaps['schedule']):.2f} | {published} |")
    means = [np.mean([np.mean(gaps[row]) for gaps in table.values()]) for row in ("selector", "schedule")]
    print(f"| mean | {means[0]:.2f} | {means[1]:.2f} | |")


if __name__ == "__main__":
    main()
