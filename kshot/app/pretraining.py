"""Pretraining in a run: that of the run file, and that of the baselines for as long as the learner trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import TypeAdapter
from torch import nn

from kshot.app.folder import RunFolder
from kshot.app.progress import Display
from kshot.app.spec import PRETRAIN, Spec
from kshot.deciding.decisions import EventLog
from kshot.files import DamagedFile, read_json, read_lines, write_json
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import Checkpoints, Snapshot
from kshot.training.fit import OuterLoop, Progress, Settings
from kshot.training.pretrain import finish_pretraining, pretraining_loop
from kshot.training.stopping import Stopped

TIMED_STEPS = 5  # of which the fastest gives the time of a step
LONGER = 1.2  # the baselines are pretrained anew if that takes this many times the steps of the run file
STEPS = "steps.json"

Step = Callable[[Progress, int, str], None]
"""(progress, number of steps, stage), called after each step."""


CONTRAST = {"full": 5e-5, "lora": 1e-3}
"""Learning rates of the contrast that tunes a pretrained encoder for the baselines, by what of it is trained."""


def tunes_encoder(spec: Spec) -> bool:
    """Whether the model of a run is a pretrained encoder of which more than a head is trained."""
    return spec.model is not None and spec.model.kind == "encoder" and spec.model.tune in CONTRAST


def options_of_baselines(spec: Spec) -> dict[str, Any]:
    """The options of the pretraining of the baselines: the run file's, or plain contrast for a pretrained encoder."""
    if spec.pretrain is not None:
        return dict(spec.pretrain.model_dump())
    if not tunes_encoder(spec):
        return {}
    assert spec.model is not None
    return {"objective": "contrastive", "batch": 72, "outer_lr": CONTRAST[spec.model.tune]}


class Pretraining(NamedTuple):
    """A pretraining of a run.

    Attributes:
        spec, options: the run file, and its section `pretrain` or one like it.
        folder: folder of the checkpoints.
        stage: name in the display.
    """

    spec: Spec
    options: Any
    folder: Path
    stage: str = "pretrain"

    def loop(self, model: nn.Module, source: TaskSource, size: int | None = None) -> OuterLoop:
        """The outer loop of the pretraining of a model, with `size` examples a step, by default the options' batch."""
        size = size or self.options.batch
        settings = Settings(self.options.outer_lr, clip=None, horizon=self.options.steps, size=size)
        kwargs = self.options.model_dump(include={"objective", "output", "temperature", "precision"})
        with during(source, "pretraining"):
            return pretraining_loop(model, source, settings, **kwargs, seed=self.spec.seed)

    def run(self, model: nn.Module, source: TaskSource, event_log: EventLog | None, show: Step) -> float:
        """Pretrain a model in place, resuming from the latest checkpoint; return the total seconds."""
        loop, total = self.loop(model, source), self.options.steps
        checkpoints = Checkpoints(self.folder, self.spec.train.checkpoint_seconds)
        latest = checkpoints.latest_for_training()
        before = loop.load(latest)["seconds"] if latest else 0.0
        started = time.monotonic()
        losses: list[float] = []

        def observe(progress: Progress) -> None:
            losses.append(progress.loss)
            if event_log is not None and (len(losses) == 10 or progress.step == total):
                event_log.record("pretrain", step=progress.step, loss=sum(losses) / len(losses))
                losses.clear()
            if progress.step == total:
                checkpoints.save(*snapshot())
                checkpoints.prune()
            elif checkpoints.due():
                checkpoints.save_in_background(*snapshot())
            show(progress, total, self.stage)

        def snapshot() -> tuple[str, Snapshot]:
            seconds = before + time.monotonic() - started
            return checkpoints.free(f"step-{loop.step:07d}"), loop.snapshot({"seconds": seconds})

        try:
            with during(source, "pretraining"):
                loop.run(total - loop.step, observe)
        except Stopped as asked:
            checkpoints.wait()
            name, last = snapshot()
            checkpoints.save(name, last)
            if event_log is not None:
                event_log.record("stopped", step=loop.step, checkpoint=name, signal=str(asked))
            raise
        finally:
            checkpoints.wait()
        finish_pretraining(loop)
        return before + time.monotonic() - started

    def load(self, model: nn.Module, source: TaskSource) -> nn.Module | None:
        """Load the weights of a finished pretraining into a model; None if there is none.

        Raises:
            DamagedFile: the checkpoint is damaged.
        """
        latest = Checkpoints(self.folder).latest(may_go_back=False)
        if latest is None:
            return None
        loop = self.loop(model, source)
        loop.load(latest)
        finish_pretraining(loop)
        return model


