"""Every source with every learner and model: each trains a step, or is refused in a sentence before training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import yaml
from inputs import tiny

from kshot.app.build import Shapes, build_learner, build_model, build_source, has_head, shapes_of
from kshot.app.errors import _is_ours
from kshot.app.schema import kinds
from kshot.app.spec import Spec, parse_spec
from kshot.app.suitability import refuse_unsuited
from kshot.evaluation.evaluate import evaluate
from kshot.tasks.source import TaskSource
from kshot.training.closed_form import fit_closed_form
from kshot.training.fit import Diverged, Settings, meta_training_loop
from kshot.types import Split

ENDLESS = ("sinusoids", "gaussian_processes", "pixels", "tabular_priors")
"""Sources without end, on which a fit to the training groups takes seconds."""


class Combination(NamedTuple):
    """The names of a source, a learner and a model."""

    source: str
    learner: str
    model: str

    def spec(self, **more: object) -> Spec:
        """The run file; ValueError if it is refused by its keys."""
        source, model = tiny.SOURCES[self.source], tiny.MODELS[self.model]
        return parse_spec(yaml.safe_dump(tiny.run_file(source, model, tiny.learner(self.learner), **more)), "run.yaml")


def combinations() -> Iterator[Combination]:
    """All of them."""
    for source in tiny.SOURCES:
        for learner in kinds("learner"):
            for model in tiny.MODELS:
                yield Combination(source, learner, model)


def outcome(combination: Combination, opened: dict[str, tuple[TaskSource, Shapes]], **more: object) -> str:
    """ "trains", "diverges", or the sentence of the refusal; other errors are raised.

    Args:
        combination: what to try.
        opened: the sources that were opened so far.
        more: further keys of the run file.

    Raises:
        AssertionError: the sentence is that of a library.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spec = combination.spec(**more)
            if combination.source not in opened:
                source = build_source(spec)
                opened[combination.source] = source, shapes_of(source)
            source, shapes = opened[combination.source]
            refuse_unsuited(spec, source, shapes)
        except ValueError as error:
            refusal = error
        else:
            return _trained(spec, source, shapes)
    cause = refusal.__cause__ if isinstance(refusal.__cause__, Exception) else refusal
    assert _is_ours(cause), f"{combination}: {refusal}"
    return str(refusal)


def _trained(spec: Spec, source: TaskSource, shapes: Shapes) -> str:
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    try:
        if spec.source.kind not in ENDLESS or not hasattr(learner, "fitted"):
            fit_closed_form(learner, source)
    except ValueError as error:
        return str(error)
    try:
        meta_training_loop(learner, source, Settings(size=2)).run(2)
    except Diverged:
        return "diverges"
    splits: tuple[Split, Split] = ("val", "test")
    for split in splits:
        evaluate(learner, source, split=split, num_tasks=2, audit=split == "test")
    return "trains"
