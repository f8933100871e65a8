"""The tasks that a learner did worst on, as a reader knows them: their names, and the examples that went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.data.images.augment import Mirrored, Turned
from kshot.data.images.cache import DecodedImages
from kshot.data.images.encoder import EncodedImages
from kshot.data.tables.shown import shown
from kshot.evaluation.evaluate import Evaluation, Scored, score_again
from kshot.learner import Learner
from kshot.objectives.numbers import as_numbers
from kshot.objectives.segmentation import segmentation, upsampled
from kshot.sources.table import TableDataset, TablePreprocessor
from kshot.tasks.mixture import Mixture
from kshot.tasks.read_log import unwatched
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Tree

LISTED, SHOWN = 5, 3
"""Number of tasks that a report lists, and of those whose examples it shows."""
ROWS, COLUMNS, LONGEST = 6, 8, 160
"""Largest numbers of examples of a task, of their columns, and of characters of a text."""


class Examples(NamedTuple):
    """The examples of a task that a learner did worst on, as a table of texts."""

    header: list[str]
    rows: list[list[str]]
    note: str


class WorstTask(NamedTuple):
    """A task with one of the worst figures.

    Attributes:
        number, episode: its number, and the hash of its content.
        figure: the metric of the report.
        names: of its units, such as the user or the classes; empty if they have none.
        classes: names of its classes, in the order of the targets; empty if they have none.
        scored: the task and the prediction, on the CPU; None if its examples are not shown.
        examples: None as `scored`, or if there are no words for the examples.
    """

    number: int
    episode: str
    figure: float
    names: list[str]
    classes: list[str]
    scored: Scored | None = None
    examples: Examples | None = None

    @property
    def title(self) -> str:
        """Its number, and the names of its units."""
        few = ", ".join(_short(name, 40) for name in self.names[:5])
        more = f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
        return f"task {self.number}" + (f": {few}{more}" if few else "")

    def to_json(self, metric: str) -> dict[str, Any]:
        about = {"task": self.number, "episode": self.episode, metric: self.figure, "names": self.names}
        return about | {"title": self.title, "examples": self.examples and self.examples._asdict()}


def worst_tasks(source: TaskSource, evaluation: Evaluation, metric: str, *, higher_is_better: bool) -> list[WorstTask]:
    """The tasks with the worst figures, worst first; `with_examples` adds their examples."""
    values = torch.tensor(evaluation.per_task[metric], dtype=torch.float64)
    worst_first = torch.where(values.isfinite(), -values if higher_is_better else values, math.inf)
    found = []
    order = worst_first.argsort(descending=True, stable=True).tolist()
    different = {evaluation.episodes[number]: number for number in order[::-1]}  # tasks of few examples may be equal
    for number in [number for number in order if different[evaluation.episodes[number]] == number][:LISTED]:
        units = evaluation.units
        names = [] if units is None or not len(units.names) else units.of_task(number)
        if units is not None and units.numbers.ndim == 1:
            names = [name if name.startswith(units.unit) else f"{units.unit} {name}" for name in names]
        classes = (source.classes_of(evaluation.split, [number]) or [[]])[0]
        found.append(WorstTask(number, evaluation.episodes[number], float(values[number]), names, classes))
    return found


def with_examples(tasks: Sequence[WorstTask], learner: Learner, source: TaskSource, split: Split) -> list[WorstTask]:
    """The same tasks, the first of them scored again for their examples."""
    found = []
    for task in tasks[:SHOWN]:
        scored = score_again(learner, source, split, task.number)
        task = task._replace(scored=scored)
        found.append(task._replace(examples=_examples(task, scored, source, split)))
    return [*found, *tasks[SHOWN:]]


def _examples(task: WorstTask, scored: Scored, source: TaskSource, split: Split) -> Examples | None:
    """The queries with the largest errors, worst first."""
    query, objective = scored.task.query, source.objective
    if objective.predicts == "labels" and task.classes:
        errors, answers, what = _mislabelled(scored.prediction, query, task.classes)
    elif objective.predicts == "masks":
        errors, answers, what = _missegmented(scored.prediction, query)
    elif task.classes:
        errors, answers, what = _mistaken(scored.prediction, query, task.classes)
    elif objective.predicts == "tokens":
        errors, answers, what = _surprising(scored.prediction, query)
    else:
        errors, answers, what = _far(source, scored.prediction, query)
    order = [row for row in np.argsort(-errors, kind="stable").tolist() if errors[row] > 0][:ROWS]
    if not order:
        return None
    about = described(source, split, task.number, query, order)
    if not about and all(name.startswith("mean error") for name in answers):
        return None  # which says little; a picture may show them
    header, columns = [*answers, *about], [*answers.values()]
    rows = [[column[row] for column in columns] + [about[name][k] for name in about] for k, row in enumerate(order)]
    return Examples(header, rows, f"{what}: {len(order)} of {int((errors > 0).sum())}.")


def _mistaken(prediction: Tensor, query: Batch, names: Sequence[str]) -> tuple[np.ndarray, dict[str, list[str]], str]:
    """Errors (n,): the probability of the wrong class that was chosen, 0 for the right one."""
    probability = prediction.double().softmax(-1)
    most, predicted = probability.max(-1)
    true = query.targets.argmax(-1)
    errors = torch.where(predicted == true, 0.0, most.nan_to_num(nan=1.0)).numpy()
    named = [*names, *["none of them"] * (prediction.shape[1] - len(names))]
    answers = {
        "true": [_short(named[number]) for number in true.tolist()],
        "predicted": [_short(named[number]) for number in predicted.tolist()],
        "with probability": [f"{value:.2f}" for value in most.tolist()],
    }
    return errors, answers, "Queries that were classified wrongly, the surest first"


def _mislabelled(
    prediction: Tensor, query: Batch, names: Sequence[str]
) -> tuple[np.ndarray, dict[str, list[str]], str]:
    """Errors (n,): the mean cross-entropy of labels, 0 if all are right."""
    true, predicted = query.targets >= 0.5, prediction > 0
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        prediction.double(), query.targets.double(), reduction="none"
    )
    errors = torch.where((true == predicted).all(1), 0.0, each.mean(1).nan_to_num(nan=math.inf)).numpy()
    answers = {
        column: [_short(", ".join(name for name, has in zip(names, row) if has) or "none") for row in rows.tolist()]
        for column, rows in (("true", true), ("predicted", predicted))
    }
    return errors, answers, "Queries with wrong labels, the largest loss first"


def _missegmented(prediction: Tensor, query: Batch) -> tuple[np.ndarray, dict[str, list[str]], str]:
    """Errors (n,): 1 minus the mean intersection over union of the classes of an image."""
    overlap = [
        float(segmentation.metrics(prediction[row : row + 1], query.rows(slice(row, row + 1)))["mean_iou"])
        for row in range(len(query.weight))
    ]
    scored = query.targets.sum(1) > 0
    chosen = upsampled(prediction, (query.targets.shape[-2], query.targets.shape[-1])).argmax(1)
    answers = {"intersection over union": [f"{value:.3f}" for value in overlap]}
    for name, masks in (("marked", query.targets.argmax(1)), ("predicted", chosen)):
        share = ((masks > 0) & scored).flatten(1).sum(1) / scored.flatten(1).sum(1).clamp_min(1)
        answers[name] = [f"{value:.1%}" for value in share.tolist()]
    return 1 - np.array(overlap), answers, "Images with the lowest overlap, and the share that is marked"


def _surprising(prediction: Tensor, query: Batch) -> tuple[np.ndarray, dict[str, list[str]], str]:
    """Errors (n,): the mean bits of a symbol."""
    targets = query.targets
    log_prob = torch.log_softmax(prediction.double(), -1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    bits = -(log_prob * (targets >= 0)).sum(1) / (targets >= 0).sum(1).clamp(min=1) / math.log(2)
    answers = {"bits per symbol": [f"{value:.3f}" for value in bits.tolist()]}
    return bits.nan_to_num(nan=math.inf).numpy(), answers, "Windows that were predicted worst"


def _far(source: TaskSource, prediction: Tree, query: Batch) -> tuple[np.ndarray, dict[str, list[str]], str]:
    """Errors (n,): the absolute ones, a mean over dimensions in units of the spread of each target in the task."""
    numbers = as_numbers(source.objective, prediction, query)
    errors, answers = np.zeros(len(query.weight)), dict[str, list[str]]()
    preprocessor = _own(source).preprocessor
    means: dict[str, float] = {}
    if isinstance(preprocessor, TablePreprocessor):
        means = dict(zip(preprocessor.targets, preprocessor.mean))
    for target, (predicted, truth) in numbers.items():
        gaps = (predicted - truth).abs().flatten(1).double().mean(1)
        errors += (gaps / truth.double().std(correction=0).clamp_min(1e-12)).nan_to_num(nan=math.inf).numpy()
        if truth.shape[1:] != (1,):
            answers[f"mean error {target}".strip()] = [f"{gap:.4g}" for gap in gaps.tolist()]
            continue
        name = target or next(iter(means), "target")
        mean = means.get(name, 0.0)
        answers[name] = [f"{value + mean:.5g}" for value in truth[:, 0].double().tolist()]
        answers[f"predicted {target}".strip()] = [f"{value + mean:.5g}" for value in predicted[:, 0].double().tolist()]
    return errors, answers, "Queries with the largest errors"


def _own(source: TaskSource, split: Split = "test", number: int = 0) -> TaskSource:
    """The source that draws a task, inside of `watched` and mixtures."""
    source = unwatched(source)
    while isinstance(source, Mixture):
        source = unwatched(source.sources[source.source_of(split, number)])
    return source


def described(
    source: TaskSource, split: Split, number: int, query: Batch, order: Sequence[int]
) -> dict[str, list[str]]:
    """Some queries of a task in words: column -> text of each; empty if there are no words for them.

    Args:
        query: of the task, without padding.
        order: numbers of the queries.
    """
    own = _own(source, split, number)
    if isinstance(query.inputs, dict):
        titles = getattr(own.preprocessor, "titles", ()) or getattr(own.preprocessor, "items", ())
        if "item" not in query.inputs or not titles:
            return {}
        items = query.inputs["item"][list(order)].tolist()
        return {"item": [_short(titles[item - 1]) if item else "an unknown item" for item in items]}
    known, examples = own.example_rows(split, number), getattr(own, "examples", None)
    if known is not None:
        real = own.task(split, number).query.weight.numpy() > 0
        rows = known[1][real][list(order)]
        if own.texts is not None:
            return {"text": [_short(own.texts[row], LONGEST) for row in rows.tolist()]}
        if isinstance(examples, TableDataset):
            columns = shown(examples.columns, examples.values.rows(rows))
            return {name: list(map(_short, columns[name])) for name in list(columns)[:COLUMNS]}
        images = examples.examples if isinstance(examples, Turned | Mirrored) else examples
        if isinstance(images, DecodedImages | EncodedImages):
            return {"file": [_short(images.files[row % len(images)].name, LONGEST) for row in rows.tolist()]}
    if own.preprocessor is not None and isinstance(query.inputs, Tensor):
        texts = [own.preprocessor.show_input(query.inputs[row]) for row in order]
        if None not in texts:
            return {"text": [_short(str(text), LONGEST) for text in texts]}
    if isinstance(query.inputs, Tensor) and query.inputs.ndim == 2 and query.inputs.shape[1] <= COLUMNS:
        values = query.inputs[list(order)].T.tolist()
        return {f"x{column}": [f"{value:.4g}" for value in of_one] for column, of_one in enumerate(values, 1)}
    return {}


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
