"""The test of a trained learner: beside its baselines, over shots, with its cost; and what a report says of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kshot.app.baselines import COVERED, about, evaluate_baselines
from kshot.app.build import Shapes, build_source, device_of
from kshot.app.spec import Spec
from kshot.evaluation.audit.run import UntrustedFigure
from kshot.evaluation.compare import differences
from kshot.evaluation.cost import Cost, cost
from kshot.evaluation.coverage import Coverage
from kshot.evaluation.evaluate import Evaluation, Scored, evaluate
from kshot.evaluation.rejection import Rejection, calibrated, rejection
from kshot.evaluation.report import charts
from kshot.evaluation.report.verdict import best_baseline
from kshot.evaluation.shots import Shots, over_shots
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.objectives import gaussian
from kshot.sources.pixels import Pixels
from kshot.tasks.read_log import EVALUATION, during
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 5  # tasks that a report lists
COMPLETED = 7  # images that it shows completed

Watch = Callable[[str, int, int], None]
"""(stage, tasks done, tasks in all): told as each task is scored."""


@dataclass(frozen=True)
class TestResult:
    """What a test found.

    Attributes:
        target: the metric that counts, and which way.
        test: the learner's figures.
        baselines: theirs, on the first of the same tasks.
        shots: the learner's over numbers of support examples; empty where the source cannot make such tasks.
        cost: what no clock measures.
        threshold: of novelty, where the run file asks for one; set on validation tasks.
        rejection: how it tells what is out of scope, where the source has such examples too.
    """

    target: Target
    test: Evaluation
    baselines: dict[str, Evaluation]
    shots: list[Shots]
    cost: Cost
    threshold: float | None
    rejection: Rejection | None


def evaluate_with_baselines(
    learner: Learner,
    spec: Spec,
    source: TaskSource,
    shapes: Shapes,
    pretrained: nn.Module | None,
    watch: Watch,
    checkpoint: Path,
    *,
    split: Split = "test",
    tasks: int | None = None,
    episodes_sha256: str | None = None,
    with_baselines: bool = True,
) -> TestResult:
    """Score a learner on a split, its baselines beside it, and its curve over shots.

    Args:
        learner: trained, on its device.
        spec: the run file.
        source: its tasks.
        shapes: of one example.
        pretrained: the model before meta-training, for the baselines that need one.
        watch: told of each task.
        checkpoint: the folder that the learner was loaded from.
        split: "test", or "val".
        tasks: how many; those of the run file by default.
        episodes_sha256: the hash that the episodes must have.
        with_baselines: whether the baselines are evaluated.
    """
    target = Target.parse(spec.target)
    count = tasks or spec.evaluate.num_test_tasks

    def observe(stage: str, total: int) -> Callable[[Scored], None]:
        return lambda scored: watch(stage, scored.number + 1, total)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedFigure)  # the report says it
        test = evaluate(
            learner,
            source,
            split=split,
            tasks=count,
            episodes_sha256=episodes_sha256,
            observe=observe(split, count),
            checkpoint=checkpoint,
            coverage=COVERED,
        )
    beside = min(spec.baselines.num_test_tasks, count)
    baselines: dict[str, Evaluation] = {}
    if with_baselines:
        baselines = evaluate_baselines(
            spec,
            source,
            pretrained,
            shapes,
            target,
            device_of(spec),
            split,
            beside,
            lambda name, scored: watch(name.replace("_", " "), scored.number + 1, beside),
        )
    longer = _longest(spec, source)
    shots: list[Shots] = []
    if longer is not None:
        with_more, counts = longer
        shots = over_shots(learner, with_more, counts, split=split, tasks=min(spec.evaluate.num_shots_tasks, count))
    with during(source, EVALUATION):
        priced = cost(learner, source.task(split, 0))
    return TestResult(target, test, baselines, shots, priced, *_rejecting(learner, spec, source, split, count))


def _rejecting(
    learner: Learner, spec: Spec, source: TaskSource, split: Split, count: int
) -> tuple[float | None, Rejection | None]:
    """The threshold of novelty, and what it does."""
    if spec.reject is None:
        return None, None
    how: dict[str, Any] = spec.reject.model_dump(exclude={"outsiders"})
    threshold = calibrated(learner, source, **how, tasks=spec.evaluate.num_val_tasks)
    if not source.describe().get("out_of_scope", {}).get(split):
        return threshold, None
    how |= {"threshold": threshold, "outsiders": spec.reject.outsiders}
    return threshold, rejection(learner, source, **how, split=split, tasks=count)


def _longest(spec: Spec, source: TaskSource) -> tuple[TaskSource, list[int]] | None:
    """The source with the most shots that the run file asks a curve for and the data has, and the numbers up to it.

    None if there are not two. More shots must leave out nothing of the data, or it would be a curve over other tasks.
    """
    asked = sorted(set(spec.evaluate.shots))
    before = source.describe()
    while len(asked) > 1:
        try:
            longer = source.with_shots(asked[-1])
            described = longer.describe()
            most = described.get("shots", 0)
            most = most[-1] if isinstance(most, list) else most
            if most >= asked[-1] and described.get("dropped") == before.get("dropped"):
                return longer, asked
        except ValueError:
            pass  # the data has not so many
        asked.pop()
    return None


def report_entries(tested: TestResult, spec: Spec, source: TaskSource, learner: Learner) -> dict[str, Any]:
    """A report's entries on the test."""
    test, metric = tested.test, tested.target.metric
    return {
        "metric": metric,
        "higher_is_better": tested.target.at_least,
        "split": test.split,
        "test": test.metrics,
        "baselines": {name: found.metrics for name, found in tested.baselines.items()},
        "baselines_about": {name: about(name, spec) for name in tested.baselines} | {"learner": _about(spec)},
        "paired": differences(test, tested.baselines, metric),
        "audits": [audit.to_json() for audit in test.audits],
        "trusted": test.trusted,
        "worst_tasks": _worst(tested),
        "shots": tested.shots,
        "rejection": tested.rejection and tested.rejection.to_json(),
        "calibration": test.calibration,
        "coverage": _coverage(tested),
        "cost": tested.cost._asdict() | {"adapt_ms": test.adapt_ms, "predict_ms": test.predict_ms},
        "protocol": protocol(spec, source, learner)
        | {"episodes_sha256": test.episodes_sha256, "num_test_tasks": len(test.episodes)}
        | ({} if test.subjects is None else {"test_subjects": len(set(test.subjects.tolist()))}),
    }


