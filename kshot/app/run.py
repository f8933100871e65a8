"""`kshot run`: pretraining, rounds of training, evaluation and decision, the final evaluation, and the report."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from kshot.app.baselines import need_pretraining
from kshot.app.build import (
    Shapes,
    build_learner,
    build_model,
    build_policy,
    build_source,
    build_tracker,
    device_of,
    has_head,
    shapes_of,
)
from kshot.app.environment import environment
from kshot.app.experience_of_runs import keep_trial, past_of
from kshot.app.failures import Failures
from kshot.app.figures import make_figures
from kshot.app.final_evaluation import TestResult, evaluate_with_baselines, protocol, report_entries, write_tables
from kshot.app.folder import RunFolder
from kshot.app.mirror import mirrored
from kshot.app.pretraining import pretrain_baselines, pretraining_of_run
from kshot.app.processes import EVENT, is_member, is_silent
from kshot.app.profile import profiled
from kshot.app.progress import Display
from kshot.app.screen import Screen
from kshot.app.spec import Spec
from kshot.app.suitability import refuse_unsuited
from kshot.app.tracking.follow import Tracking
from kshot.app.tracking.tracker import LIBRARIES, require
from kshot.app.trained import start_from
from kshot.app.tried import tried
from kshot.checking.check import check_for_report
from kshot.checking.findings import Checked
from kshot.data.cache import cache_folder
from kshot.deciding.decisions import EventLog, Outcome, Stop, decision_to_json
from kshot.deciding.loop import Run, run_until
from kshot.deciding.policies import Budget
from kshot.evaluation.baselines import fit_baselines
from kshot.evaluation.report import plan_charts, run_charts, sweep_chart
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.report.verdict import best_baseline, trust_of
from kshot.evaluation.target import Target
from kshot.files import copy_folder, is_empty, owned, write_json
from kshot.learner import Learner
from kshot.tasks.read_log import Watched, watched
from kshot.tasks.source import TaskSource, short_hash
from kshot.training.checkpoint import Checkpoints
from kshot.training.closed_form import fit_closed_form
from kshot.training.fit import Diverged
from kshot.training.ranks import failing_together, from_all, help_first, leading, others, ranks
from kshot.training.shards import num_parameters, require_others

NO_TARGET = "No target was given: what was best on validation tasks has been tested."


@dataclass(frozen=True)
class Trained:
    """A run after its training.

    Attributes:
        source: watched, so that its reads are in the log.
        new_model: makes the base model with its initial weights.
        pretrained, pretrain_seconds: the model after pretraining, if there was any, and how long that took.
    """

    folder: RunFolder
    source: Watched
    new_model: Callable[[], nn.Module]
    event_log: EventLog
    learner: Learner
    pretrained: list[nn.Module]
    pretrain_seconds: float
    result: Run


def run(
    spec: Spec,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    init_from: Path | None = None,
    choice: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    checked: Checked | None = None,
    profile: bool = False,
    mirror: str | None = None,
) -> dict[str, Any]:
    """Execute a run file in the folder `out`, and return the report; nothing in processes other than the first.

    Args:
        choice, sweep: how `kshot auto`, or `kshot sweep`, chose the run file, for the report.
        checked: what the check of the data found, if it was made.
        profile: whether to measure where the time of a round goes, see `kshot.app.profile`.
        mirror: URL to which the folder is copied while the run goes on, see `kshot.app.mirror`.

    Raises:
        ValueError: the folder already holds a run, data are missing or damaged, or the run file does not suit them.
    """
    if spec.shard_frozen:
        require_others()
    those = others()
    metric = Target.parse(spec.target).metric
    resume = resume and not (out.exists() and is_empty(out))  # else it was killed before it wrote its run file
    for part in spec.track:
        if part.kind in LIBRARIES and choice is None and sweep is None:  # else the search would be lost
            require(part.kind)
    with (
        owned(out),
        Display(console or Screen(), metric) as display,  # shows each log message once
        mirrored(None if is_silent() else mirror, out) as keep_mirror,
        closing(Tracking(spec, out, build_tracker, display.say)) as tracking,
    ):
        started = time.monotonic()
        with failing_together():
            source = build_source(spec)
            shapes = shapes_of(source)
        with failing_together():
            refuse_unsuited(spec, source, shapes)
            checked = checked or check_data(source, display)
        if those is not None:
            _check_same_data(source)
        display.say(f"{spec.name}: {spec.about}" if spec.about else spec.name, "bold")

        def follow(event_log: EventLog) -> None:
            if not is_silent():
                tracking.follow(event_log)
                keep_mirror(event_log)

        with profiled(out, display.console) if profile and not is_silent() else nullcontext():
            trained = train(spec, out, source, display, resume=resume, init_from=init_from, follow=follow)
        if is_silent():
            help_first(those)
            return {}
        with leading(those):
            if not _lacks_target(choice):
                display.say(trained.result.outcome.value)
            if choice is None and sweep is None:  # else it is known to experience already
                keep_trial(spec, source, trained.result.rounds, num_parameters(trained.learner))
            report, figures = _finish(spec, out, trained, checked, display, started, choice, sweep)
        tracking.finish(report, figures)
        return report


def train(
    spec: Spec,
    out: Path,
    source: TaskSource,
    display: Display,
    *,
    resume: bool,
    init_from: Path | None = None,
    pretrained_in: Path | None = None,
    fill: Callable[[Learner], None] | None = None,
    follow: Callable[[EventLog], None] | None = None,
) -> Trained:
    """Pretrain and meta-train in a run folder, without the final evaluation.

    Args:
        source: as `build_source` makes it, and suited to the run file.
        init_from: folder of another run, whose weights the learner starts from.
        pretrained_in: folder of another run with the same model and pretraining, which is taken over.
        fill: gives the learner all weights that it needs, in place of a fit in closed form.
        follow: called with the log of the run, before anything is trained.
    """
    device, shapes = device_of(spec), shapes_of(source)
    make_model = partial(new_model, spec, shapes, device)
    model = make_model()
    folder = RunFolder(out)
    encoding = source.preprocessor.to_json() if source.preprocessor else None
    event_log = (folder.resume if resume else folder.start)(spec, shapes, encoding)
    if follow is not None:
        follow(event_log)
    if is_member():
        event_log.record(EVENT, count=ranks().size)
    reads = folder.reads_before_evaluation()
    source = watched(source, lambda phase, split: event_log.record("read", phase=phase, split=split), reads)
    pretrained, pretrain_seconds, diverged = [], 0.0, None
    if pretraining := pretraining_of_run(spec, folder):
        if pretrained_in is not None and not folder.pretrain.exists():
            copy_folder(RunFolder(pretrained_in).pretrain, folder.pretrain)
        try:
            pretrain_seconds = pretraining.run(model, source, event_log, display.step)
        except Diverged as error:
            diverged = f"pretraining, {error}"
        else:
            said = f"pretrained {pretraining.options.steps} steps on all training classes in {pretrain_seconds:.0f} s"
            display.say(said)
            pretrained.append(copy.deepcopy(model))
    learner = build_learner(spec, model, shapes).to(device)
    if init_from is not None and not resume:
        display.say(said := start_from(learner, init_from))
        event_log.record("init", run=str(init_from), about=said)
    if diverged is None:
        target = Target.parse(spec.target)
        is_new = Checkpoints(folder.train).latest_for_training() is None  # else it has what was fitted
        if is_new and fill is None:
            fit_closed_form(learner, source, after_training=False)
        else:
            if is_new and fill is not None:
                fill(learner)
            fit_baselines(learner, lambda: source)
        result = _train(spec, target, learner, source, folder, event_log, display, pretrain_seconds)
    else:
        event_log.record("decision", **decision_to_json(Stop(Outcome.DIVERGED, diverged)))
        display.say(diverged)
        result = Run(Outcome.DIVERGED, diverged, [], [], None)
    return Trained(folder, source, make_model, event_log, learner, pretrained, pretrain_seconds, result)


def _finish(
    spec: Spec,
    out: Path,
    trained: Trained,
    checked: Checked,
    display: Display,
    started: float,
    choice: Mapping[str, Any] | None,
    sweep: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The final evaluation of a trained learner, and the report, with its figures by name."""
    target, failures = Target.parse(spec.target), Failures(trained.folder.failures)
    source, learner, result, event_log = trained.source, trained.learner, trained.result, trained.event_log
    test, pretrained = None, trained.pretrained
    if result.best is not None:
        checkpoint = trained.folder.train / result.best.checkpoint
        if need_pretraining(spec, source.objective):
            with failures.recorded("the pretraining of the baselines"):
                seconds = result.rounds[-1].seconds - trained.pretrain_seconds
                longer = pretrain_baselines(
                    spec, trained.folder, trained.new_model, source, seconds, display, event_log
                )
                pretrained = [*pretrained, *longer]
        test = evaluate_with_baselines(
            learner, spec, source, pretrained, display.advance, checkpoint, failures, event_log
        )
        write_tables(out, test)
        if spec.reject and test.threshold is not None:
            write_json(trained.folder.rejection, {"score": spec.reject.score, "threshold": test.threshold})
    report = to_json(_report(spec, out, source, result, test, learner, failures) | data_check_entry(checked))
    if test:
        report["trusted"] = trust_of(report).trusted
    report["timing"] |= {
        "pretrain_seconds": trained.pretrain_seconds,
        "this_process_seconds": time.monotonic() - started,
    }
    figures: dict[str, Any] = {}
    if choice is not None:
        report["choice"] = dict(choice)
        if _lacks_target(choice):  # that of the run file is the level of the best simple baseline
            report |= {"target": None, "sentence": NO_TARGET, "reason": choice["reason"]}
        with failures.recorded("the chart of the plans"):
            figures["plans"] = plan_charts.race_chart(choice, target)
    if sweep is not None:
        report["sweep"] = dict(sweep)
        with failures.recorded("the chart of the sweep"):
            figures["sweep"] = sweep_chart.sweep_chart(sweep, target)
    with failures.recorded("the charts of the run"):
        best = best_baseline(report["baselines"], target.metric, target.at_least)
        figures["rounds"] = run_charts.rounds_chart(report["rounds"], str(target), baseline=best)
        figures["learning_curve"] = run_charts.learning_curve(event_log.events)
    if test:
        with failures.recorded("the charts of the test"):
            figures |= make_figures(report, test, spec, source, learner)
    report["failures"] = [failure._asdict() for failure in failures]
    report["log"] = event_log.mark()
    write_report(out, report, event_log.events, figures)
    event_log.record("finished", outcome=result.outcome.name)
    return report, figures


