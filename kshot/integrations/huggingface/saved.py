"""A trained run as a small run folder for others: what `kshot.load` needs, without the user's report and paths."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import yaml
from safetensors import safe_open

from kshot import objectives
from kshot.app.folder import RunFolder
from kshot.app.importing import PATHS, refusing_imports
from kshot.app.spec import Spec, parse_spec
from kshot.app.trained import TrainedRun, load
from kshot.data.tables.frames import is_path
from kshot.evaluation.baselines import baselines_of
from kshot.files import read_json, write_json
from kshot.training.checkpoint import WEIGHTS, read_manifest, save_checkpoint

INDEX = "model.safetensors.index.json"
"""Name that the Hub gives to the list of the files of a model's weights."""
NEEDED = ["*.yaml", "*.json", "*.jsonl", "*.safetensors"]
"""Patterns of the files that are downloaded to open a run."""
_MAY_BE_FILES = ("encoder", "tokenizer", "domain")
_FILES = {*PATHS} - {*_MAY_BE_FILES}


def save_run(run: TrainedRun, folder: Path) -> None:
    """Write a run folder with the weights of the best round, which `kshot.load` opens.

    All files have checksums, as in any run folder. The run file has the names of the user's files in place of their
    paths, and no address or query of a database; and the log has which splits each phase has read, no more.

    Raises:
        ValueError: the folder is not empty, or the learner is a baseline that is fitted to the data when it is opened.
    """
    if fitted := baselines_of(run.learner):
        raise ValueError(
            f"{run.path} holds the baseline {fitted[0].name}, which is fitted to the training data whenever it is "
            "opened: it cannot be given away without them"
        )
    saved = RunFolder(folder)
    log = saved.start(published(run.spec), run.shapes, run.preprocessor.to_json() if run.preprocessor else None)
    for phase, split in run.reads:
        log.record("read", phase=phase, split=split)
    meta = read_manifest(run.checkpoint)
    rounds = [each for each in meta["rounds"] if each["number"] == run.round]
    checkpoint = saved.train / run.checkpoint.name
    about = {"step": run.num_steps, "rounds": rounds, "changed": meta.get("changed", {}), "log": log.mark()}
    save_checkpoint(checkpoint, run.learner, None, about)
    if (rejection := RunFolder(run.path).rejection).exists():
        write_json(saved.rejection, read_json(rejection))
    _write_index(folder, checkpoint / WEIGHTS)


def _write_index(folder: Path, weights: Path) -> None:
    """Write which file has which tensor, by which the tools of the Hub find the weights."""
    place = weights.relative_to(folder).as_posix()
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
    index = {"metadata": {"total_size": weights.stat().st_size}, "weight_map": dict.fromkeys(names, place)}
    write_json(folder / INDEX, index)


def open_run(folder: Path, *, allow_import: bool = False) -> TrainedRun:
    """`kshot.load`, for a folder of unknown origin.

    Args:
        allow_import: whether modules that the run file names may be imported.

    Raises:
        ValueError: a run file, or an objective, that would import a module; and what `kshot.load` raises.
    """
    if allow_import:
        return load(folder)
    shapes = RunFolder(folder).shapes
    if shapes.exists():
        objectives.from_name(str(read_json(shapes).get("objective")))  # which does not import
    with refusing_imports():
        return load(folder)


def published(spec: Spec) -> Spec:
    """A run file without the places of the user's data, and for any device."""
    values = spec.model_dump()
    values |= {"source": without_places(values["source"]), "track": [], "device": "auto"}
    return parse_spec(yaml.safe_dump(values), f"run file {spec.name}")


def without_places(options: Any, key: str = "") -> Any:
    """The options of a source, with names of files in place of their paths, and without databases.

    Example:
        >>> without_places({"kind": "table", "path": "/home/me/sales.csv", "reading": {"query": "select 1"}})
        {'kind': 'table', 'path': 'sales.csv', 'reading': {}}
    """
    if isinstance(options, dict):
        return {
            name: without_places(value, "path" if key == "files" else str(name))
            for name, value in options.items()
            if name != "query"
        }
    if isinstance(options, list):
        return [without_places(value, key) for value in options]
    if isinstance(options, str) and (key in _FILES or (key in _MAY_BE_FILES and PurePath(options).is_absolute())):
        return PurePath(options).name if is_path(options) else "data that are no file"
    return options
