"""The final evaluation of a trained learner with its baselines, over shots, its cost; and its entries in a report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kshot.app.baselines import Setting, describe, evaluate_baselines, evaluate_with_coverage
from kshot.app.build import device_of, shapes_of
from kshot.app.failures import Failures
from kshot.app.spec import Spec
from kshot.app.without_pretraining import NAME as WITHOUT
from kshot.app.without_pretraining import WithoutPretraining, evaluate_without_pretraining, images_of, steps_of_run
from kshot.app.worst_tasks import WorstTask, with_examples, worst_tasks
from kshot.data.pretrained import trained_on
from kshot.deciding.decisions import EventLog
from kshot.evaluation.audit.run import UntrustedFigure
from kshot.evaluation.by_class import ByClass
from kshot.evaluation.by_unit import (
    LABELS,
    UNITS,
    UnitFigure,
    by_unit,
    write_by_class,
    write_by_label,
    write_by_unit,
)
from kshot.evaluation.compare import differences
from kshot.evaluation.cost import Cost, cost
from kshot.evaluation.evaluate import Evaluation, Scored
from kshot.evaluation.per_task import TASKS, figures_beside, write_tasks
from kshot.evaluation.rejection import Rejection, calibrate_threshold, rejection
from kshot.evaluation.report.formatting import learner_name
from kshot.evaluation.shots import Shots, over_shots
from kshot.evaluation.target import Target
from kshot.evaluation.units import describe_units
from kshot.learner import Learner
from kshot.learners.ratings.coverage import Coverage
from kshot.tasks.names import without_names
from kshot.tasks.read_log import EVALUATION, during, unwatched
from kshot.tasks.source import TaskSource
from kshot.types import Split

LISTED = 400  # pairs of classes, and units, in report.json; the tables beside it have all

Watch = Callable[[str, int, int], None]
"""(stage, number of tasks done, number of tasks), called after each task."""


@dataclass(frozen=True)
class TestResult:
    """Result of a final evaluation.

    Attributes:
        test, baselines: evaluations of the learner, and of the baselines on the first of the same tasks.
        shots: figures of the learner by number of shots; empty if the source cannot change it.
        coverage: catalogue coverage of the learner and the baselines; empty if tasks have no catalogue.
        threshold: novelty threshold, set on validation tasks, if the run file has a `reject` section.
        rejection: performance in out-of-scope detection, if the source has out-of-scope examples too.
        worst: the tasks with the worst figures.
        units: the figures by unit, if each task has one.
        external: the pretrained encoder, what it was trained on, and how a network without it was trained.

    What is missing because it failed is in the `failures` that were given.
    """

    target: Target
    test: Evaluation
    baselines: dict[str, Evaluation]
    shots: list[Shots]
    cost: Cost | None
    coverage: dict[str, Coverage]
    threshold: float | None
    rejection: Rejection | None
    worst: list[WorstTask]
    units: list[UnitFigure]
    external: dict[str, Any] | None


def evaluate_with_baselines(
    learner: Learner,
    spec: Spec,
    source: TaskSource,
    pretrained: Sequence[nn.Module],
    watch: Watch,
    checkpoint: Path,
    failures: Failures,
    event_log: EventLog,
    *,
    split: Split = "test",
    num_tasks: int | None = None,
    episodes_sha256: str | None = None,
    with_baselines: bool = True,
) -> TestResult:
    """Evaluate a learner and its baselines on a split, and the learner over several numbers of shots.

    Args:
        pretrained: models before meta-training, for the baselines that need one; see `Setting`.
        watch: called after each task.
        failures: receives what fails after the learner is evaluated.
        event_log: of the run; it says for how many steps the network without pretraining is trained.
        split, num_tasks, checkpoint, episodes_sha256: as in `evaluate`; by default the tasks of the run file.
        with_baselines: whether the baselines are evaluated.
    """
    target = Target.parse(spec.target)
    count = num_tasks or spec.evaluate.num_test_tasks
    coverage: dict[str, Coverage] = {}

    def observe(stage: str, total: int) -> Callable[[Scored], None]:
        return lambda scored: watch(stage, scored.number + 1, total)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedFigure)  # the report says so
        test = evaluate_with_coverage(
            "learner",
            learner,
            source,
            coverage,
            split=split,
            num_tasks=count,
            episodes_sha256=episodes_sha256,
            observe=observe(split, count),
            checkpoint=checkpoint,
        )
    baselines: dict[str, Evaluation] = {}
    if with_baselines:
        plain = without_names(source)
        with during(plain, "tuning"):
            shapes = shapes_of(plain, "val")
        setting, num_beside = Setting(spec, plain, shapes, device_of(spec), pretrained), count
        if spec.baselines.num_test_tasks is not None:
            num_beside = min(spec.baselines.num_test_tasks, count)
        with failures.recorded("the baselines"):
            baselines = evaluate_baselines(
                setting,
                split,
                num_beside,
                lambda name: observe(name.replace("_", " "), num_beside),
                coverage,
                failures,
            )
    external = _external(source)
    if external is not None and with_baselines:
        with failures.recorded(f"baseline {WITHOUT}"):
            found = _without_pretraining(spec, source, test, num_beside, watch, event_log)
            if found is not None:
                baselines[WITHOUT] = found.evaluation
                external |= {"steps": found.steps, "seconds": found.seconds, "without": found.about}
    shots, costs = list[Shots](), None
    with failures.recorded("the figures by number of shots"):
        if longer := _with_most_shots(spec, source):
            shots = over_shots(learner, *longer, split=split, num_tasks=min(spec.evaluate.num_shots_tasks, count))
    with failures.recorded("the cost of a task"), during(source, EVALUATION):
        costs = cost(learner, source.task(split, 0))
    threshold, rejected = None, None
    with failures.recorded("the rejection of out-of-scope examples"):
        threshold, rejected = _evaluate_rejection(learner, spec, source, split, count)
    metric, options = target.metric, {"higher_is_better": target.at_least}
    worst = worst_tasks(source, test, metric, **options)
    with failures.recorded("the examples of the worst tasks"):
        worst = with_examples(worst, learner, source, split)
    units = by_unit(test, metric, baselines, **options)
    return TestResult(target, test, baselines, shots, costs, coverage, threshold, rejected, worst, units, external)


def _external(source: TaskSource) -> dict[str, Any] | None:
    """The pretrained encoder of a run, and what it was trained on as far as that is known; None without an encoder."""
    name = source.describe().get("encoder")
    return {"encoder": name, "trained_on": trained_on(name)} if name else None


def _without_pretraining(
    spec: Spec, source: TaskSource, test: Evaluation, num_tasks: int, watch: Watch, event_log: EventLog
) -> WithoutPretraining | None:
    """The baseline without the pretrained encoder; None if the run file asks for none or tasks are of no images."""
    names, images = spec.baselines.names, images_of(source)
    if images is None or not spec.baselines.scratch_seconds or (names is not None and WITHOUT not in names):
        return None
    return evaluate_without_pretraining(
        images,
        test,
        steps=steps_of_run(images, spec.baselines.scratch_seconds, spec.seed, event_log),
        num_tasks=num_tasks,
        seed=spec.seed,
        training=partial(watch, "train without the encoder"),
        observe=lambda scored: watch("without the encoder", scored.number + 1, num_tasks),
    )


def write_tables(folder: Path, result: TestResult) -> None:
    """Write the figures of each task, and those by unit and by class as far as there are any, as CSV files."""
    test, metric = result.test, result.target.metric
    write_tasks(folder / TASKS, test, result.baselines, metric)
    if result.units and test.units is not None:
        write_by_unit(folder / UNITS, result.units, test.units.unit, metric)
    if test.by_class is not None:
        write_by_class(folder, test.by_class)
    if test.by_label:
        write_by_label(folder / LABELS, test.by_label)


def _evaluate_rejection(
    learner: Learner, spec: Spec, source: TaskSource, split: Split, num_tasks: int
) -> tuple[float | None, Rejection | None]:
    if spec.reject is None:
        return None, None
    options: dict[str, Any] = spec.reject.model_dump(exclude={"outsiders"})
    threshold = calibrate_threshold(learner, source, **options, num_tasks=spec.evaluate.num_val_tasks)
    if not source.describe().get("out_of_scope", {}).get(split):
        return threshold, None
    options |= {"threshold": threshold, "outsiders": spec.reject.outsiders}
    return threshold, rejection(learner, source, **options, split=split, num_tasks=num_tasks)


def _with_most_shots(spec: Spec, source: TaskSource) -> tuple[TaskSource, list[int]] | None:
    """The source with the most of the run file's `shots` that the data have, and the numbers up to it, if at least two.

    Increasing the shots must not drop any data: the tasks would be different ones.
    """
    counts = sorted(set(spec.evaluate.shots))
    dropped = source.describe().get("dropped")
    while len(counts) > 1:
        try:
            longer = source.with_shots(counts[-1])
            about = longer.describe()
            most = about.get("shots", 0)
            most = most[-1] if isinstance(most, list) else most
            if most >= counts[-1] and about.get("dropped") == dropped:
                return longer, counts
        except ValueError:
            pass  # the data have too few examples
        counts.pop()
    return None


def _in_words(value: Any) -> str:
    """The value of an option; learners among them as "name: kind (options)".

    Example:
        >>> _in_words({"a": {"kind": "maml", "model": None, "steps": 5}, "b": {"kind": "protonet"}})
        'a: maml (steps 5); b: protonet'
    """
    if not isinstance(value, dict):
        return str(value)
    if "kind" not in value:
        return "; ".join(f"{name}: {_in_words(each)}" for name, each in value.items())
    options = {name: each for name, each in value.items() if name != "kind" and not (name == "model" and each is None)}
    inside = ", ".join(f"{name} {_in_words(each)}" for name, each in options.items())
    return learner_name(value) + f" ({inside})" * bool(inside)


def report_entries(
    result: TestResult, spec: Spec, source: TaskSource, learner: Learner, failures: Failures, num_steps: int
) -> dict[str, Any]:
    """The entries of a report on its final evaluation; the learner was meta-trained for `num_steps` steps."""
    test, metric = result.test, result.target.metric
    failed = (each.what.removeprefix("baseline ") for each in failures if each.what.startswith("baseline "))
    descriptions = {name: describe(name, spec) for name in [*result.baselines, *failed]}
    options = ", ".join(f"{name} {_in_words(each)}" for name, each in spec.learner.model_dump(exclude={"kind"}).items())
    trained = f"meta-trained for {num_steps:,} steps on the training tasks" if num_steps else "not meta-trained"
    descriptions["learner"] = f"{learner_name(spec.learner.model_dump())} ({options}), {trained}"
    if WITHOUT in result.baselines and result.external:
        descriptions[WITHOUT] = result.external["without"]
    return {
        "metric": metric,
        "external": result.external,
        "higher_is_better": result.target.at_least,
        "split": test.split,
        "test": test.metrics,
        "beside": figures_beside(test, result.baselines),
        "baselines": {name: baseline.metrics for name, baseline in result.baselines.items()},
        "baselines_about": descriptions,
        "paired": differences(test, result.baselines, metric),
        "audits": [audit.to_json() for audit in test.audits],
        "trusted": test.trusted,
        "inference": {"learner": test.inference} | {name: each.inference for name, each in result.baselines.items()},
        "worst_tasks": [each.to_json(metric) for each in result.worst],
        "by_class": _classes_entry(test.by_class),
        "by_label": list(test.by_label),
        "by_unit": units_entry(result.units, test.units.unit if test.units else ""),
        "pooled": {"learner": test.pooled} | {name: each.pooled for name, each in result.baselines.items()}
        if test.pooled
        else {},
        "shots": result.shots,
        "rejection": result.rejection,
        "calibration": test.calibration,
        "coverage": result.coverage,
        "failures": failures,
        "cost": (result.cost._asdict() if result.cost else {})
        | {"adapt_ms": test.adapt_ms, "predict_ms": test.predict_ms},
        "protocol": protocol(spec, source, learner)
        | {"episodes_sha256": test.episodes_sha256, "num_test_tasks": len(test.episodes)}
        | describe_units(test.units),
    }


def protocol(spec: Spec, source: TaskSource, learner: Learner) -> dict[str, Any]:
    """The protocol under which the figures of a run hold."""
    return source.describe() | {
        "seed": spec.seed,
        "task_seed": source.seed,
        "learner": spec.learner.model_dump(),
        "model": spec.model.model_dump() if spec.model else None,
        "inductive": learner.inference == "inductive",
        "inference": learner.inference,
        **({"ensemble": learner.num_members} if learner.num_members > 1 else {}),
        **({"weighted_queries": True} if unwatched(source).weighted_queries else {}),
        "episodes_sha256": None,
        "num_test_tasks": spec.evaluate.num_test_tasks,
        "num_val_tasks": spec.evaluate.num_val_tasks,
        "seeds": 1,
        "selection": "one checkpoint, selected on validation tasks; the test tasks are read once, at the end",
    }


def _classes_entry(by_class: ByClass | None) -> dict[str, Any]:
    return {} if by_class is None else {"classes": by_class.classes, "confusions": by_class.confusions[:LISTED]}


def units_entry(units: Sequence[UnitFigure], unit: str) -> dict[str, Any]:
    """The entry of a report on its units, worst first; empty if there are none."""
    return {"unit": unit, "num_units": len(units), "units": units[:LISTED]} if units else {}
