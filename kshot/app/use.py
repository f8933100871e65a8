"""`kshot evaluate`, `adapt`, `predict` and `generate`: what is done with a run folder."""

from __future__ import annotations

import csv
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kshot.app.build import build_model, build_source, device_of, has_head
from kshot.app.display import Display
from kshot.app.final_evaluation import evaluate_with_baselines, make_figures, report_entries
from kshot.app.folder import RunFolder
from kshot.app.run import environment, pretrained_model
from kshot.app.summary import print_summary
from kshot.app.trained import load
from kshot.data.text.vocabulary import UNKNOWN
from kshot.evaluation.per_task import TASKS, write_tasks
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.target import Target
from kshot.learners.generation import generate
from kshot.sources.corpus import CorpusPreprocessor
from kshot.tasks.read_log import watched
from kshot.types import to


def evaluate_run(
    run_dir: Path,
    *,
    tasks: int,
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
    run = load(run_dir)
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
            tasks=tasks,
            episodes_sha256=episodes_sha256,
            with_baselines=with_baselines,
        )
    report = to_json(
        {
            "kshot": version("kshot"),
            "name": spec.name,
            "command": f"kshot evaluate {run_dir} --tasks {tasks} --split {split}",
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
    run = load(run_dir)
    known = None if before is None else run.load_state(before)
    adapted = run.adapt(support, before=known, resize=resize, invert=invert)
    run.save_state(out, adapted)
    classes = adapted.classes
    of_classes = f" of {len(classes)} classes: {', '.join(classes)}" if classes else ""
    print(f"adapted to {adapted.num_examples} examples{of_classes}; state in {out}")


def predict_run(run_dir: Path, state_file: Path, inputs: list[Path], *, resize: bool, invert: bool) -> None:
    """Predict with an adapted state; CSV on standard output."""
    run = load(run_dir)
    columns = run.predict(run.load_state(state_file), inputs, resize=resize, invert=invert)
    writer = csv.writer(sys.stdout)
    writer.writerow(columns)
    for row in zip(*columns.values()):
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    if isinstance(run.preprocessor, CorpusPreprocessor):
        _, _, unit, _ = columns
        total = sum(columns[unit])
        print(f"{sum(columns['bits']) / total:.4f} bits per {unit[:-1]} over {total:,}", file=sys.stderr)


def generate_run(
    run_dir: Path, state_file: Path, prompt: str, *, length: int, temperature: float, top_p: float, seed: int
) -> None:
    """Print a prompt and how it goes on, as a text is predicted under an adapted state."""
    run = load(run_dir)
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
    state = run.load_state(state_file).state
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