def _lacks_target(choice: Mapping[str, Any] | None) -> bool:
    """Whether the run file was chosen for data without a target."""
    return choice is not None and choice["target"] is None


def _train(
    spec: Spec,
    target: Target,
    learner: Learner,
    source: TaskSource,
    folder: RunFolder,
    event_log: EventLog,
    display: Display,
    spent_seconds: float,
) -> Run:
    """Meta-train a learner in rounds."""
    budget = Budget(**spec.budget.model_dump())
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))  # kept between processes
    return run_until(
        learner,
        source,
        target,
        budget=budget,
        policy=build_policy(spec, target, lambda: past_of(spec, target, source, event_log)),
        num_val_tasks=spec.evaluate.num_val_tasks,
        seed=spec.seed,
        folder=folder.train,
        event_log=event_log,
        observer=display,
        spent_seconds=spent_seconds,
        **spec.train.model_dump(),
    )


def check_data(source: TaskSource, display: Display) -> Checked:
    """A short check of the data, whose errors are shown at once; they do not end a run."""
    checked = check_for_report(source)
    for finding in checked.findings:
        if finding.severity == "error":
            display.say(f"ERROR in the data, {finding.check}: {finding.sentence}", "bold red")
    return checked


def _check_same_data(source: TaskSource) -> None:
    """Raise ValueError in all processes if one has other data, as where machines have different copies of a file."""
    hashes = from_all([short_hash(source.task(split, 0)) for split in ("train", "val")])
    if other := next((rank for rank, each in enumerate(hashes) if each != hashes[0]), None):
        raise ValueError(
            f"process {other} of the run reads other data than process 0: copy the same files to each machine"
        )


