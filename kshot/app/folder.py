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
trackers.json           what the trackers of the run were sent; those of a library may have a folder beside it
report.json, report.html
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from kshot.app.spec import Spec, parse_spec
from kshot.deciding.decisions import EventLog
from kshot.evaluation.per_task import TASKS
from kshot.files import (
    DamagedFile,
    Lines,
    copy_folder,
    digest,
    is_empty,
    read_json,
    read_lines,
    read_signed,
    whole_file,
    write_json,
    write_signed,
)
from kshot.tasks.read_log import EVALUATION
from kshot.training.checkpoint import Checkpoints
from kshot.types import Split

FREE_TO_CHANGE = {"target", "budget", "evaluate", "baselines", "about", "track", "device", "shard_frozen"}
"""Keys that a resumed run may change."""


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

    def start(self, spec: Spec, shapes: Mapping[str, Any], encoding: Mapping[str, Any] | None) -> EventLog:
        """Write the files of a new run, and return its log; raises ValueError if the folder is not empty."""
        if not is_empty(self.path):
            what = "already holds a run" if self.spec.exists() else "already exists and is not empty"
            raise ValueError(f"{self.path} {what}: choose another --out, or resume it by --resume")
        return self._write(spec, shapes, encoding)

    def resume(self, spec: Spec, shapes: Mapping[str, Any], encoding: Mapping[str, Any] | None) -> EventLog:
        """Write the files of the run in the folder that are to change, and return its log.

        Raises:
            ValueError: there is no run in the folder, or it has another run file.
        """
        self.check(spec)
        return self._write(spec, shapes, encoding)

    def _write(self, spec: Spec, shapes: Mapping[str, Any], encoding: Mapping[str, Any] | None) -> EventLog:
        """Note the files in the log, then write those that are not there; a process killed in between is resumed."""
        event_log = EventLog(self.events)
        if self.losses():
            event_log.record("damaged", what="lines of this log")  # to be known when newer lines follow
        contents: dict[Path, str | Mapping[str, Any]] = {self.spec: spec.to_yaml(), self.shapes: shapes}
        if encoding is not None:
            contents[self.preprocessor] = encoding
        files = {path.name: _hash(content) for path, content in contents.items()}
        if [event["sha256"] for event in event_log.of("files")[-1:]] != [files]:
            event_log.record("files", sha256=files)
        for path, content in contents.items():
            if not _holds(path, files[path.name]):
                write_signed(path, content) if isinstance(content, str) else write_json(path, content)
        return event_log

    def check(self, spec: Spec) -> None:
        """Raise ValueError if there is no run in the folder, or it has another run file."""
        if _hash(spec.to_yaml()) in self.known_files().get(self.spec.name, ()):
            return  # the same run, even if the file is damaged
        if not self.log.values and not self.spec.exists():
            if self.events.exists() and not self.train.exists():
                return  # a process was killed while it wrote its first line
            raise ValueError(f"{self.path} holds no run to resume")
        self.check_file(self.spec)
        before, after = read_spec(self.path).model_dump(), spec.model_dump()
        differing = sorted(key for key in after if after[key] != before[key] and key not in FREE_TO_CHANGE)
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another {', '.join(differing)}: a resumed run may change only "
                f"{', '.join(sorted(FREE_TO_CHANGE))}"
            )

    @cached_property
    def log(self) -> Lines:
        """The lines of the log, as when it was first asked for."""
        return read_lines(self.events)

    def known_files(self) -> dict[str, set[str]]:
        """SHA-256 of the content of each file that the log names, by its name; a resumed run may have changed them."""
        known: dict[str, set[str]] = {}
        for event in self._of("files"):
            for name, sha256 in event["sha256"].items():
                known.setdefault(name, set()).add(sha256)
        return known

    def check_file(self, path: Path) -> None:
        """Raise DamagedFile if a file is none that the log names; a run file without a checksum may be any."""
        known = self.known_files()
        found = _hash_of(path, may_be_unsigned=True)
        if known and found not in known.get(path.name, {None}) and found != "":
            what = "is not the one" if found else "is missing, the one"
            raise DamagedFile(f"{path} {what} that {self.events} tells of: either is damaged, or of another run")

    def check_files(self) -> None:
        """Raise DamagedFile if a file that the learner is built from is damaged, missing or of another run."""
        for path in (self.spec, self.shapes, self.preprocessor):
            self.check_file(path)

    def check_rounds(self, count: int) -> None:
        """Raise DamagedFile if the log has a decision after more rounds than the checkpoints tell of."""
        decided = max((event["round"]["number"] for event in self._of("decision")), default=0)
        if decided > count:
            raise DamagedFile(f"{self.train} lacks the checkpoint of round {decided}, which {self.events} names")

    def has_finished(self, spec: Spec) -> bool:
        """Whether the run of this run file has ended: its report is written, and the log says so after the file."""
        last = [event["kind"] for event in self.log.values if event["kind"] in ("files", "finished")][-1:]
        return last == ["finished"] and self.report.exists() and read_spec(self.path) == spec

    def read_report(self) -> dict[str, Any] | None:
        """The contents of report.json; None before the run has ended. Raises DamagedFile if it is not this run's."""
        if not self.report.exists() and not self._of("finished"):
            return None
        report = read_json(self.report)
        if report.get("log", "") not in ("", *self.log.checks):
            raise DamagedFile(f"{self.report} and {self.events} are not of one run, or one of them is damaged")
        return report

    def reads(self) -> list[tuple[str, Split]]:
        """`logged_reads` of the log, also for lines that others know and that are lost."""
        return logged_reads(self.events, self.losses())

    def reads_before_evaluation(self) -> list[tuple[str, Split]]:
        """`reads`, without what else an evaluation read that was killed: it is done again, and reads that again."""
        reads = self.reads()
        if (EVALUATION, "test") not in reads:
            return reads
        first = reads.index((EVALUATION, "test"))
        return reads[:first] + [(phase, split) for phase, split in reads[first:] if split == "test"]

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.log.values if event["kind"] == kind]

    def losses(self) -> list[str]:
        """What is wrong with the log: for each of its losses, a phase as in `logged_reads`."""
        losses = [f"a damaged line of {self.events.name}"] * bool(self.log.damaged)
        for file in [self.report, *Checkpoints(self.train).manifests()]:
            with suppress(DamagedFile):  # it knows nothing then
                if read_json(file).get("log", "") not in ("", *self.log.checks):
                    losses.append(f"a line of {self.events.name} that is lost, as {file.name} tells")
        return losses


