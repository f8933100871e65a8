"""A run folder: its files, and the checks for starting a run in it or resuming one.

spec.yaml               the run file, defaults spelt out
shapes.json             shapes of one example; with the run file, enough to build the learner
encoding.json           the preprocessor of a user's files, if the tasks were read from files
events.jsonl            the log of events
checkpoints/pretrain/   the pretrained base model
checkpoints/pretrain-baselines/   the one that was pretrained for as long as the learner trained
checkpoints/train/      the latest and the best round
failures.log            what failed after the training, with tracebacks
rejection.json          the novelty threshold for out-of-scope examples, if the run file has a `reject` section
tasks.csv               the test figures of each task
report.json, report.html
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

from kshot.app.spec import Spec, parse_spec
from kshot.evaluation.per_task import TASKS
from kshot.files import is_empty, read_lines, read_signed, write_signed
from kshot.tasks.read_log import EVALUATION
from kshot.types import Split

FREE_TO_CHANGE = {"target", "budget", "evaluate", "baselines", "about", "device"}  # keys that a resumed run may change


class RunFolder:
    """The paths of a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec, self.shapes, self.events = path / "spec.yaml", path / "shapes.json", path / "events.jsonl"
        self.preprocessor = path / "encoding.json"
        self.pretrain, self.train = path / "checkpoints" / "pretrain", path / "checkpoints" / "train"
        self.pretrain_baselines = path / "checkpoints" / "pretrain-baselines"
        self.report, self.tasks = path / "report.json", path / TASKS
        self.rejection, self.failures = path / "rejection.json", path / "failures.log"

    def open_new(self, spec: Spec) -> None:
        """Create the folder for a run; raises ValueError if it is not empty."""
        if not is_empty(self.path):
            what = "already holds a run" if self.spec.exists() else "already exists and is not empty"
            raise ValueError(f"{self.path} {what}: choose another --out, or resume it by --resume")
        write_signed(self.spec, spec.to_yaml())

    def open_again(self, spec: Spec) -> None:
        """Resume the run in the folder; raises ValueError as `check` does."""
        self.check(spec)
        if read_spec(self.path) != spec:
            write_signed(self.spec, spec.to_yaml())

    def check(self, spec: Spec) -> None:
        """Raise ValueError if there is no run in the folder, or it has another run file."""
        if not self.spec.exists():
            raise ValueError(f"{self.path} holds no run to resume")
        before, after = read_spec(self.path).model_dump(), spec.model_dump()
        differing = sorted(key for key in after if after[key] != before[key] and key not in FREE_TO_CHANGE)
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another {', '.join(differing)}: a resumed run may change only "
                f"{', '.join(sorted(FREE_TO_CHANGE))}"
            )


def free_folder(parent: Path, stem: str) -> Path:
    """Make the first of the folders `stem`, `stem-2`, `stem-3`… that does not exist in `parent`, for this process."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("there are infinitely many names")


def read_spec(path: Path) -> Spec:
    """The run file of a run folder; ValueError if the folder is none."""
    file = path / "spec.yaml"
    if not file.is_file():
        inside = sorted(run.parent.name for run in path.glob("*/spec.yaml"))
        if inside:
            raise ValueError(f"{path} holds several runs: choose one of {', '.join(inside)}")
        raise ValueError(f"{path} is no run folder: it holds no spec.yaml")
    return parse_spec(read_signed(file), str(file))


def logged_reads(events: Path) -> list[tuple[str, Split]]:
    """The (phase, split) of each read in the event log of a run.

    A round of training that follows an evaluation on test tasks, as where a finished run is resumed with a larger
    budget, counts as a read of "test" by training: the result may have led to it. So does a damaged line, since nobody
    knows what it said.
    """
    logged, damaged = read_lines(events)
    reads: list[tuple[str, Split]] = []
    for event in logged:
        if event["kind"] == "read":
            reads.append((event["phase"], event["split"]))
        elif event["kind"] == "train" and (EVALUATION, "test") in reads:
            reads.append(("training after its evaluation", "test"))
    reads += [(f"a damaged line of {events.name}", "test")] * bool(damaged)
    return list(dict.fromkeys(reads))
