"""`kshot run`: pretrain; rounds of train, evaluate and decide; the test beside the baselines; the report."""

from __future__ import annotations

import copy
import json
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from kshot import learners
from kshot.app.build import (
    Shapes,
    build_learner,
    build_model,
    build_source,
    device_of,
    has_head,
    shapes_of,
)
from kshot.app.display import Display
from kshot.app.folder import RunFolder
from kshot.app.spec import GaussianProcessesSpec, SinusoidsSpec, Spec
from kshot.deciding.decisions import plain
from kshot.deciding.experience import Experience
from kshot.deciding.loop import Run, run_until
from kshot.deciding.policies import Budget
from kshot.evaluation import figures
from kshot.evaluation.evaluate import Evaluation, evaluate
from kshot.evaluation.report import write_report
from kshot.evaluation.target import Target
from kshot.evaluation.verdict import best_baseline
from kshot.learner import Learner
from kshot.learners.gradient import GradientLearner
from kshot.learners.heads import HeadLearner, Prototypes
from kshot.objectives import gaussian
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import Checkpoints
from kshot.training.fit import Progress, Settings
from kshot.training.pretrain import finish, pretraining

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = {
    "scratch": "the same model, fitted to the support set alone from random weights",
    "fine_tune": "the model after {steps} steps of pretraining on all training classes, fine-tuned on the support set",
    "pretrained_centroid": "nearest class mean in the features of the model after {steps} steps of pretraining",
    "centroid": "nearest class mean of the raw inputs",
    "support_mean": "the mean of the support targets, whatever the input",
}


