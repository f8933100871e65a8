"""What a page has to know of a run to read examples as the run does, as plain values for JSON."""

from __future__ import annotations

from typing import Any

from kshot import objectives
from kshot.app.folder import RunFolder
from kshot.app.trained import Adapted, TrainedRun
from kshot.data.tables.columns import FARTHEST, ONE_HOT, Column, word_table
from kshot.data.tables.table import MISSING
from kshot.evaluation.rejection import OUTSIDE
from kshot.files import read_json
from kshot.sources.image_files import ImagePreprocessor
from kshot.sources.table import TablePreprocessor

DRAWN = ("glyphs", "omniglot")
"""Sources of bright strokes on dark."""

READABLE = ("number", "boolean", "category", "set")
"""Kinds of columns that a page reads; dates, and words that are hashed, take more code than a page should have."""


def describe(run: TrainedRun, adapted: Adapted | None = None) -> dict[str, Any]:
    """How a page reads inputs and targets, and shows predictions.

    Returns:
        "inputs": {"kind": "images", …} or {"kind": "table", …}; "targets": {"kind": "classes" | "shared" | "numbers",
        …}; and "reject", "learner" and "name".

    Raises:
        ValueError: a run whose inputs or targets a page does not read; the message says why.
    """
    about = {"name": run.spec.name, "learner": run.spec.learner.kind, "out_of_scope": OUTSIDE}
    reject = read_json(RunFolder(run.path).rejection) if run.spec.reject is not None else None
    targets = _targets(run, adapted)
    return about | {"inputs": _inputs(run, targets["kind"]), "targets": targets, "reject": reject}


def _inputs(run: TrainedRun, targets: str) -> dict[str, Any]:
    preprocessor, shape = run.preprocessor, run.shapes["inputs"]
    if isinstance(preprocessor, TablePreprocessor):
        return _table(preprocessor)
    if isinstance(preprocessor, ImagePreprocessor) and preprocessor.features != "pixels":
        raise ValueError(
            f"{run.path} takes features of the encoder {preprocessor.encoder}, which is not part of a page: train on "
            "pixels, or use `kshot export --onnx` and compute the features by your own program"
        )
    images = isinstance(shape, list) and len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2]
    if type(preprocessor) in (ImagePreprocessor, type(None)) and images and targets == "classes":
        dark = run.spec.source.kind in DRAWN
        return {"kind": "images", "channels": shape[0], "size": shape[1], "paper": "black" if dark else "white"}
    if preprocessor is None and targets == "numbers" and isinstance(shape, list) and len(shape) == 1:
        columns = [{"name": f"x{number + 1}", "kind": "number", "mean": 0, "std": 1} for number in range(shape[0])]
        reading: dict[str, Any] = {"delimiter": None, "decimal": None, "missing": []}
        return {"kind": "table", "columns": columns, "clip": None, "by_position": True, **reading}
    raise ValueError(
        f"{run.path} is a run on inputs {shape} of source {run.spec.source.kind}: a page takes classes of square "
        "images, and rows of a table; use `kshot export --onnx` for other runs"
    )


def _targets(run: TrainedRun, adapted: Adapted | None) -> dict[str, Any]:
    preprocessor = run.preprocessor
    objective = objectives.from_name(run.shapes["objective"], allow_import=True)
    known = list(adapted.classes) if adapted else []
    if objective.task_specific_classes:
        label = preprocessor.label if isinstance(preprocessor, TablePreprocessor) else None
        return {"kind": "classes", "ways": None, "classes": known, "columns": [label or "label"]}
    if objective.classifies and isinstance(preprocessor, TablePreprocessor):
        return {"kind": "shared", "classes": list(preprocessor.classes), "columns": list(preprocessor.targets)}
    if objective.predicts not in (None, "values") or len(run.shapes["targets"]) != 1:
        raise ValueError(
            f"{run.path} has the objective {run.shapes['objective']}: a page shows classes and numbers; use "
            "`kshot export --onnx` for other runs"
        )
    count = run.shapes["targets"][0]
    if not isinstance(preprocessor, TablePreprocessor):
        names = [f"y{number + 1}" if count > 1 else "y" for number in range(count)]
        return {"kind": "numbers", "columns": names, "mean": [0] * count, "std": [1] * count}
    if any(preprocessor.formats):
        raise ValueError(
            f"the targets of {run.path} are written as {', '.join(filter(None, preprocessor.formats))}, which a page "
            "does not read: train on plain numbers, or use `kshot export --onnx`"
        )
    scale = {"mean": list(preprocessor.mean), "std": list(preprocessor.std)}
    return {"kind": "numbers", "columns": list(preprocessor.targets), **scale}


def _table(preprocessor: TablePreprocessor) -> dict[str, Any]:
    reading = preprocessor.reading
    used = [column for column in preprocessor.columns.columns if not column.left_out]
    return {
        "kind": "table",
        "columns": [_column(column) for column in used],
        "clip": FARTHEST,
        "by_position": False,
        "delimiter": reading.delimiter,
        "decimal": reading.decimal,
        "missing": list(MISSING if reading.missing is None else reading.missing),
    }


def _column(column: Column) -> dict[str, Any]:
    if column.kind not in READABLE or column.format:
        how = f"written as {column.format}" if column.kind in READABLE else f"of kind {column.kind}"
        raise ValueError(
            f"column {column.name!r} is {how}, which a page does not read: leave it out by `ignore`, convert it in "
            "your data, or use `kshot export --onnx`"
        )
    about = {"name": column.name, "kind": column.kind, "mean": column.mean, "std": column.std, "gaps": column.gaps}
    if column.kind not in ("category", "set"):
        return about
    rows = word_table(column)
    if column.kind == "set":
        rows = rows[: len(column.words), : min(len(column.words), ONE_HOT)]
    return about | {"words": list(column.words), "rows": rows.tolist(), "counted": len(column.words) > ONE_HOT}
