"""The figures of a test: charts of its results, and pictures of the first tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kshot.app.build import build_source
from kshot.app.final_evaluation import TestResult
from kshot.app.spec import Spec
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.report import breakdowns, charts, plan_charts, task_pictures
from kshot.evaluation.report.formatting import learner_name
from kshot.evaluation.report.label_pictures import labelled
from kshot.evaluation.report.mask_pictures import Segmented, segmentations
from kshot.evaluation.report.verdict import best_baseline
from kshot.evaluation.report.worst_pictures import picture_of
from kshot.learner import Learner, predict_query
from kshot.learners.choosing.choose import Choosing
from kshot.learners.choosing.mixture import Mixture
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.objectives import gaussian
from kshot.sources.masks import ImageMasks
from kshot.sources.pixels import Pixels
from kshot.tasks.mask_tasks import MaskTasks
from kshot.tasks.read_log import Watched, unwatched
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Task, Tree, to

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPLETED = 7  # images in the picture of completions
SEGMENTED = 3  # tasks in the picture of segmentations
TASKS_OF_PARTS = 100
"""Tasks on which the parts of a learner are shown."""


def make_figures(
    report: dict[str, Any], result: TestResult, spec: Spec, source: Watched, learner: Learner
) -> dict[str, Figure]:
    """The figures of a test by name, from its report as plain values and its result; moves the learner to the CPU."""
    test, metric, higher = result.test, result.target.metric, result.target.at_least
    name = learner_name(spec.learner.model_dump())
    figures: dict[str, Figure] = {}
    if result.baselines:
        figures["baselines"] = charts.baselines_chart(
            report["test"], report["baselines"], metric, higher_is_better=higher, learner=name
        )
    best = best_baseline(report["baselines"], metric, higher)
    beside = None if best is None else (best[0], result.baselines[best[0]].per_task[metric])
    figures["tasks"] = charts.tasks_chart(test.per_task[metric], metric, learner=name, beside=beside, units=test.units)
    if result.shots:
        points = [(each.shots, each.metrics[metric]) for each in result.shots]
        figures["shots"] = charts.shots_chart(points, metric, higher_is_better=higher)
    if test.calibration is not None:
        figures["reliability"] = charts.reliability_chart(test.calibration)
    if test.by_class is not None and len(test.by_class.matrix()[0]) <= breakdowns.MOST_CLASSES:
        figures["confusion"] = breakdowns.confusion_chart(test.by_class)
    if test.by_label:
        figures["labels"] = breakdowns.labels_chart(test.by_label)
    if result.units and test.units is not None:
        figures["units"] = breakdowns.units_chart(
            result.units, test.units.unit, metric, higher_is_better=higher, beside=best and best[0]
        )
    if isinstance(learner, Choosing | Mixture):
        figures |= _figures_of_parts(learner, source, result, metric, higher_is_better=higher)
    for number, task in enumerate(result.worst, 1):
        scored = task.scored
        options: dict[str, Any] = {"forecast": source.forecasts, "predicts": source.objective.predicts}
        if scored and source.objective.predicts == "masks":
            if example := _segmented(source, test.split, task.number, scored.task, scored.prediction):
                figures[f"worst_{number}"] = segmentations([example])
        elif scored and (drawn := picture_of(scored.task, scored.prediction, task.classes, **options)):
            figures[f"worst_{number}"] = drawn
    return figures | _pictures(spec, source.source, learner.cpu().eval())


def _figures_of_parts(
    learner: Choosing | Mixture, source: TaskSource, result: TestResult, metric: str, *, higher_is_better: bool
) -> dict[str, Figure]:
    """The regret of a learner that chooses among parts, or mixes them, and the weights that it chose."""
    count = min(len(result.test.per_task[metric]), TASKS_OF_PARTS)
    options: dict[str, Any] = {"split": result.test.split, "num_tasks": count, "audit": False}
    alone = {name: evaluate(part, source, **options).per_task[metric] for name, part in learner.parts.items()}
    name = "choice" if isinstance(learner, Choosing) else "mixture"
    regret = plan_charts.regret_chart(
        result.test.per_task[metric][:count], alone, metric, higher_is_better=higher_is_better, learner=name
    )
    if not isinstance(learner, Choosing):
        return {"regret": regret}
    tasks = [source.task(result.test.split, index).support for index in range(count)]
    device = learner.mean_losses.device
    weight_TP = torch.stack([learner.weigh(to(support, device)) for support in tasks])
    weights = dict(zip(learner.names, weight_TP.T.tolist()))
    return {"regret": regret, "weights": plan_charts.weights_chart(weights)}


@torch.no_grad()
def _pictures(spec: Spec, source: TaskSource, learner: Learner) -> dict[str, Figure]:
    """Pictures of the first test tasks, if they can be drawn."""

    def predict(source: TaskSource, index: int) -> Tree:
        task = source.task("test", index)
        return predict_query(learner, learner.adapt(task.support), task.query)

    if spec.source.kind in ("sinusoids", "gaussian_processes"):
        curves = build_source(spec.model_copy(update={"source": spec.source.model_copy(update={"queries": 100})}))
        tasks = [curves.task("test", index) for index in range(3)]
        if curves.objective == gaussian:
            predictions = [predict(curves, index) for index in range(3)]
            return {
                "predictive_bands": task_pictures.predictive_bands(
                    tasks, {learner_name(spec.learner.model_dump()): predictions}
                )
            }
        if not isinstance(learner, GradientLearner):
            return {}
        return {"regression_examples": task_pictures.regression_examples(learner, tasks, steps=(0, 1, 5))}
    if isinstance(source, Pixels):
        most = source.shots.high
        return {"completions": draw_completions(learner, source, sorted({most // 10, 3 * most // 10, most}))}
    if getattr(source.task("test", 0).query.inputs, "ndim", 0) != 4:
        return {}  # not images
    if source.objective.predicts == "masks":
        numbers = range(SEGMENTED)
        found = [_segmented(source, "test", k, source.task("test", k), predict(source, k)) for k in numbers]
        drawable = [each for each in found if each is not None]
        return {"segmentation_examples": segmentations(drawable)} if drawable else {}
    if source.objective.predicts == "labels":
        (names,) = source.classes_of("test", [0]) or [[]]
        return {"labelled_examples": labelled(source.task("test", 0), predict(source, 0), names)} if names else {}
    examples = [task_pictures.Example(source.task("test", index), predict(source, index)) for index in range(4)]
    return {"classification_examples": task_pictures.classification_examples(examples)}


def _segmented(source: TaskSource, split: Split, number: int, task: Task, prediction: Tensor) -> Segmented | None:
    """A task of masks with its images as pixels; None if there are none."""
    own = unwatched(source)
    if not isinstance(own, MaskTasks):
        return None
    images = own.pictures if isinstance(own, ImageMasks) else own.examples
    support, query = (images.take(rows) for rows in own.example_rows(split, number))
    drawable = isinstance(query, Tensor) and query.ndim == 4 and query.shape[1] in (1, 3)
    return Segmented(task, support, query, prediction) if drawable else None


def draw_completions(
    learner: Learner,
    source: Pixels,
    counts: Sequence[int],
    indices: Iterable[int] = range(COMPLETED),
    split: Split = "test",
) -> Figure:
    """Completions of images by a learner from several numbers of their pixels, each including the previous ones."""
    height, width = source.size
    columns = []
    for index in indices:
        image = source.image(split, index)
        targets = image.flatten(1).T  # (H W, C)
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(index))
        column = []
        for known in (order[:count] for count in counts):
            with torch.no_grad():
                state = learner.adapt(Batch.of(source.positions[known], targets[known]))
                prediction = learner.predict(state, source.positions)
            mean, std = (prediction[name].T.reshape(image.shape) for name in ("mean", "std"))
            mask = torch.zeros(height * width, dtype=torch.bool).index_fill(0, known, True).view(height, width)
            column.append(task_pictures.Completion(image, mask, mean, std))
        columns.append(column)
    return task_pictures.completions(columns)