def pretraining_of_run(spec: Spec, folder: RunFolder) -> Pretraining | None:
    """The pretraining that the run file asks for, if any."""
    return Pretraining(spec, spec.pretrain, folder.pretrain) if spec.pretrain else None


def pretraining_of_baselines(
    spec: Spec,
    folder: RunFolder,
    new_model: Callable[[], nn.Module],
    source: TaskSource,
    seconds: float | None,
    event_log: EventLog | None = None,
) -> Pretraining | None:
    """The pretraining of the baselines, so that they may spend what the learner spent, times the budget of baselines.

    The options are those of `options_of_baselines`. The steps are those of the learner's pretraining, and as many more
    as fit the time of its meta-training; their number is kept in the run folder, so that a resumed run takes the same.

    Args:
        new_model: makes the model with its initial weights.
        seconds: the time of the meta-training; None for that of a finished run.
        event_log: the log, in which the number of steps is noted.

    Returns:
        None if the source has no examples to pretrain on, or that of the run file is about as long.

    Raises:
        DamagedFile: the log has a number of steps that the run folder lacks, or another one.
    """
    stored = folder.pretrain_baselines / STEPS
    known = [event["steps"] for event in read_lines(folder.events).values if event["kind"] == "pretrain_baselines"]
    if known and seconds is not None:  # a resumed run
        steps = known[-1]
        write_json(stored, {"steps": steps, "seconds": seconds})
    elif known or stored.exists():
        steps = read_json(stored)["steps"]
        if known and steps not in known:
            raise DamagedFile(f"{stored} is not the one of this run")
    elif seconds is None:
        return None
    else:
        try:
            each = seconds_per_step(_with_steps(spec, folder, TIMED_STEPS), new_model(), source)
            before = spec.pretrain.steps if spec.pretrain else 0
            steps = int(spec.baselines.budget * (before + seconds / each))
        except ValueError:  # the source cannot pretrain
            steps = 0
        if event_log is not None:
            event_log.record("pretrain_baselines", steps=steps)
        write_json(stored, {"steps": steps, "seconds": seconds})
    if steps < 1 or (spec.pretrain and steps < LONGER * spec.pretrain.steps):
        return None
    return _with_steps(spec, folder, steps)


def pretrain_baselines(
    spec: Spec,
    folder: RunFolder,
    new_model: Callable[[], nn.Module],
    source: TaskSource,
    seconds: float,
    display: Display,
    event_log: EventLog,
) -> list[nn.Module]:
    """The model of `pretraining_of_baselines`, pretrained, if that is longer than the run file's pretraining."""
    pretraining = pretraining_of_baselines(spec, folder, new_model, source, seconds, event_log)
    if pretraining is None:
        return []
    model, steps = new_model(), pretraining.options.steps
    taken = pretraining.run(model, source, None, display.step)
    display.say(f"pretrained the model of the baselines for {steps} steps in {taken:.0f} s, as long as the learner")
    return [model]


def load_pretrained(
    spec: Spec, folder: RunFolder, new_model: Callable[[], nn.Module], source: TaskSource
) -> list[nn.Module]:
    """The pretrained models of a finished run."""
    both = pretraining_of_run(spec, folder), pretraining_of_baselines(spec, folder, new_model, source, None)
    models = [pretraining.load(new_model(), source) for pretraining in both if pretraining is not None]
    return [model for model in models if model is not None]


def _with_steps(spec: Spec, folder: RunFolder, steps: int) -> Pretraining:
    options = TypeAdapter(Annotated[Any, PRETRAIN]).validate_python(options_of_baselines(spec) | {"steps": steps})
    return Pretraining(spec, options, folder.pretrain_baselines, "pretrain baselines")


def seconds_per_step(pretraining: Pretraining, model: nn.Module, source: TaskSource) -> float:
    """The time of the fastest of the first steps of a pretraining; the model is changed."""
    times: list[float] = [time.perf_counter()]
    loop = pretraining.loop(model, source)
    with during(source, "pretraining"):
        loop.run(TIMED_STEPS, lambda progress: times.append(time.perf_counter()))
    return min(after - before for before, after in pairwise(times))
