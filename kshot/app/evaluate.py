"""`kshot evaluate`: the best round of a run on tasks that it has not seen, with its baselines."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from kshot.app.build import build_model, build_source, device_of, has_head
from kshot.app.figures import make_figures
from kshot.app.final_evaluation import evaluate_with_baselines, report_entries
from kshot.app.folder import RunFolder
from kshot.app.progress import Display
from kshot.app.run import environment, pretrained_model
from kshot.app.terminal import print_summary
from kshot.app.trained import load
from kshot.evaluation.per_task import TASKS, write_tasks
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.target import Target
from kshot.tasks.read_log import watched


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
    """Evaluate the best round of a run with its baselines, print the result, and write a report to `out` if given.

    Returns:
        The report.

    Raises:
        ValueError: a split other than "val" and "test", episodes without the expected hash, or `out` is not empty.
    """
    if split not in ("val", "test"):
        raise ValueError(f"--split is 'test' or 'val', got {split!r}")
    if out is not None and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another --out")
    run = load(run_dir)
    spec, source, device = run.spec, watched(build_source(run.spec), before=run.reads), device_of(run.spec)
    learner = run.learner.to(device)
    target = Target.parse(spec.target)
    pretrained = None
    if with_baselines and spec.pretrain:
        model = build_model(spec, run.shapes, head=has_head(spec)).to(device)
        pretrained = pretrained_model(spec, model, source, RunFolder(run_dir))
    with Display(Console(stderr=as_json), target.metric) as display:
        result = evaluate_with_baselines(
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
            **report_entries(result, spec, source, learner),
            "environment": environment(),
            "timing": {"seconds": result.test.seconds},
        }
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_tasks(out / TASKS, result.test, result.baselines, target.metric)
        write_report(out, report, [], make_figures(report, result, spec, learner))
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print_summary(report, out)
    return report
