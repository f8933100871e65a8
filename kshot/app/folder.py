"""A run folder: its files, and the checks for starting a run in it or resuming one.

spec.yaml               the run file, defaults spelt out
shapes.json             shapes of one example; with the spec, all that a learner is built from
encoding.json           how a user's files become inputs, where the tasks were read from a table
events.jsonl            everything that happened, in order
checkpoints/pretrain/   the pretrained base model
checkpoints/train/      the latest and the best round
rejection.json          above which novelty an example is out of scope, where the run file asks for it
tasks.csv               the test figures task by task
report.json, report.html
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from kshot.app.spec import Spec, parse_spec
from kshot.evaluation.per_task import TASKS
from kshot.types import Split

FREE_TO_CHANGE = {"target", "budget", "evaluate", "baselines", "about", "device"}  # when a run is resumed


class RunFolder:
    """The paths of a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec, self.shapes, self.events = path / "spec.yaml", path / "shapes.json", path / "events.jsonl"
        self.preprocessor = path / "encoding.json"
        self.pretrain, self.train = path / "checkpoints" / "pretrain", path / "checkpoints" / "train"
        self.report, self.tasks = path / "report.json", path / TASKS
        self.rejection = path / "rejection.json"

    def open_new(self, spec: Spec) -> None:
        """Start a run here; `ValueError` if something lies here already."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            what = "already holds a run" if self.spec.exists() else "already exists and is not empty"
            raise ValueError(f"{self.path} {what}: choose another --out, or go on with it by --resume")
        self.path.mkdir(parents=True, exist_ok=True)
        self.spec.write_text(spec.to_yaml())

    def open_again(self, spec: Spec) -> None:
        """Go on with the run that lies here; `ValueError` if there is none, or it is of another run file."""
        self.check(spec)
        self.spec.write_text(spec.to_yaml())

    def check(self, spec: Spec) -> None:
        """Raise `ValueError` unless the run that lies here is of this run file."""
        if not self.spec.exists():
            raise ValueError(f"{self.path} holds no run to resume")
        before = read_spec(self.path).model_dump()
        after = spec.model_dump()
        differing = sorted(key for key in after if after[key] != before[key] and key not in FREE_TO_CHANGE)
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another {', '.join(differing)}: a resumed run may change only "
                f"{', '.join(sorted(FREE_TO_CHANGE))}"
            )


def free_folder(parent: Path, stem: str) -> Path:
    """The first of `stem`, `stem-2`, `stem-3`… that does not exist in `parent` yet."""
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(path for path in map(parent.joinpath, names) if not path.exists())


def read_spec(path: Path) -> Spec:
    """The run file of a run folder; ValueError if the folder is none."""
    file = path / "spec.yaml"
    if not file.is_file():
        inside = sorted(run.parent.name for run in path.glob("*/spec.yaml"))
        if inside:
            raise ValueError(f"{path} holds several runs: choose one of {', '.join(inside)}")
        raise ValueError(f"{path} is no run folder: it holds no spec.yaml")
    return parse_spec(file.read_text(), str(file))


def noted_reads(events: Path) -> list[tuple[str, Split]]:
    """Which phase of a run read which split, as its log has it; a last line cut short is passed over."""
    lines = events.read_text().rpartition("\n")[0].splitlines() if events.exists() else []
    noted = [event for event in map(json.loads, lines) if event["kind"] == "read"]
    return [(event["phase"], event["split"]) for event in noted]