def _hash(content: str | Mapping[str, Any]) -> str:
    return hashlib.sha256(content.encode()).hexdigest() if isinstance(content, str) else digest(content)


def _holds(path: Path, sha256: str) -> bool:
    """Whether a file has an undamaged content of that `_hash`."""
    try:
        return _hash_of(path) == sha256
    except DamagedFile:
        return False


def _hash_of(path: Path, *, may_be_unsigned: bool = False) -> str | None:
    """`_hash` of a file's content: None if it is missing, and "" for a run file without a checksum if that may be."""
    if not path.exists():
        return None
    if path.suffix == ".json":
        return digest(read_json(path))
    text, signed = read_signed(path)
    return _hash(text) if signed or not may_be_unsigned else ""


def free_folder(parent: Path, stem: str) -> Path:
    """Make the first of the folders `stem`, `stem-2`, `stem-3`… that does not exist in `parent`, for this process."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("there are infinitely many names")


def take_over(run: Path, out: Path) -> None:
    """Copy a run folder into `out`, the run file last, without what is there already."""
    for item in sorted(run.iterdir(), key=lambda item: item.name == "spec.yaml"):
        if item.name.startswith(".") or (out / item.name).exists():
            continue
        if item.is_dir():
            copy_folder(item, out / item.name)
        else:
            with whole_file(out / item.name) as temporary:
                shutil.copyfile(item, temporary)


@contextmanager
def run_folder(out: Path | None, stem: str) -> Iterator[Path]:
    """`out`, or a `free_folder` in runs/, which is removed again if it stays empty, as where a run file is refused."""
    folder = out or free_folder(Path("runs"), stem)
    try:
        yield folder
    finally:
        if out is None and is_empty(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # if it holds nothing else


def read_spec(path: Path) -> Spec:
    """The run file of a run folder; ValueError if the folder is none."""
    file = path / "spec.yaml"
    if not file.is_file():
        inside = sorted(run.parent.name for run in path.glob("*/spec.yaml"))
        if inside:
            raise ValueError(f"{path} holds several runs: choose one of {', '.join(inside)}")
        raise ValueError(f"{path} is no run folder: it holds no spec.yaml")
    return parse_spec(read_signed(file)[0], str(file))


def logged_reads(events: Path, losses: Iterable[str] = ()) -> list[tuple[str, Split]]:
    """The (phase, split) of each read in the event log of a run.

    A round of training that follows an evaluation on test tasks, as where a finished run is resumed with a larger
    budget, counts as a read of "test" by training: the result may have led to it. So do lines that are damaged or lost,
    since nobody knows what they said.

    Args:
        losses: phases for lines that are damaged or lost; by default, one if there are damaged lines.
    """
    logged, _, damaged = read_lines(events)
    losses = [*losses] or [f"a damaged line of {events.name}"] * bool(damaged)
    reads: list[tuple[str, Split]] = []
    for event in logged:
        if event["kind"] == "read":
            reads.append((event["phase"], event["split"]))
        elif event["kind"] == "train" and (EVALUATION, "test") in reads:
            reads.append(("training after its evaluation", "test"))
        elif event["kind"] == "damaged":
            losses.append(f"a damaged line of {events.name}")
    return list(dict.fromkeys([*reads, *((loss, "test") for loss in losses)]))