def _coverage(tested: TestResult) -> dict[str, Coverage]:
    """Of the learner and the baselines, the catalogue's; none where tasks have none."""
    each = {"learner": tested.test} | tested.baselines
    return {name: found.coverage for name, found in each.items() if found.coverage}


def protocol(spec: Spec, source: TaskSource, learner: Learner) -> dict[str, Any]:
    """What the figures of a run hold under."""
    return source.describe() | {
        "seed": spec.seed,
        "task_seed": source.seed,
        "learner": spec.learner.model_dump(),
        "model": spec.model.model_dump() if spec.model else None,
        "inductive": not learner.transductive,
        "episodes_sha256": None,
        "num_test_tasks": spec.evaluate.num_test_tasks,
        "num_val_tasks": spec.evaluate.num_val_tasks,
        "seeds": 1,
        "selection": "one checkpoint, chosen on validation tasks; the test tasks are read once, at the end",
    }


def _about(spec: Spec) -> str:
    options = ", ".join(f"{name} {value}" for name, value in spec.learner.model_dump(exclude={"kind"}).items())
    return f"{spec.learner.kind} ({options}), meta-trained on the training tasks"


def _worst(tested: TestResult) -> list[dict[str, Any]]:
    """The tasks with the worst figures, the worst first."""
    metric = tested.target.metric
    values = torch.tensor(tested.test.per_task[metric], dtype=torch.float64)
    order = values.argsort(descending=not tested.target.at_least, stable=True)[:WORST].tolist()
    return [{"task": place, "episode": tested.test.episodes[place], metric: float(values[place])} for place in order]


def make_figures(report: dict[str, Any], tested: TestResult, spec: Spec, learner: Learner) -> dict[str, Figure]:
    """The figures of a test; `report` has its entries as JSON knows them."""
    test, metric, higher = tested.test, tested.target.metric, tested.target.at_least
    name = spec.learner.kind
    drawn: dict[str, Figure] = {}
    if tested.baselines:
        drawn["baselines"] = charts.baselines_chart(
            report["test"], report["baselines"], metric, higher_is_better=higher, learner=name
        )
    best = best_baseline(report["baselines"], metric, higher)
    beside = None if best is None else (best[0], tested.baselines[best[0]].per_task[metric])
    drawn["tasks"] = charts.tasks_chart(
        test.per_task[metric], metric, learner=name, beside=beside, subjects=test.subjects
    )
    if tested.shots:
        points = [(each.shots, each.metrics[metric]) for each in tested.shots]
        drawn["shots"] = charts.shots_chart(points, metric, higher_is_better=higher)
    if test.calibration is not None:
        drawn["reliability"] = charts.reliability_chart(test.calibration)
    return drawn | _examples(spec, learner.cpu().eval())


def _examples(spec: Spec, learner: Learner) -> dict[str, Figure]:
    """Pictures of the first test tasks, where they can be drawn."""
    if spec.source.kind in ("sinusoids", "gaussian_processes"):
        curves = build_source(spec.model_copy(update={"source": spec.source.model_copy(update={"queries": 100})}))
        shown = [curves.task("test", index) for index in range(3)]
        if curves.objective == gaussian:
            with torch.no_grad():
                said = [learner.predict(learner.adapt(task.support), task.query.inputs) for task in shown]
            return {"predictive_bands": charts.predictive_bands(shown, {spec.learner.kind: said})}
        if not isinstance(learner, GradientLearner):
            return {}
        return {"regression_examples": charts.regression_examples(learner, shown, steps=(0, 1, 5))}
    source = build_source(spec)
    if isinstance(source, Pixels):
        counts = sorted({source.shots.high // 10, 3 * source.shots.high // 10, source.shots.high})
        return {"completions": completions_of(learner, source, counts, range(COMPLETED))}
    if getattr(source.task("test", 0).query.inputs, "ndim", 0) != 4:
        return {}  # no images to show
    examples = []
    with torch.no_grad():
        for index in range(4):
            task = source.task("test", index)
            examples.append(charts.Example(task, learner.predict(learner.adapt(task.support), task.query.inputs)))
    return {"classification_examples": charts.classification_examples(examples)}


def completions_of(
    learner: Learner, source: Pixels, counts: Sequence[int], indices: Iterable[int], split: Split = "test"
) -> Figure:
    """A picture of images that a learner completes from so many of their pixels, each number with those before it."""
    height, width = source.size
    columns = []
    for index in indices:
        image = source.image(split, index)
        targets = image.flatten(1).T  # (H W, C)
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(index))
        column = []
        for count in counts:
            known = order[:count]
            with torch.no_grad():
                state = learner.adapt(Batch.of(source.positions[known], targets[known]))
                told = learner.predict(state, source.positions)
            mean, std = (told[name].T.reshape(image.shape) for name in ("mean", "std"))
            shown = torch.zeros(height * width, dtype=torch.bool).index_fill(0, known, True).view(height, width)
            column.append(charts.Completion(image, shown, mean, std))
        columns.append(column)
    return charts.completions(columns)
