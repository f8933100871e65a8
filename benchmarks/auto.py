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
written to --out, and not done again. The table has the mean over seeds of the log of the ratio of errors, for each data
set, and its mean over data sets with a 95 % interval by the t distribution.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from cpu_clock import use_cpu_clock
from experience_sets import data_sets, relatives
from scipy import stats

import kshot
from kshot.app.auto import command
from kshot.app.auto.descriptors import error_of
from kshot.app.auto.plans import Plan, plans_for
from kshot.app.auto.ranking import gain_of
from kshot.app.goes_with import targets_of
from kshot.deciding.experience import Experience, Trial
from kshot.evaluation.target import Target

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
    folder, experience = options.out / "runs" / f"{name}-{method}-{seed}-{minutes:g}", Others(relatives(name))

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
            for simple in ("of_fields", "without_model"):
                stack.enter_context(patch.object(command, simple, lambda source: {}))
        try:
            report = kshot.auto(
                values, folder, minutes=minutes, resume=folder.exists(),
                experience=Others(None) if method == "cold" else experience,
            )  # fmt: skip
        except ValueError as error:
            if method != "fixed":
                raise
            return {"name": name, "method": method, "seed": seed, "minutes": minutes, "failure": str(error)}
    metric = report["metric"]
    target = Target(metric, bool(report["higher_is_better"]), 0.0)
    entrants = report["choice"]["entrants"]
    result = {
        "name": name, "method": method, "seed": seed, "minutes": minutes, "metric": metric,
        "higher_is_better": target.at_least, "value": report["test"][metric]["mean"],
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
    print_table([each for each in done if each["minutes"] == minutes_of(each["method"], options)])


def print_table(results: list[dict[str, Any]]) -> None:
    """Print the log ratios of errors of `auto` to the other methods; negative is better."""
    errors: dict[tuple[str, str, int], float] = {}
    results = [each for each in results if "failure" not in each]
    for each in results:
        target = Target(each["metric"], each["higher_is_better"], 0.0)
        errors[each["name"], each["method"], each["seed"]] = error_of(each["value"], target)
    names = list(dict.fromkeys(each["name"] for each in results))
    others = [method for method in METHODS if method != "auto"]
    print(f"| data set | seeds | {' | '.join(f'log error to {method}' for method in others)} |")
    print("| --- " * (2 + len(others)) + "|")
    means: dict[str, list[float]] = {method: [] for method in others}
    for name in names:
        cells = []
        for method in others:
            pairs = [
                error - errors[other, method, seed]
                for (other, mine, seed), error in errors.items()
                if (other, mine) == (name, "auto") and (other, method, seed) in errors
            ]
            if pairs:
                means[method].append(float(np.mean(pairs)))
            half = _half_width(pairs)
            cells.append(f"{np.mean(pairs):+.3f} ± {half:.3f}" if pairs else "–")
        seeds = sum(1 for other, method, _ in errors if (other, method) == (name, "auto"))
        print(f"| {name} | {seeds} | {' | '.join(cells)} |")
    cells = [
        f"**{np.mean(each):+.3f} ± {_half_width(each):.3f}** ({len(each)})" if each else "–" for each in means.values()
    ]
    print(f"| mean over data sets | | {' | '.join(cells)} |")


def _half_width(values: list[float]) -> float:
    """Half of a 95 % interval of the mean by the t distribution; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
