"""What `kshot auto` is asked: a run file without a plan, or data to make one of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kshot.app.auto.detect import detect_source
from kshot.app.auto.plans import Plan
from kshot.app.folds import spec_of_fold
from kshot.app.in_memory import as_text
from kshot.app.spec import Spec, parse_spec, read_run_file, recipes
from kshot.data.tables.frames import TableLike
from kshot.tasks.source import TaskSource
from kshot.yaml_files import parse_yaml

Data = str | Path | Mapping[str, Any] | TaskSource | TableLike
NOTHING = ["learner={kind: nearest_centroid}", "model=null", "pretrain=null", "train={}", "policy=null"]
"""Overrides by which the rest of a run file can be checked before there is a plan."""


@dataclass(frozen=True)
class Question:
    """A run file without a plan.

    Attributes:
        text, where, folder: YAML, its name in errors, and the folder of the file.
        overrides: `PATH=VALUE`, each set in the file.
        target: target to be met; None if the file has none.
    """

    text: str
    where: str
    folder: Path | None
    overrides: tuple[str, ...]
    target: str | None

    @classmethod
    def of(cls, data: Data, overrides: Sequence[str]) -> Question:
        """Read a recipe, a run file or a data set; ValueError if it is none."""
        if isinstance(data, TaskSource):
            data = {"source": data}
        elif not isinstance(data, str | Path | Mapping):
            data = {"source": detect_source(data, overrides) | {"path": data}}
        text, where, folder = (as_text(data), "data", None) if isinstance(data, Mapping) else _read(data, overrides)
        values, _ = parse_yaml(text, where)
        given = dict(values) if isinstance(values, dict) else {}
        target = next((each.partition("=")[2] for each in overrides if each.startswith("target=")), given.get("target"))
        named = [] if "name" in given else [f"name={json.dumps(_name(where))}"]
        return cls(text, where, folder, (*named, *overrides), target)

    def base(self) -> Spec:
        """The run file before there is a plan."""
        return self.spec(target=self.target or "loss <= 0")

    def of_fold(self, fold: int) -> Question:
        """The same for one of the folds that the run file names; ValueError if its source cannot be split into them."""
        spec = spec_of_fold(self.base(), fold)
        changed = {
            "source.split": getattr(spec.source, "split", None),
            "evaluate.folds": None,
            "evaluate.num_test_tasks": spec.evaluate.num_test_tasks,
        }
        return self.with_changes(changed)

    def with_changes(self, values: Mapping[str, Any]) -> Question:
        """The same with other values of some keys of the run file."""
        overrides = (f"{key}={json.dumps(value)}" for key, value in values.items())
        return replace(self, overrides=(*self.overrides, *overrides))

    def spec(self, plan: Plan | None = None, **sections: Any) -> Spec:
        """The run file with a plan, and with other sections."""
        overrides = [*self.overrides, *NOTHING, *(f"{name}={json.dumps(each)}" for name, each in sections.items())]
        if plan is not None:
            overrides += plan.overrides
        return parse_spec(self.text, self.where, overrides, self.folder)


def _read(data: str | Path, overrides: Sequence[str]) -> tuple[str, str, Path | None]:
    """The text of a run file, its name in errors, and its folder."""
    path = Path(data)
    if (str(data) in recipes() or path.suffix in (".yaml", ".yml")) and (found := read_run_file(str(data))):
        return found
    if path.is_dir() or path.is_file():
        source = detect_source(path, overrides) | {"path": str(path.resolve())}
        return yaml.safe_dump({"source": source}), str(path), None
    raise ValueError(f"there is no run file, recipe, table, or folder of images or texts {data}")


def _name(where: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(where).stem).strip("-._") or "auto"
