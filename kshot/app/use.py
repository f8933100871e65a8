"""`kshot evaluate`, `adapt` and `predict`: what is done with a run folder."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from kshot import objectives
from kshot.app.build import Shapes, build_source, device_of, has_head
from kshot.app.folder import load_run
from kshot.app.inputs import read_images, read_table, support_images, support_table
from kshot.app.spec import Spec
from kshot.evaluation.evaluate import evaluate
from kshot.learner import Learner
from kshot.training.checkpoint import load_state, save_state
from kshot.types import Batch, Tree, to


def evaluate_run(run_dir: Path, tasks: int, split: str, as_json: bool) -> None:
    """Score the best round of a run, and print the figures."""
    if split not in ("val", "test"):
        raise ValueError(f"--split is 'test' or 'val', got {split!r}")
    spec, _, learner, weights = load_run(run_dir)
    learner = learner.to(device_of(spec))
    found = evaluate(learner, build_source(spec), split=split, tasks=tasks)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(found.summary() | {"run": spec.name, "weights_sha256": weights}, indent=1))
        return
    for name, figure in found.metrics.items():
        print(f"{name:<10} {figure}")
    print(
        f"{'inductive' if found.inductive else 'transductive'}, {split} tasks, episodes {found.episodes_sha256[:16]}…"
    )


def adapt_run(run_dir: Path, support: Path, out: Path, *, resize: bool, invert: bool) -> None:
    """Adapt to a user's examples, and write the state."""
    if out.exists():
        raise ValueError(f"{out} exists and is never written over; choose another --out")
    spec, shapes, learner, weights = load_run(run_dir)
    if objectives.named(shapes["objective"]).own_classes:
        images, labels = support_images(support, shapes["inputs"], resize=resize, invert=invert)
        classes = sorted(set(labels))
        batch = Batch.of(
            images, torch.tensor([classes.index(label) for label in labels]), ways=_ways(spec, shapes, classes)
        )
        about = f"{len(labels)} examples of {len(classes)} classes: {', '.join(classes)}"
    else:
        classes = []
        batch = Batch.of(*support_table(support, shapes["inputs"], shapes["targets"]))
        about = f"{len(batch.weight)} examples"
    device = device_of(spec)
    with torch.no_grad():
        state = learner.to(device).eval().adapt(to(batch, device))
    save_state(out, state, {"classes": json.dumps(classes), "weights_sha256": weights, "run": spec.name})
    print(f"adapted to {about}; state in {out}")


def _ways(spec: Spec, shapes: Shapes, classes: list[str]) -> int:
    """The width of the one-hot targets: the model's own where its last layer is fixed, else one per class."""
    if len(classes) < 2:
        raise ValueError(f"classification needs at least two classes, got {len(classes)}: {', '.join(classes)}")
    if not has_head(spec):
        return len(classes)
    ways = shapes["targets"][-1]
    if len(classes) > ways:
        raise ValueError(
            f"this run's model tells {ways} classes apart, the support holds {len(classes)}: train with more ways"
        )
    return ways


def predict_run(run_dir: Path, state_file: Path, inputs: list[Path], *, resize: bool, invert: bool) -> None:
    """Predict with an adapted state; CSV on standard output."""
    spec, shapes, learner, weights = load_run(run_dir)
    state, meta = load_state(state_file)
    if meta.get("weights_sha256") != weights:
        raise ValueError(
            f"{state_file} was not adapted from the weights in {run_dir}: adapt again with `kshot adapt {run_dir}`"
        )
    classes = json.loads(meta["classes"])
    writer = csv.writer(sys.stdout)
    for path in inputs:
        if not path.exists():
            raise ValueError(f"there is no {path}")
    if classes:
        names, images = read_images(inputs, shapes["inputs"], resize=resize, invert=invert)
        logits = _predict(spec, learner, state, images)[:, : len(classes)]
        probabilities = logits.softmax(1)
        writer.writerow(["path", "label", *(f"p({name})" for name in classes)])
        for name, row in zip(names, probabilities):
            writer.writerow([name, classes[int(row.argmax())], *(f"{p:.4f}" for p in row.tolist())])
        return
    for path in inputs:
        values = read_table(path, shapes["inputs"][-1])
        prediction = _predict(spec, learner, state, values)
        writer.writerow(
            ["row", *(f"prediction{i}" for i in range(prediction.shape[1]))]
            if prediction.shape[1] > 1
            else ["row", "prediction"]
        )
        for number, row in enumerate(prediction.tolist(), 1):
            writer.writerow([number, *(f"{value:.6g}" for value in row)])


def _predict(spec: Spec, learner: Learner, state: Tree, inputs: Tensor) -> Tensor:
    device = device_of(spec)
    with torch.no_grad():
        return learner.to(device).eval().predict(to(state, device), inputs.to(device)).cpu()
