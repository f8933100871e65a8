"""`kshot export`: the graphs of a trained run as files, with what is needed to use them.

Shape legend: n examples.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from kshot import objectives
from kshot.app.build import SORTS, Shapes
from kshot.app.trained import Adapted, TrainedRun, load
from kshot.files import check_writable, whole_file
from kshot.integrations.onnx.graphs import NotExportable, adapt_model, adapted_model, predict_model
from kshot.types import Batch, Tree, to

EXAMPLES = 10
"""Rows of the example that graphs are traced with, at least."""


def export_run(run_dir: Path | str, out: Path | str, *, state: Path | str | None = None) -> list[str]:
    """Write the graphs of a trained run, and say in a sentence each what was written and what could not be.

    Args:
        run_dir: folder of the run.
        out: a file `NAME.onnx` for `predict` alone, or a folder for `predict.onnx` and, if the learner adapts without
            gradient steps, `adapt.onnx`. Nothing is overwritten.
        state: file of an adapted state, to be part of `predict` as constants; else its leaves are inputs.

    Raises:
        ValueError: a run or a state that cannot be read, a file that exists, or a learner whose `predict` has no graph.
    """
    out = Path(out)
    files = [out] if out.suffix == ".onnx" else [out / "predict.onnx", *([] if state else [out / "adapt.onnx"])]
    for file in files:
        if file.exists():
            raise ValueError(f"{file} exists and is never overwritten; choose another --onnx")
        check_writable(file)
    run = load(run_dir)
    learner, kind, support = run.learner.to("cpu"), run.spec.learner.kind, example(run.shapes)
    if state is not None:
        adapted = run.load_state(state)
        model = adapted_model(learner, to(adapted.state, "cpu"), support.inputs, kind=kind)
        return [_write(files[0], model, run, adapted)]
    said = [_write(files[0], predict_model(learner, support, support.inputs, kind=kind), run)]
    for file in files[1:]:
        try:
            said.append(_write(file, adapt_model(learner, support, kind=kind), run))
        except NotExportable as error:
            said.append(f"{file.name} is not written: {error}")
    return said


def example(shapes: Shapes) -> Batch:
    """A support set of random numbers, of the shapes of a run's examples.

    Raises:
        NotExportable: inputs that are not numbers, whose values cannot be made up.
    """
    for key in SORTS.keys() & shapes.keys() - {"symbols", "widths"}:
        raise NotExportable(
            f"kshot export takes runs on numbers, images and running text, and this one is on {SORTS[key]}: give "
            "examples to kshot.integrations.onnx.predict_model in Python"
        )
    random, targets = torch.Generator().manual_seed(0), shapes["targets"]
    objective = objectives.from_name(shapes["objective"], allow_import=True)
    count = max(EXAMPLES, 2 * prod(targets[:1]))

    def inputs(shape: Any) -> Tree:
        if isinstance(shape, dict):
            return {name: inputs(each) for name, each in shape.items()}
        if "symbols" in shapes:
            return torch.randint(shapes["symbols"], (count, *shape), generator=random)
        return torch.rand(count, *shape, generator=random)

    return Batch.of(inputs(shapes["inputs"]), _targets(objective, shapes, count, random))


def _targets(objective: objectives.Objective, shapes: Shapes, count: int, random: torch.Generator) -> Tensor:
    """Targets (n, ...) that an objective takes: all classes in turn, or random ones."""
    shape = (count, *shapes["targets"])
    if objective.predicts == "tokens":
        return torch.randint(shapes["symbols"], shape, generator=random)
    if objective.classifies or objective.predicts == "labels":
        return torch.eye(shape[1])[torch.arange(count) % shape[1]]
    if objective.predicts == "masks":
        chosen = torch.randint(shape[1], (count, *shape[2:]), generator=random)
        return torch.nn.functional.one_hot(chosen, shape[1]).movedim(-1, 1).float()
    return torch.randn(shape, generator=random)


def _write(file: Path, model: onnx.ModelProto, run: TrainedRun, adapted: Adapted | None = None) -> str:
    """Write a graph with its metadata, and return a sentence on it."""
    largest = {each.key: each.value for each in model.metadata_props}["largest_difference"]
    with whole_file(file) as temporary:
        temporary.write_bytes(finished(model, run, adapted).SerializeToString())
    inputs = ", ".join(_shown(value) for value in model.graph.input if not value.name.startswith("state/"))
    return f"{file}: {inputs}; differs from kshot by at most {largest}"


def finished(model: onnx.ModelProto, run: TrainedRun, adapted: Adapted | None = None) -> onnx.ModelProto:
    """A graph with its metadata and the name of its maker; it is changed."""
    known = {each.key: each.value for each in model.metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, known | metadata(run, adapted))
    model.producer_name, model.producer_version = "kshot", version("kshot")
    return model


def metadata(run: TrainedRun, adapted: Adapted | None = None) -> dict[str, str]:
    """What a file says about the run that it is of, and about what it leaves to its caller.

    "classes" is a list as JSON, in the order of the logits; "preprocessing" is how inputs were made of the files, and
    "kept" what it needs to know about the support set of the state.
    """
    classes = list(run.preprocessor.classes) if run.preprocessor else []
    about = {
        "kshot": version("kshot"),
        "run": run.spec.name,
        "learner": run.spec.learner.kind,
        "objective": run.shapes["objective"],
        "weights_sha256": run.weights,
        "preprocessing": json.dumps(run.preprocessor.describe() if run.preprocessor else {}, default=str),
    }
    if adapted is not None:
        classes, about["kept"] = adapted.classes or classes, json.dumps(adapted.kept)
    return about | ({"classes": json.dumps(classes)} if classes else {})


def _shown(value: onnx.ValueInfoProto) -> str:
    dims = [dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    return f"{value.name} ({', '.join(dims)})"
