"""What a pretrained encoder of images is worth: a network of the same tasks that is trained without it.

Classes of the test split may have been among what an encoder was trained on, so that its figures say little of things
that it has never seen. The honest opponent saw the training split alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch

from kshot import learners, models
from kshot.data.images.cache import DecodedImages
from kshot.data.images.encoder import SMALL, EncodedImages, small_images
from kshot.deciding.decisions import EventLog
from kshot.evaluation.evaluate import Evaluation, Scored, evaluate
from kshot.evaluation.report.formatting import format_duration
from kshot.learner import Learner
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.read_log import unwatched
from kshot.tasks.source import TaskSource
from kshot.training.fit import Progress, fit

NAME = "without_pretraining"
"""The name among baselines, and of the event that notes the steps."""
TIMED_STEPS = 3  # of which the fastest gives the time of a step
TASKS_PER_STEP = 2
CHANNELS = 32  # a wider network learns more slowly, of minutes less


class WithoutPretraining(NamedTuple):
    """The evaluation of a network without pretraining, and how long it was trained."""

    evaluation: Evaluation
    steps: int
    seconds: float

    @property
    def about(self) -> str:
        """Its description for reports."""
        trained = f"meta-trained on the images of the training split for {self.steps:,} steps"
        network = f"a prototypical network (Conv4 of {CHANNELS} channels, {SMALL} px) of random weights"
        return f"{network}, {trained} in {format_duration(self.seconds)}"


def images_of(source: TaskSource) -> ClassTasks | None:
    """The same tasks of small images in place of features or of the input of an encoder; None if there are no files."""
    own = unwatched(source)
    examples = getattr(own, "examples", None)
    if not isinstance(own, ClassTasks) or not isinstance(examples, EncodedImages | DecodedImages):
        return None
    plain = copy.copy(own)
    plain.examples, plain.preprocessor = small_images(examples.files, examples.root), None
    return plain


def steps_of_run(source: ClassTasks, seconds: float, seed: int, event_log: EventLog) -> int:
    """The number of training steps that take about a time on this machine, at least one; of a resumed run, the same.

    Args:
        source: of `images_of`.
        seconds: of training.
        seed: of the initial weights.
        event_log: the log of the run, in which the number is noted.
    """
    for event in event_log.of(NAME):
        if event["seconds"] == seconds:
            return int(event["steps"])
    steps = max(1, int(seconds / _seconds_per_step(_network(seed), source)))
    event_log.record(NAME, seconds=seconds, steps=steps)
    return steps


def evaluate_without_pretraining(
    source: ClassTasks,
    test: Evaluation,
    *,
    steps: int,
    num_tasks: int,
    seed: int,
    training: Callable[[int, int], object],
    observe: Callable[[Scored], None],
) -> WithoutPretraining:
    """Meta-train a prototypical network with four layers of convolution, and evaluate it.

    Args:
        source: of `images_of`.
        test: the evaluation of the learner, whose tasks are the same, image by image.
        steps: of training.
        num_tasks: number of tasks, the first of those of `test`.
        seed: of the initial weights and of the choice of training tasks.
        training: called after each step with their number so far and in all.
        observe: as in `evaluate`.
    """

    def show(progress: Progress) -> None:
        training(progress.step, steps)

    learner, started = _network(seed), time.monotonic()
    _fit(learner, source, steps, seed, show)
    taken = time.monotonic() - started
    found = evaluate(learner, source, split=test.split, num_tasks=num_tasks, audit=False, observe=observe)
    # The images are the same: only their hashes differ from those of the features.
    return WithoutPretraining(replace(found, episodes=test.episodes[: len(found.episodes)]), steps, taken)


def _network(seed: int) -> Learner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return learners.protonet(models.conv4(3, channels=CHANNELS, size=SMALL))


def _fit(learner: Learner, source: ClassTasks, steps: int, seed: int, observe: Callable[[Progress], None]) -> None:
    fit(learner, source, steps=steps, tasks_per_step=TASKS_PER_STEP, seed=seed, observe=observe)


def _seconds_per_step(learner: Learner, source: ClassTasks) -> float:
    times = [time.perf_counter()]
    _fit(learner, source, TIMED_STEPS, 0, lambda progress: times.append(time.perf_counter()))
    return min(after - before for before, after in pairwise(times))
