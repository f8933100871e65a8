"""How many runs were tried on the same data, of which a report shows one: seeds, seeds of tasks and configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kshot.app.folder import RunFolder, read_spec
from kshot.app.spec import Spec
from kshot.files import read_json

_SEEDS = ("seed", "task_seed")
_OF_THE_RUN = {"name", "about", "device", "seed", "task_seed"}  # what does not make a configuration


def tried(out: Path, spec: Spec) -> dict[str, int]:
    """Count the runs on the data of `spec` in a run folder's surroundings: itself, its siblings and their seeds.

    The record is the run folders themselves: runs that were deleted, or written elsewhere, are not counted. Runs are on
    the same data if their `source` differs in seeds and sizes of tasks at most, and their target is of the same metric.

    Returns:
        `runs`, including this one; `tested`, the others of them that have a test figure; and the number of different
        `seeds`, `task_seeds` and `configurations` among the runs.
    """
    around = out.resolve().parent
    if out.name.startswith("seed-") and not (around / "spec.yaml").exists():
        around = around.parent  # a seed of several: what lies beside its siblings counts too
    specs = {out.resolve(): spec}
    tested = 0
    for file in sorted([*around.glob("*/spec.yaml"), *around.glob("*/seed-*/spec.yaml")]):
        other = _read(file)
        if other is None or _data(other) != _data(spec) or file.parent.resolve() == out.resolve():
            continue
        specs[file.parent.resolve()] = other
        tested += _has_test_figure(RunFolder(file.parent).report)
    counts = {f"{name}s": len({getattr(each, name, None) for each in specs.values()}) for name in _SEEDS}
    configurations = {json.dumps(_configuration(each), sort_keys=True, default=str) for each in specs.values()}
    return {"runs": len(specs), "tested": tested, **counts, "configurations": len(configurations)}


def _read(file: Path) -> Spec | None:
    try:
        return read_spec(file.parent)
    except (ValueError, OSError):  # of another version, or being written
        return None


def _data(spec: Spec) -> dict[str, Any]:
    """What makes two runs runs on the same data: the source without sizes and seeds of tasks, and the metric."""
    sizes = {"seed", "ways", "shots", "queries", "train_ways", "train_queries"}
    source = {key: value for key, value in spec.source.model_dump(mode="json").items() if key not in sizes}
    return {"source": source, "metric": spec.target.split()[0]}


def _configuration(spec: Spec) -> dict[str, Any]:
    return {key: value for key, value in spec.model_dump(mode="json").items() if key not in _OF_THE_RUN}


def _has_test_figure(report: Path) -> bool:
    try:
        return bool(read_json(report).get("test"))
    except (ValueError, OSError):
        return False
