"""A run folder: what lies where, and how a finished or interrupted run is opened again.

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

import hashlib
import itertools
import json
from pathlib import Path
from typing import NamedTuple

from kshot.app.build import Shapes, build_learner, build_model, has_head
from kshot.app.spec import Spec, parse_spec
from kshot.deciding.decisions import Round, best_round
from kshot.evaluation.per_task import TASKS
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.tasks.preprocessor import Preprocessor
from kshot.training.checkpoint import META, WEIGHTS, Checkpoints, load_checkpoint
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
    """The run file of a run folder."""
    file = path / "spec.yaml"
    if not file.is_file():
        raise ValueError(f"{path} is no run folder: it holds no spec.yaml")
    return parse_spec(file.read_text(), str(file))


class OpenRun(NamedTuple):
    """A run folder, opened.

    Attributes:
        spec: its run file.
        shapes: of one example.
        preprocessor: how a user's files become inputs, where its tasks were read from a table.
        learner: with the weights of the best round.
        round: its number.
        weights: the hash of those.
        checkpoint: the folder that they were read from.
        reads: which phase of the run read which split.
    """

    spec: Spec
    shapes: Shapes
    preprocessor: Preprocessor | None
    learner: Learner
    round: int
    weights: str
    checkpoint: Path
    reads: list[tuple[str, Split]]


def load_run(path: Path) -> OpenRun:
    """Open a run folder, without the data it was trained on.

    Raises:
        ValueError: no run folder, no finished round in it, or a damaged checkpoint.
    """
    spec = read_spec(path)
    folder = RunFolder(path)
    latest = Checkpoints(folder.train).latest() if folder.train.exists() else None
    if latest is None or not folder.shapes.exists():
        raise ValueError(
            f"{path} holds no finished round yet; go on with `kshot run {spec.name} --out {path} --resume`"
        )
    rounds = [Round.from_json(entry) for entry in json.loads((latest / META).read_text())["rounds"]]
    best = best_round(rounds, Target.parse(spec.target))
    if best is None:
        raise ValueError(
            f"{path} holds no finished round yet; go on with `kshot run {spec.name} --out {path} --resume`"
        )
    shapes = json.loads(folder.shapes.read_text())
    kept = json.loads(folder.preprocessor.read_text()) if folder.preprocessor.exists() else None
    preprocessor = preprocessor_from_json(kept) if kept else None
    model = build_model(spec, shapes, head=has_head(spec))
    learner = build_learner(spec, model, shapes)
    checkpoint = folder.train / best.checkpoint
    load_checkpoint(checkpoint, learner)
    weights = hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()
    reads = noted_reads(folder.events)
    return OpenRun(spec, shapes, preprocessor, learner, best.number, weights, checkpoint, reads)


def noted_reads(events: Path) -> list[tuple[str, Split]]:
    """Which phase of a run read which split, as its log has it; a last line cut short is passed over."""
    lines = events.read_text().rpartition("\n")[0].splitlines() if events.exists() else []
    noted = [event for event in map(json.loads, lines) if event["kind"] == "read"]
    return [(event["phase"], event["split"]) for event in noted]
