"""A meta-trained learner for rows of a table, as estimators hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from kshot.app.build import Shapes, build_learner, build_model, has_head
from kshot.app.spec import Spec, parse_spec
from kshot.app.trained import load
from kshot.learner import Learner
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.sources.table import TablePreprocessor
from kshot.tasks.preprocessor import Preprocessor
from kshot.types import Batch, Tree


@dataclass(frozen=True)
class Trained:
    """A meta-trained learner for rows of a table, which is never changed. Pickles hold text and safetensors.

    Attributes:
        spec, shapes: the run file that it is of, and the shapes of one example.
        preprocessor: converts rows into inputs, and predictions into targets.
        classes: the classes that all tasks share, as the user gave them; empty where each task has its own.
    """

    spec: Spec
    shapes: Shapes
    preprocessor: TablePreprocessor
    learner: Learner
    classes: tuple[Any, ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> Trained:
        """The learner of a run folder; ValueError if it is not for a table with one target."""
        run = load(folder)
        encoding = of_table(run.preprocessor, f"the run {folder}")
        return cls(run.spec, run.shapes, encoding, run.learner.eval(), encoding.classes)

    @property
    def target(self) -> str:
        """The column of the target, or of the class."""
        return self.preprocessor.label or self.preprocessor.targets[0]

    @property
    def names(self) -> list[str]:
        """The columns of the inputs."""
        return list(self.preprocessor.columns.kinds)

    def adapt(self, columns: Mapping[str, Any], ways: int) -> Tree:
        """The state for rows with their targets; `ways` is the number of classes where a task has its own."""
        inputs, targets, _ = self.preprocessor.support(columns)
        if isinstance(targets, list):
            targets = torch.eye(ways)[[int(each) for each in targets]]
        with torch.no_grad():
            return self.learner.adapt(Batch.of(inputs, targets))

    def predict(self, state: Tree, columns: Mapping[str, Any]) -> Any:
        """The learner's prediction (n, ...) for rows."""
        with torch.no_grad():
            return self.learner.predict(state, self.preprocessor.inputs(columns, {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Trained:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        weights = save_tensors({name: value.contiguous() for name, value in self.learner.state_dict().items()})
        text = json.dumps([self.spec.to_yaml(), self.shapes, self.preprocessor.to_json()])
        return _unpickled, (text, weights, self.classes)


def _unpickled(text: str, weights: bytes, classes: tuple[Any, ...]) -> Trained:
    spec, shapes, encoding = json.loads(text)
    spec = parse_spec(spec, "the estimator")
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    learner.load_state_dict(load_tensors(weights))
    return Trained(spec, shapes, of_table(preprocessor_from_json(encoding), "the estimator"), learner.eval(), classes)


def of_table(preprocessor: Preprocessor | None, what: str) -> TablePreprocessor:
    """The preprocessor of a table with one target; ValueError for another one."""
    if not isinstance(preprocessor, TablePreprocessor) or len(preprocessor.targets) > 1:
        raise ValueError(f"{what} is not for a table with one target: open it by kshot.load")
    return preprocessor
