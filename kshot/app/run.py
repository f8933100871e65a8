"""`kshot run`: pretraining, rounds of training, evaluation and decision, the final evaluation, and the report.

`kshot evaluate`: the final evaluation of a run again, on other tasks that it has not seen.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from kshot.app.baselines import names_of
from kshot.app.build import build_learner, build_model, build_policy, build_source, device_of, has_head, shapes_of
from kshot.app.figures import make_figures
from kshot.app.final_evaluation import TestResult, evaluate_with_baselines, protocol, report_entries
from kshot.app.folder import RunFolder, logged_reads
from kshot.app.progress import Display
from kshot.app.spec import Spec
from kshot.app.terminal import print_summary
from kshot.app.trained import load
from kshot.app.tried import tried
from kshot.data.cache import cache_folder
from kshot.deciding.decisions import Experience, decision_to_json
from kshot.deciding.loop import Run, run_until
from kshot.deciding.policies import Budget
from kshot.evaluation.per_task import TASKS, write_tasks
from kshot.evaluation.report import run_charts
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.report.verdict import best_baseline
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.learners.heads.head_learner import FeatureStatistics, HeadLearner
from kshot.tasks.read_log import during, watched
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import Checkpoints
from kshot.training.fit import OuterLoop, Progress, Settings
from kshot.training.pretrain import finish_pretraining, fit_feature_statistics, pretraining_loop


def run(spec: Spec, out: Path, *, resume: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Execute a run file in the folder `out`, and return the report.

    Raises:
        ValueError: the folder already holds a run, data are missing or damaged, or the run file does not suit them.
    """
    target = Target.parse(spec.target)
    with Display(console or Console(), target.metric) as display:  # opened first to show each log message once
        return _run(spec, out, target, display, resume)