def data_check_entry(checked: Checked) -> dict[str, Any]:
    """The entry of a report on what the check of the data found."""
    return {"data_check": {"looked_at": checked.looked_at, "findings": checked.findings}}


def new_model(spec: Spec, shapes: Shapes, device: torch.device) -> nn.Module:
    """The base model of a run file, with its initial weights."""
    return build_model(spec, shapes, head=has_head(spec)).to(device)


def _report(
    spec: Spec,
    out: Path,
    source: TaskSource,
    result: Run,
    test: TestResult | None,
    learner: Learner,
    failures: Failures,
) -> dict[str, Any]:
    target, pairs = Target.parse(spec.target), zip(result.rounds, result.decisions)
    num_steps = result.best.step if result.best else 0
    rounds = [entry.to_json() | {"decision": decision_to_json(decision)} for entry, decision in pairs]
    return {
        "kshot": version("kshot"),
        "name": spec.name,
        "about": spec.about,
        "command": f"kshot run {out / 'spec.yaml'}",
        "seed": spec.seed,
        "outcome": result.outcome.name,
        "sentence": result.outcome.value,
        "reason": result.reason,
        "target": str(target),
        "metric": target.metric,
        "higher_is_better": target.at_least,
        "rounds": rounds,
        "best_round": result.best.number if result.best else None,
        "val": rounds[result.best.number - 1]["val"] if result.best else {},
        "test": None,
        "baselines": {},
        "protocol": protocol(spec, source, learner),
        "tried": tried(out, spec),
        **(report_entries(test, spec, source, learner, failures, num_steps) if test else {}),
        "environment": environment(),
        "timing": {"seconds": result.rounds[-1].seconds if result.rounds else None},
    }