def run(spec: Spec, out: Path, *, resume: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Carry out a run file in the folder `out`, and return the report.

    Raises:
        ValueError: a folder that already holds a run, data that is missing or damaged, a spec that does not fit it.
    """
    target = Target.parse(spec.target)
    device = device_of(spec)
    source = build_source(spec)
    shapes = shapes_of(source)
    metric_names = _metrics_of(source)
    if target.metric not in metric_names:
        raise ValueError(f"target {spec.target!r}: these tasks report {', '.join(metric_names)}")
    model = build_model(spec, shapes, head=has_head(spec)).to(device)
    folder = RunFolder(out)
    (folder.open_again if resume else folder.open_new)(spec)
    folder.shapes.write_text(json.dumps(shapes))
    if source.encoding:
        folder.encoding.write_text(json.dumps(source.encoding.to_json()))
    experience = Experience(folder.events)
    started = time.monotonic()
    with Display(console or Console(), target.metric) as display:
        display.say(f"{spec.name}: {spec.about}" if spec.about else spec.name, "bold")
        pretrained, pretrain_seconds = None, 0.0
        if spec.pretrain:
            pretrain_seconds = _pretrain(spec, model, source, folder, experience, display)
            pretrained = copy.deepcopy(model)
        learner = build_learner(spec, model, shapes).to(device)
        training = spec.train.model_dump()
        result = run_until(
            learner,
            source,
            target,
            budget=Budget(**spec.budget.model_dump()),
            val_tasks=spec.evaluate.val_tasks,
            seed=spec.seed,
            folder=folder.train,
            experience=experience,
            observer=display,
            spent_seconds=pretrain_seconds,
            **training,
        )
        display.say(result.outcome.value)
        test, baselines = None, {}
        if result.best is not None:
            test = _test(learner, source, spec.evaluate.test_tasks, "test", display)
            baselines = _baselines(spec, source, pretrained, shapes, target, device, display)
        report = _report(spec, out, source, target, result, test, baselines, learner)
        report["timing"] |= {"pretrain_seconds": pretrain_seconds, "this_process_seconds": time.monotonic() - started}
        write_report(out, report, experience.events, _figures(report, experience, learner, spec))
        experience.record("finished", outcome=result.outcome.name)
    return report


def _metrics_of(source: TaskSource) -> list[str]:
    query = source.task("train", 0).query
    return ["loss", *source.objective.metrics(source.objective.certain(query.targets), query)]


def _pretrain(
    spec: Spec, model: nn.Module, source: TaskSource, folder: RunFolder, experience: Experience, display: Display
) -> float:
    """Pretrain in place, going on from the latest checkpoint; the seconds it took in all."""
    assert spec.pretrain is not None
    options = spec.pretrain
    settings = Settings(options.outer_lr, clip=None, horizon=options.steps, size=options.batch)
    loop = pretraining(model, source, settings, seed=spec.seed)
    checkpoints = Checkpoints(folder.pretrain, spec.train.checkpoint_seconds)
    latest = checkpoints.latest()
    before = loop.load(latest)["seconds"] if latest else 0.0
    started = time.monotonic()
    losses: list[float] = []

    def save() -> None:
        loop.save(checkpoints.folder / f"step-{loop.step:07d}", {"seconds": before + time.monotonic() - started})
        checkpoints.wrote()
        checkpoints.prune()

    def observe(progress: Progress) -> None:
        losses.append(progress.loss)
        if len(losses) == 10 or progress.step == options.steps:
            experience.record("pretrain", step=progress.step, loss=sum(losses) / len(losses))
            losses.clear()
        if checkpoints.due() or progress.step == options.steps:
            save()
        display.pretrain(progress, options.steps)

    loop.run(options.steps - loop.step, observe)
    finish(loop)
    seconds = before + time.monotonic() - started
    display.say(f"pretrained {options.steps} steps on all training classes in {seconds:.0f} s")
    return seconds


def _test(learner: Learner, source: TaskSource, tasks: int, stage: str, display: Display) -> Evaluation:
    return evaluate(
        learner, source, split="test", tasks=tasks, observe=lambda done: display.advance(stage, done, tasks)
    )


def _baselines(
    spec: Spec,
    source: TaskSource,
    pretrained: nn.Module | None,
    shapes: Shapes,
    target: Target,
    device: torch.device,
    display: Display,
) -> dict[str, Evaluation]:
    """Each baseline on the first test tasks; where it has a rate to choose, the best on validation tasks."""
    options = spec.baselines
    found: dict[str, Evaluation] = {}
    for name in options.names:
        candidates = _candidates(name, spec, source, pretrained, shapes)
        scores = []
        for candidate in candidates if len(candidates) > 1 else []:
            val = evaluate(candidate.to(device), source, split="val", tasks=options.val_tasks)
            scores.append(target.of(val.metrics).mean)
        choose = max if target.at_least else min
        best = candidates[scores.index(choose(scores))] if scores else candidates[0]
        found[name] = _test(best.to(device), source, options.test_tasks, name.replace("_", " "), display)
    return found


def _candidates(
    name: str, spec: Spec, source: TaskSource, pretrained: nn.Module | None, shapes: Shapes
) -> list[Learner]:
    objective = source.objective
    options = spec.baselines
    if name == "centroid":
        return [learners.nearest_centroid(objective)]
    if name == "support_mean":
        return [learners.SupportMean(objective)]
    if name == "scratch":
        fresh = build_model(spec, shapes, head=True)
        make: Callable[..., Learner] = learners.from_scratch
        return [make(fresh, inner_lr=lr, steps=options.steps, objective=objective) for lr in options.inner_lrs]
    if pretrained is None:
        raise ValueError(f"baseline {name!r} needs a pretrained model: give the run file a 'pretrain' section")
    if name == "pretrained_centroid":
        body = dict(pretrained.named_children()).get("body", pretrained)
        return [HeadLearner(body, Prototypes(), objective)]
    model = build_model(spec, shapes, head=True)
    model.load_state_dict(pretrained.state_dict(), strict=False)
    return [
        learners.fine_tune(model, inner_lr=lr, steps=options.steps, objective=objective) for lr in options.inner_lrs
    ]


def _report(
    spec: Spec,
    out: Path,
    source: TaskSource,
    target: Target,
    result: Run,
    test: Evaluation | None,
    baselines: dict[str, Evaluation],
    learner: Learner,
) -> dict[str, Any]:
    rounds = []
    for entry, decision in zip(result.rounds, result.decisions):
        rounds.append(entry.to_json() | {"decision": plain(decision)})
    summary = test.summary() if test else None
    steps = spec.pretrain.steps if spec.pretrain else 0
    return {
        "kshot": version("kshot"),
        "name": spec.name,
        "about": spec.about,
        "command": f"kshot run {out / 'spec.yaml'}",
        "outcome": result.outcome.name,
        "sentence": result.outcome.value,
        "reason": result.reason,
        "target": str(target),
        "metric": target.metric,
        "higher_is_better": target.at_least,
        "rounds": rounds,
        "best_round": result.best.number if result.best else None,
        "val": rounds[result.best.number - 1]["val"] if result.best else {},
        "test": summary["metrics"] if summary else None,
        "baselines": {name: evaluation.summary()["metrics"] for name, evaluation in baselines.items()},
        "baselines_about": {name: BASELINES[name].format(steps=steps) for name in baselines}
        | {"learner": _about(spec)},
        "protocol": source.describe()
        | {
            "learner": spec.learner.model_dump(),
            "model": spec.model.model_dump() if spec.model else None,
            "inductive": not learner.transductive,
            "episodes_sha256": test.episodes_sha256 if test else None,
            "test_tasks": spec.evaluate.test_tasks,
            "val_tasks": spec.evaluate.val_tasks,
            "seeds": 1,
            "selection": "one checkpoint, chosen on validation tasks; the test tasks are read once, at the end",
        },
        "environment": environment(),
        "timing": {
            "seconds": result.rounds[-1].seconds if result.rounds else None,
            "adapt_ms": test.adapt_ms if test else None,
        },
    }


def _about(spec: Spec) -> str:
    options = ", ".join(f"{name} {value}" for name, value in spec.learner.model_dump(exclude={"kind"}).items())
    return f"{spec.learner.kind} ({options}), meta-trained on the training tasks"


def _figures(report: dict[str, Any], experience: Experience, learner: Learner, spec: Spec) -> dict[str, Figure]:
    metric, higher = report["metric"], report["higher_is_better"]
    best = best_baseline(report["baselines"], metric, higher)
    drawn = {
        "rounds": figures.rounds_chart(report["rounds"], report["target"], baseline=best),
        "learning_curve": figures.learning_curve(experience.events),
    }
    if report["test"] is None:
        return drawn
    if report["baselines"]:
        drawn["baselines"] = figures.baselines_chart(
            report["test"], report["baselines"], metric, higher_is_better=higher, learner=spec.learner.kind
        )
    learner = learner.cpu().eval()
    if isinstance(spec.source, SinusoidsSpec | GaussianProcessesSpec):
        curves = build_source(spec.model_copy(update={"source": spec.source.model_copy(update={"queries": 100})}))
        shown = [curves.task("test", index) for index in range(3)]
        if curves.objective == gaussian:
            with torch.no_grad():
                said = [learner.predict(learner.adapt(task.support), task.query.inputs) for task in shown]
            drawn["predictive_bands"] = figures.predictive_bands(shown, {spec.learner.kind: said})
        elif isinstance(learner, GradientLearner):
            drawn["regression_examples"] = figures.regression_examples(learner, shown, steps=(0, 1, 5))
        return drawn
    source = build_source(spec)
    if getattr(source.task("test", 0).query.inputs, "ndim", 0) != 4:
        return drawn  # no images to show
    examples = []
    with torch.no_grad():
        for index in range(4):
            task = source.task("test", index)
            examples.append(figures.Example(task, learner.predict(learner.adapt(task.support), task.query.inputs)))
    return drawn | {"classification_examples": figures.classification_examples(examples)}


def environment() -> dict[str, Any]:
    """The versions and the machine that figures were measured with."""
    names = ("torch", "numpy", "pillow", "matplotlib")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerator": str(torch.accelerator.current_accelerator() or "none"),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that kshot runs from, if it is one."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
