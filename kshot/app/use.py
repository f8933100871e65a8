"""`kshot evaluate`, `adapt`, `predict` and `generate`: what is done with a run folder."""

from __future__ import annotations

import csv
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from kshot import objectives
from kshot.app.build import Shapes, build_model, build_source, device_of, has_head
from kshot.app.display import Display
from kshot.app.final_evaluation import evaluate_with_baselines, make_figures, report_entries
from kshot.app.folder import OpenRun, RunFolder, load_run
from kshot.app.inputs import read_images, read_table, support_images, support_table
from kshot.app.run import environment, pretrained_model
from kshot.app.spec import Spec
from kshot.app.summary import print_summary
from kshot.data.text.vocabulary import UNKNOWN
from kshot.evaluation.per_task import TASKS, write_tasks
from kshot.evaluation.rejection import OUTSIDE, novelty
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.target import Target
from kshot.learners.generate import generate
from kshot.learners.heads.protonet import HeadLearner
from kshot.sources.corpus import CorpusPreprocessor
from kshot.tasks.read_log import watched
from kshot.training.checkpoint import load_state, save_state
from kshot.types import Batch, Tree, to, tree_map


def evaluate_run(
    run_dir: Path,
    *,
    num_tasks: int,
    split: str,
    as_json: bool,
    out: Path | None,
    episodes_sha256: str | None,
    with_baselines: bool,
) -> dict[str, Any]:
    """Score the best round of a run beside its baselines, print what was found, and write the report where asked.

    Returns:
        The report.

    Raises:
        ValueError: a split that is none to evaluate on, other episodes than those asked for, a folder that holds
            something.
    """
    if split not in ("val", "test"):
        raise ValueError(f"--split is 'test' or 'val', got {split!r}")
    if out is not None and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} already holds something; choose another --out")
    run = load_run(run_dir)
    spec, source, device = run.spec, watched(build_source(run.spec), before=run.reads), device_of(run.spec)
    learner = run.learner.to(device)
    target = Target.parse(spec.target)
    pretrained = None
    if with_baselines and spec.pretrain:
        model = build_model(spec, run.shapes, head=has_head(spec)).to(device)
        pretrained = pretrained_model(spec, model, source, RunFolder(run_dir))
    console = Console(stderr=as_json)
    with Display(console, target.metric) as display:
        tested = evaluate_with_baselines(
            learner,
            spec,
            source,
            run.shapes,
            pretrained,
            display.advance,
            run.checkpoint,
            split=split,  # type: ignore[arg-type]
            num_tasks=num_tasks,
            episodes_sha256=episodes_sha256,
            with_baselines=with_baselines,
        )
    report = to_json(
        {
            "kshot": version("kshot"),
            "name": spec.name,
            "command": f"kshot evaluate {run_dir} --tasks {num_tasks} --split {split}",
            "sentence": f"An evaluation of the best round of {run_dir}.",
            "best_round": run.round,
            "weights_sha256": run.weights,
            **report_entries(tested, spec, source, learner),
            "environment": environment(),
            "timing": {"seconds": tested.test.seconds},
        }
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_tasks(out / TASKS, tested.test, tested.baselines, target.metric)
        write_report(out, report, [], make_figures(report, tested, spec, learner))
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print_summary(report, out)
    return report


def adapt_run(
    run_dir: Path, support: Path, out: Path, *, before: Path | None = None, resize: bool, invert: bool
) -> None:
    """Adapt to a user's examples, or extend the state `before` by them, and write the state."""
    if out.exists():
        raise ValueError(f"{out} exists and is never written over; choose another --out")
    run = load_run(run_dir)
    state, meta = (None, {}) if before is None else _load_state(before, run, run_dir)
    known: list[str] = json.loads(meta["classes"]) if meta else []
    kept: dict[str, Any] = {}
    targets: Tensor | list[str]
    if run.preprocessor:
        inputs, targets, kept = run.preprocessor.support(support)
    elif objectives.named(run.shapes["objective"]).task_specific_classes:
        inputs, targets = support_images(support, run.shapes["inputs"], resize=resize, invert=invert)
    else:
        inputs, targets = support_table(support, run.shapes["inputs"], run.shapes["targets"])
    classes: list[str] = []
    if isinstance(targets, list):
        classes = known + sorted(set(targets) - set(known))
        numbers = torch.tensor([classes.index(label) for label in targets])
        batch = Batch.of(inputs, numbers, ways=_ways(run.spec, run.shapes, classes))
    else:
        batch = Batch.of(inputs, targets)
    about = f"{len(batch.weight)} examples" + (f" of {len(classes)} classes: {', '.join(classes)}" if classes else "")
    device = device_of(run.spec)
    learner = run.learner.to(device).eval()
    with torch.no_grad():
        if state is not None:
            state = learner.extend(to(state, device), to(batch, device))
        elif isinstance(learner, HeadLearner):
            state = learner.adapt(to(batch, device), extendable=True)
        else:
            state = learner.adapt(to(batch, device))
    meta = {"classes": json.dumps(classes), "kept": json.dumps(kept)}
    save_state(out, state, meta | {"weights_sha256": run.weights, "run": run.spec.name})
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
    run = load_run(run_dir)
    state, meta = _load_state(state_file, run, run_dir)
    for path in inputs:
        if not path.exists():
            raise ValueError(f"there is no {path}")
    if isinstance(run.preprocessor, CorpusPreprocessor):
        _print_bits(run, run.preprocessor, state, inputs)
        return
    classes, kept = json.loads(meta["classes"]), json.loads(meta.get("kept", "{}"))
    if classes and not run.preprocessor:
        names, images = read_images(inputs, run.shapes["inputs"], resize=resize, invert=invert)
        _print({"path": names} | _labels(_predict(run, state, images), classes, RunFolder(run_dir)))
        return
    values = [
        run.preprocessor.inputs(path, kept) if run.preprocessor else read_table(path, run.shapes["inputs"][-1])
        for path in inputs
    ]
    prediction = _predict(run, state, tree_map(lambda *leaves: torch.cat(leaves), *values))
    rows: dict[str, list[Any]] = {"row": list(range(1, len(prediction) + 1))}
    if classes:
        _print(rows | _labels(prediction, classes, RunFolder(run_dir)))
    elif run.preprocessor:
        _print(run.preprocessor.answers(prediction, kept))
    else:
        several = prediction.shape[1] > 1
        _print(rows | {f"prediction{i if several else ''}": own for i, own in enumerate(prediction.T.tolist())})


def _load_state(path: Path, run: OpenRun, run_dir: Path) -> tuple[Tree, dict[str, str]]:
    """A state and its meta data, if it was adapted from this run's weights."""
    state, meta = load_state(path)
    if meta.get("weights_sha256") != run.weights:
        raise ValueError(
            f"{path} was not adapted from the weights in {run_dir}: adapt again with `kshot adapt {run_dir}`"
        )
    return state, meta


def _print_bits(run: OpenRun, preprocessor: CorpusPreprocessor, state: Tree, files: list[Path]) -> None:
    """How well texts are predicted: CSV with a row for each window, and the mean of all on standard error."""
    unit = "bytes" if preprocessor.unit == "bytes" else "characters"
    columns: dict[str, list[Any]] = {"file": [], "window": [], unit: [], "bits": []}
    for path in files:
        inputs, targets = preprocessor.windows(path)
        log_chance = _predict(run, state, inputs).log_softmax(-1)
        chosen = log_chance.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        bits = -(chosen * (targets >= 0)).sum(1) / math.log(2)
        for number, (count, own) in enumerate(zip(preprocessor.counted(targets).sum(1).tolist(), bits.tolist()), 1):
            for name, value in zip(columns, (str(path), number, count, own)):
                columns[name].append(value)
    _print(columns)
    total = sum(columns[unit])
    print(f"{sum(columns['bits']) / total:.4f} bits per {unit[:-1]} over {total:,}", file=sys.stderr)


def generate_run(
    run_dir: Path, state_file: Path, prompt: str, *, length: int, temperature: float, top_p: float, seed: int
) -> None:
    """Print a prompt and how it goes on, as a text is predicted under an adapted state."""
    run = load_run(run_dir)
    preprocessor = run.preprocessor
    if not isinstance(preprocessor, CorpusPreprocessor):
        raise ValueError(f"{run_dir} is no run on running text (source corpus), so that there is nothing to write")
    if not prompt:
        raise ValueError("the prompt is empty: give at least one character to go on from, such as a line feed")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("the prompt is not UTF-8; a character may have been cut in two")
    symbols = torch.from_numpy(preprocessor.encode(prompt)).long()
    unknown = sorted({character for character, symbol in zip(prompt, symbols.tolist()) if symbol == UNKNOWN})
    if preprocessor.unit == "characters" and unknown:
        raise ValueError(
            f"the prompt holds {' '.join(map(repr, unknown))}, which no training text of {run_dir} does; leave it out, "
            "or train a run with unit: bytes, which knows all characters"
        )
    state, _ = _load_state(state_file, run, run_dir)
    device = device_of(run.spec)
    written = generate(
        run.learner.to(device),
        to(state, device),
        symbols.to(device),
        length=length,
        temperature=temperature,
        top_p=top_p,
        context=preprocessor.length,
        seed=seed,
    )
    print(preprocessor.decode([*symbols.tolist(), *written.tolist()]))


def _labels(logits: Tensor, classes: list[str], folder: RunFolder) -> dict[str, list[Any]]:
    """The likeliest class of each row (n,), and the probability of every one; where the run rejects what is out of
    scope, that in place of a class, and the novelty."""
    logits = logits[:, : len(classes)]
    chances = logits.softmax(1)
    labels = [classes[place] for place in chances.argmax(1).tolist()]
    columns: dict[str, list[Any]] = {f"p({name})": chances[:, place].tolist() for place, name in enumerate(classes)}
    if folder.rejection.exists():
        said = json.loads(folder.rejection.read_text())
        novel = novelty(logits, said["score"]).tolist()
        labels = [OUTSIDE if own > said["threshold"] else label for label, own in zip(labels, novel)]
        columns["novelty"] = novel
    return {"label": labels} | columns


def _print(columns: dict[str, list[Any]]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(columns)
    for row in zip(*columns.values()):
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])


def _predict(run: OpenRun, state: Tree, inputs: Tree) -> Tensor:
    device = device_of(run.spec)
    with torch.no_grad():
        return run.learner.to(device).eval().predict(to(state, device), to(inputs, device)).cpu()
