"""Make the experience that comes with kshot: try plans on many data sets, and export what was found.

    OMP_NUM_THREADS=1 python benchmarks/make_experience.py [--only exam glyphs_5w1s] [--seconds 8] [--tasks 50]
    python benchmarks/make_experience.py --export kshot/deciding/experience.jsonl.xz

Data sets are those of `experience_sets.py`. The trials of a data set are written to the database in --out at once, and
data sets that are there are left out: call it again after an interruption. A plan that does not suit a data set, or
takes longer than --seconds, is said and left out.

Tried are the simple methods of `kshot.evaluation.baselines`, and learners that need no meta-training, on features as
they are. All figures are of validation tasks; test tasks are never read.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from experience_sets import RunFile, data_sets

from kshot.app.build import build_learner, build_model, build_source, has_head, shapes_of
from kshot.app.spec import Spec
from kshot.deciding.experience import Cost, Experience, Figure, Trial
from kshot.evaluation.baselines import best_first, of_fields, without_model
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.tasks.source import TaskSource
from kshot.training.closed_form import fit_closed_form
from kshot.types import tree_leaves

AS_THEY_ARE = {"kind": "mlp", "hidden": []}
CLASSES = {
    "protonet, untrained": {"learner": {"kind": "protonet"}, "model": AS_THEY_ARE},
    "simpleshot, untrained": {"learner": {"kind": "simpleshot"}, "model": AS_THEY_ARE},
    "plda, untrained": {"learner": {"kind": "plda", "within": 0.9, "between": 0.6, "scale": 0.3}, "model": AS_THEY_ARE},
    "logistic regression head, untrained": {"learner": {"kind": "logistic_regression"}, "model": AS_THEY_ARE},
}
GROUPS = {name: {"learner": {"kind": name}} for name in ("partial_pooling", "boosted_residual")}
SERIES = {"forecast_ensemble, untrained": {"learner": {"kind": "forecast_ensemble"}}}
ANY = {"learner": {"kind": "boosted_residual"}}
"""A plan with which any source can be built."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """A context that raises TimeoutError after a time."""

    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError(f"it was not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(run_file: RunFile, *, seconds: float, tasks: int) -> list[Trial]:
    """The trials of all plans on a data set: the one place that tries them."""
    spec = Spec.model_validate(run_file | ANY)
    source, target = build_source(spec), Target.parse(spec.target)
    methods: dict[str, tuple[Mapping[str, Any], Callable[[], Learner]]] = {}
    for name, candidates in (of_fields(source) | without_model(source)).items():
        plan = {"learner": {"kind": "kshot.evaluation.baselines:baseline", "name": name}}
        methods[name] = plan, lambda c=candidates: best_first(c(), source, target, num_val_tasks=min(tasks, 10))[0]
    simple = set(methods)
    for name, plan in plans_for(source).items():
        methods[name] = plan, lambda plan=plan: closed_form(Spec.model_validate(run_file | plan), source)
    measured: dict[str, tuple[Figure, int]] = {}
    for name, (_, make) in methods.items():
        started = time.perf_counter()
        try:
            with time_limit(seconds):
                learner = make()
                figure = target.of(evaluate(learner, source, split="val", num_tasks=tasks, audit=False).metrics)
        except Exception as error:  # a plan that does not suit the data has an error of any type
            print(f"  {name}: {type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}")
            continue
        width = None if figure.ci95 is None or not math.isfinite(figure.ci95) else figure.ci95
        parameters = sum(parameter.numel() for parameter in learner.parameters())
        measured[name] = Figure(time.perf_counter() - started, figure.mean, width), parameters
    best = max if target.at_least else min
    values = [figure.value for name, (figure, _) in measured.items() if name in simple and math.isfinite(figure.value)]
    baseline = best(values, default=None)
    descriptors = describe(source, target)
    descriptors |= {f"simple {name}": figure.value for name, (figure, _) in measured.items() if name in simple}
    return [
        Trial(
            descriptors=descriptors,
            plan={"name": name, **methods[name][0]},
            figures=[figure],
            baseline=baseline,
            cost=Cost(figure.seconds, parameters),
            data_set=run_file["name"],
        )
        for name, (figure, parameters) in measured.items()
    ]


def plans_for(source: TaskSource) -> Mapping[str, Mapping[str, Any]]:
    """The plans without meta-training that may suit a source."""
    if kind_of(source) == "few-shot classification":
        return CLASSES
    if source.forecasts:
        return SERIES
    return GROUPS if kind_of(source) in ("classification", "regression") else {}


def closed_form(spec: Spec, source: TaskSource) -> Learner:
    """The learner of a run file, fitted in closed form only."""
    shapes = shapes_of(source)
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    fit_closed_form(learner, source)
    return learner


def kind_of(source: TaskSource) -> str:
    """The kind of task, in words."""
    objective = source.objective
    if source.forecasts:
        return "forecast"
    if objective.classifies:
        return "few-shot classification" if objective.task_specific_classes else "classification"
    return "regression" if objective.predicts in ("values", "distribution") else "other"


def describe(source: TaskSource, target: Target) -> dict[str, float | str]:
    """What a data set is like, in numbers."""
    task = source.task("train", 0)
    return {
        "kind": kind_of(source),
        "metric": target.metric,
        "higher_is_better": float(target.at_least),
        "support": len(task.support.weight),
        "query": len(task.query.weight),
        "features": sum(math.prod(leaf.shape[1:]) for leaf in tree_leaves(task.support.inputs)),
        "outputs": math.prod(task.support.targets.shape[1:]),
        "dimensions": max(leaf.ndim - 1 for leaf in tree_leaves(task.support.inputs)),
        "units": len(source.sizes("train")),
        "examples": sum(source.sizes("train").values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of data sets; all by default")
    parser.add_argument("--seconds", type=float, default=8.0, help="time limit of each plan")
    parser.add_argument("--tasks", type=int, default=50, help="validation tasks")
    parser.add_argument("--out", type=Path, default=Path("runs/experience"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the large data sets")
    parser.add_argument("--export", type=Path, help="write all trials in the database to this file, and try nothing")
    options = parser.parse_args()
    experience = Experience(str(options.out / "experience.sqlite"))
    if options.export:
        print(f"{options.export}: {experience.export(options.export)} trials")
        return
    torch.set_num_threads(1)
    sets = data_sets(options.out / "data", options.shared)
    done = {trial.data_set for trial in experience.trials(shipped=False)}
    for name in options.only or sets:
        if name in done:
            continue
        started = time.perf_counter()
        try:
            trials = tried(sets[name], seconds=options.seconds, tasks=options.tasks)
        except Exception as error:  # one data set must not cost the others
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        experience.merge(trials)
        figures = {str(trial.plan["name"]): trial.figures[0].value for trial in trials}
        print(f"{name}, {time.perf_counter() - started:.0f} s: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main()