def _run(spec: Spec, out: Path, target: Target, display: Display, resume: bool) -> dict[str, Any]:
    device = device_of(spec)
    source = build_source(spec)
    shapes = shapes_of(source)
    objective, query = source.objective, source.task("train", 0).query
    metric_names = ["loss", *objective.metrics(objective.as_prediction(query.targets), query)]
    if target.metric not in metric_names:
        raise ValueError(f"target {spec.target!r}: these tasks report {', '.join(metric_names)}")
    names_of(spec, objective)  # raises early for impossible baselines
    if spec.reject and not objective.task_specific_classes:
        raise ValueError("reject needs tasks with classes of their own, which these do not have")
    model = build_model(spec, shapes, head=has_head(spec)).to(device)
    folder = RunFolder(out)
    (folder.open_again if resume else folder.open_new)(spec)
    folder.shapes.write_text(json.dumps(shapes))
    if source.preprocessor:
        folder.preprocessor.write_text(json.dumps(source.preprocessor.to_json()))
    experience = Experience(folder.events)
    source = watched(
        source, lambda phase, split: experience.record("read", phase=phase, split=split), logged_reads(folder.events)
    )
    started = time.monotonic()
    display.say(f"{spec.name}: {spec.about}" if spec.about else spec.name, "bold")
    pretrained, pretrain_seconds = None, 0.0
    if spec.pretrain:
        pretrain_seconds = _pretrain(spec, model, source, folder, experience, display)
        pretrained = copy.deepcopy(model)
    learner = build_learner(spec, model, shapes).to(device)
    if isinstance(learner, HeadLearner) and isinstance(learner.head, FeatureStatistics):
        with during(source, "pretraining"):
            fit_feature_statistics(learner, source)
    budget = Budget(**spec.budget.model_dump())
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))  # kept between processes
    result = run_until(
        learner,
        source,
        target,
        budget=budget,
        policy=build_policy(spec, target, budget),
        num_val_tasks=spec.evaluate.num_val_tasks,
        seed=spec.seed,
        folder=folder.train,
        experience=experience,
        observer=display,
        spent_seconds=pretrain_seconds,
        **spec.train.model_dump(),
    )
    display.say(result.outcome.value)
    test = None
    if result.best is not None:
        checkpoint = folder.train / result.best.checkpoint
        test = evaluate_with_baselines(learner, spec, source, shapes, pretrained, display.advance, checkpoint)
        write_tasks(folder.tasks, test.test, test.baselines, target.metric)
        if spec.reject and test.threshold is not None:
            folder.rejection.write_text(json.dumps({"score": spec.reject.score, "threshold": test.threshold}))
    report = to_json(_report(spec, out, source, result, test, learner))
    report["timing"] |= {"pretrain_seconds": pretrain_seconds, "this_process_seconds": time.monotonic() - started}
    best = best_baseline(report["baselines"], target.metric, target.at_least)
    figures = {
        "rounds": run_charts.rounds_chart(report["rounds"], report["target"], baseline=best),
        "learning_curve": run_charts.learning_curve(experience.events),
    }
    figures |= make_figures(report, test, spec, source, learner) if test else {}
    write_report(out, report, experience.events, figures)
    experience.record("finished", outcome=result.outcome.name)
    return report


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
    """Evaluate the best round of a run with its baselines, print the report, write it to `out` if given, and return it.

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
            "tried": tried(run_dir, spec),
            **report_entries(result, spec, source, learner),
            "environment": environment(),
            "timing": {"seconds": result.test.seconds},
        }
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_tasks(out / TASKS, result.test, result.baselines, target.metric)
        write_report(out, report, [], make_figures(report, result, spec, source, learner))
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print_summary(report, out)
    return report


def pretrained_model(spec: Spec, model: nn.Module, source: TaskSource, folder: RunFolder) -> nn.Module | None:
    """Load the pretrained weights of a finished run into `model`; None if it was not pretrained."""
    latest = Checkpoints(folder.pretrain).latest() if spec.pretrain and folder.pretrain.exists() else None
    if latest is None:
        return None
    loop = _pretraining(spec, model, source)
    loop.load(latest)
    finish_pretraining(loop)
    return model


def _pretraining(spec: Spec, model: nn.Module, source: TaskSource) -> OuterLoop:
    """The pretraining loop of a run file."""
    assert spec.pretrain is not None
    options = spec.pretrain
    settings = Settings(options.outer_lr, clip=None, horizon=options.steps, size=options.batch)
    kwargs = options.model_dump(include={"objective", "output", "temperature", "precision"})
    return pretraining_loop(model, source, settings, **kwargs, seed=spec.seed)


def _pretrain(
    spec: Spec, model: nn.Module, source: TaskSource, folder: RunFolder, experience: Experience, display: Display
) -> float:
    """Pretrain in place, resuming from the latest checkpoint; return the total seconds."""
    assert spec.pretrain is not None
    options = spec.pretrain
    with during(source, "pretraining"):
        loop = _pretraining(spec, model, source)
    checkpoints = Checkpoints(folder.pretrain, spec.train.checkpoint_seconds)
    latest = checkpoints.latest()
    before = loop.load(latest)["seconds"] if latest else 0.0
    started = time.monotonic()
    losses: list[float] = []

    def observe(progress: Progress) -> None:
        losses.append(progress.loss)
        if len(losses) == 10 or progress.step == options.steps:
            experience.record("pretrain", step=progress.step, loss=sum(losses) / len(losses))
            losses.clear()
        if checkpoints.due() or progress.step == options.steps:
            loop.save(checkpoints.folder / f"step-{loop.step:07d}", {"seconds": before + time.monotonic() - started})
            checkpoints.restart_interval()
            checkpoints.prune()
        display.step(progress, options.steps, "pretrain")

    with during(source, "pretraining"):
        loop.run(options.steps - loop.step, observe)
    finish_pretraining(loop)
    seconds = before + time.monotonic() - started
    display.say(f"pretrained {options.steps} steps on all training classes in {seconds:.0f} s")
    return seconds


def _report(
    spec: Spec, out: Path, source: TaskSource, result: Run, test: TestResult | None, learner: Learner
) -> dict[str, Any]:
    target, pairs = Target.parse(spec.target), zip(result.rounds, result.decisions)
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
        **(report_entries(test, spec, source, learner) if test else {}),
        "environment": environment(),
        "timing": {"seconds": result.rounds[-1].seconds if result.rounds else None},
    }


def environment() -> dict[str, Any]:
    """Versions and machine, for the reproduction of figures."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "pillow", "matplotlib")},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerator": str(torch.accelerator.current_accelerator() or "none"),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that kshot is imported from, if any."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
