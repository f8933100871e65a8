"""`kshot evaluate`: the final evaluation of a run again, on other tasks that it has not seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kshot.app.build import build_source, device_of
from kshot.app.environment import environment
from kshot.app.failures import Failures
from kshot.app.figures import make_figures
from kshot.app.final_evaluation import evaluate_with_baselines, report_entries, write_tables
from kshot.app.folder import RunFolder
from kshot.app.pretraining import load_pretrained
from kshot.app.progress import Display
from kshot.app.run import check_data, data_check_entry, new_model
from kshot.app.screen import Screen
from kshot.app.terminal import print_summary
from kshot.app.trained import load
from kshot.app.tried import tried
from kshot.deciding.decisions import EventLog
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.report.verdict import trust_of
from kshot.evaluation.target import Target
from kshot.files import check_writable, is_empty
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
    overrides: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluate the best round of a run with its baselines, print the report, write it to `out` if given, and return it.

    Raises:
        ValueError: a split other than "val" and "test", episodes without the expected hash, or `out` is not empty.
    """
    if split not in ("val", "test"):
        raise ValueError(f"--split is 'test' or 'val', got {split!r}")
    if out is not None and not is_empty(out):
        raise ValueError(f"{out} is not empty; choose another --out")
    if out is not None:
        check_writable(out / "report.json")
    run = load(run_dir, overrides or ())
    spec, source, device = run.spec, build_source(run.spec), device_of(run.spec)
    run.check_shapes(source)
    learner = run.learner.to(device)
    target = Target.parse(spec.target)
    failures, folder = Failures(out / "failures.log" if out else None), RunFolder(run_dir)
    event_log = EventLog()  # what the run knows; nothing is added to its folder
    event_log.events += folder.log.values
    with Display(Screen(stderr=as_json), target.metric) as display:
        checked = check_data(source, display)
        source = watched(source, before=run.reads)
        make_model = partial(new_model, spec, run.shapes, device)
        pretrained = load_pretrained(spec, folder, make_model, source) if with_baselines else []
        result = evaluate_with_baselines(
            learner,
            spec,
            source,
            pretrained,
            display.advance,
            run.checkpoint,
            failures,
            event_log,
            split=split,  # type: ignore[arg-type]  # checked above
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
            "tried": tried(run_dir, spec),
            **report_entries(result, spec, source, learner, failures, run.num_steps),
            "environment": environment(),
            "timing": {"seconds": result.test.seconds},
            **data_check_entry(checked),
        }
    )
    report["trusted"] = trust_of(report).trusted
    if out is not None:
        write_tables(out, result)
        figures = {}
        with failures.recorded("the charts of the test"):
            figures = make_figures(report, result, spec, source, learner)
        report["failures"] = [failure._asdict() for failure in failures]
        write_report(out, report, [], figures)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print_summary(report, out)
    return report
