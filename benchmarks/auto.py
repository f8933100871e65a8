"""What `kshot auto` reaches on data sets that its experience has not seen, beside other methods to spend the time.

    python benchmarks/auto.py [--minutes 2] [--only exam radon] [--methods auto fixed long] [--seeds 0 1 2]
    python benchmarks/auto.py --table

Methods to spend the time, each tested once on the same test tasks:

auto: `kshot auto` with the experience that comes with kshot, without the data set and others of the same data.
cold: the same without any experience.
fixed: the plan that is the best in the mean over the other data sets of experience with the same kind of targets,
    trained for the whole time. A data set on which it is not done in the time is left out of the mean.
long: `auto` with ten times the minutes.

Minutes are of CPU time of one thread (`cpu_clock.py`), so that other jobs on the machine do not count. What is done is
written to --out, and not done again. The table has the log of the ratio of errors of `auto` to each other method, its
mean over seeds, with two 95 % intervals: over seeds, and over the units of the test tasks, such as patients, which are
the same for all seeds; and the mean over data sets.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from cpu_clock import use_cpu_clock
from experience_sets import data_sets, relatives

import kshot
from kshot.app.auto import command, simple
from kshot.app.auto.descriptors import LOGARITHMIC, error_of
from kshot.app.auto.plans import Plan, plans_for
from kshot.app.auto.ranking import gain_of
from kshot.app.folder import RunFolder
from kshot.app.goes_with import targets_of
from kshot.deciding.experience import Experience, Trial
from kshot.evaluation.intervals import Interval, interval
from kshot.evaluation.per_task import read_tasks
from kshot.evaluation.target import Target
from kshot.evaluation.units import Units

SETS = ("exam", "radon", "wages", "storms", "homes", "hotels", "sines_20", "digits", "leaves", "births",
        "glyphs_5w1s", "clinc_words_5w1s", "tate_artists", "films")  # fmt: skip
METHODS = ("auto", "cold", "fixed", "long")


class Others(Experience):
    """What comes with kshot, without the trials on some data sets, in memory.

    Args:
        without: the data sets; None leaves out all.
    """

    def __init__(self, without: set[str] | None) -> None:
        super().__init__("sqlite://")
        self.without = without

    def trials(self, *, kind: str | None = None, shipped: bool = True) -> list[Trial]:
        known = super().trials(kind=kind, shipped=shipped)
        return [] if self.without is None else [trial for trial in known if trial.data_set not in self.without]


def best_fixed(plans: Iterable[str], trials: Iterable[Trial]) -> str:
    """The plan with the largest mean gain over the data sets of experience; one that failed on one has the least."""
    gains: dict[str, dict[str, float]] = {}
    for trial in trials:
        gains.setdefault(trial.data_set, {})[str(trial.plan.get("name"))] = gain_of(trial)
    names = sorted(plans)
    means = [np.mean([of.get(name, -1.0) for of in gains.values()]) if gains else 0.0 for name in names]
    return names[int(np.argmax(means))]


def minutes_of(method: str, options: argparse.Namespace) -> float:
    """The minutes that a method has."""
    return float(options.minutes * (10 if method == "long" else 1))


def measure(name: str, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a method on a data set, which is written to a file."""
    sets = data_sets(options.out / "data", options.shared)
    values = sets[name] | {"seed": seed, "task_seed": seed}
    minutes = minutes_of(method, options)
    result = {"name": name, "method": method, "seed": seed, "minutes": minutes}
    folder, experience = _folder(options.out, result), Others(relatives(name))

    def only_the_best(*args: Any, **kinds: Any) -> tuple[Plan, ...]:
        plans = plans_for(*args, **kinds)
        names = {plan.name for plan in plans}
        known = [trial for trial in experience.trials() if trial.plan.get("name") in names]
        kind = targets_of(args[0])
        chosen = best_fixed(names, [trial for trial in known if trial.descriptors["kind"] == kind])
        return tuple(plan for plan in plans if plan.name == chosen)

    with ExitStack() as stack:
        if method == "fixed":  # no other plan, and no simple baseline that could be kept instead
            stack.enter_context(patch.object(command, "plans_for", only_the_best))
            for names in ("of_fields", "without_model"):
                stack.enter_context(patch.object(simple, names, lambda source: {}))
        try:
            report = kshot.auto(
                values, folder, minutes=minutes, resume=folder.exists(),
                experience=Others(None) if method == "cold" else experience,
            )  # fmt: skip
        except ValueError as error:
            if method != "fixed":
                raise
            return result | {"failure": str(error)}
    metric = report["metric"]
    target = Target(metric, bool(report["higher_is_better"]), 0.0)
    entrants = report["choice"]["entrants"]
    result |= {
        "metric": metric, "higher_is_better": target.at_least, "value": report["test"][metric]["mean"],
        "kept": next(each["about"] for each in entrants if each["kept"]),
        "trials": len(experience.trials()),
    }  # fmt: skip
    shutil.rmtree(folder / "plans", ignore_errors=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--only", nargs="+", default=SETS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/auto"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the large data sets")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and do nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if not options.table:
        use_cpu_clock()
        known = {(each["name"], each["method"], each["seed"], each["minutes"]) for each in done}
        for seed in options.seeds:
            for name in options.only:
                for method in options.methods:
                    if (name, method, seed, minutes_of(method, options)) in known:
                        continue
                    result = measure(name, method, seed, options)
                    done.append(result)
                    with results.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                    print(json.dumps(result), flush=True)
    print_table([each for each in done if each["minutes"] == minutes_of(each["method"], options)], options.out)


def print_table(results: list[dict[str, Any]], out: Path) -> None:
    """Print the log ratios of errors of `auto` to the other methods; negative is better."""
    of = {(each["name"], each["method"], each["seed"]): each for each in results if "failure" not in each}
    print("| data set | other method | seeds | log error of auto to it | over test units |")
    print("| --- | --- | --- | --- | --- |")
    for method in METHODS[1:]:
        means = []
        for name in dict.fromkeys(each["name"] for each in results):
            seeds = [seed for (other, mine, seed) in of if (other, mine) == (name, method)]
            pairs = [(of[name, "auto", seed], of[name, method, seed]) for seed in seeds if (name, "auto", seed) in of]
            if not pairs:
                continue
            ratios = [_error(ours) - _error(theirs) for ours, theirs in pairs]
            means.append(float(np.mean(ratios)))
            over_units = interval(*per_test_task(pairs, out))
            intervals = f"{_short(interval(ratios))} | {_short(over_units)}, {over_units.sample}"
            print(f"| {name} | {method} | {len(pairs)} | {intervals} |")
        if means:
            print(f"| {len(means)} data sets | {method} | | **{_short(interval(means))}** | |")


def per_test_task(
    pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], out: Path
) -> tuple[list[float], Units | None]:
    """For each test task of the results of two methods, of each seed, the log ratio of their errors to first order in
    the figures of the task; and the units of the tasks, those of one name being the same for all seeds."""
    values, members, unit = list[float](), list[list[str]](), ""
    for ours, theirs in pairs:
        first, second = (read_tasks(RunFolder(_folder(out, each)).tasks)[0] for each in (ours, theirs))
        if first.episodes != second.episodes:
            raise ValueError(f"{ours['name']}: the two methods were tested on different tasks")
        terms = []
        for result, scores in ((ours, first), (theirs, second)):
            figures = np.array(scores.per_task[result["metric"]])
            sign = -1.0 if result["higher_is_better"] else 1.0
            slope = sign if result["metric"] in LOGARITHMIC else sign / math.exp(_error(result))
            terms.append(_error(result) + slope * (figures - figures.mean()))
        values += (terms[0] - terms[1]).tolist()
        if first.units is not None:
            members += [first.units.of_task(task) for task in range(len(first.episodes))]
            unit = first.units.unit
    if not members:
        return values, None
    number = {name: place for place, name in enumerate(dict.fromkeys(name for each in members for name in each))}
    width = max(map(len, members))
    numbers = np.array([[number[name] for name in each] + [-1] * (width - len(each)) for each in members])
    return values, Units(numbers if width > 1 else numbers[:, 0], unit, list(number))


def _folder(out: Path, result: dict[str, Any]) -> Path:
    return out / "runs" / "{name}-{method}-{seed}-{minutes:g}".format_map(result)


def _error(result: dict[str, Any]) -> float:
    """The test error of a result on the scale of `error_of`."""
    return error_of(result["value"], Target(result["metric"], result["higher_is_better"], 0.0))


def _short(figure: Interval) -> str:
    """A mean with its interval."""
    between = f" ({figure.low:+.3f} to {figure.high:+.3f})" if math.isfinite(figure.ci95) else ""
    return f"{figure.mean:+.3f}{between}"


if __name__ == "__main__":
    main()
