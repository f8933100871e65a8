"""`kshot doctor`: what is damaged in a run folder, and what can be saved. Nothing is written or deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kshot.app.folder import RunFolder, read_spec
from kshot.app.screen import Screen
from kshot.app.spec import Spec
from kshot.deciding.decisions import Round, best_round
from kshot.evaluation.target import Target
from kshot.files import PART, DamagedFile, owner_of, read_json, sha256_of
from kshot.training.checkpoint import Checkpoints, load_state


class Finding(NamedTuple):
    """What is known of a file or checkpoint; `fault` is empty if it is undamaged."""

    name: str
    about: str
    fault: str = ""


class Diagnosis(NamedTuple):
    """The findings on a run folder or a state, and sentences on what can be done with it."""

    findings: list[Finding]
    advice: list[str]

    @property
    def damaged(self) -> bool:
        return any(finding.fault for finding in self.findings)


def diagnose(path: Path) -> Diagnosis:
    """Read everything in a run folder, or a state of `kshot adapt`, and compare it with its checksums.

    Raises:
        ValueError: there is no such path, or the folder holds no run.

    Example:
        >>> import tempfile
        >>> from kshot.training.checkpoint import save_state
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_state(path, {}, {"run": "glyphs"})
        >>> diagnose(path).damaged
        False
    """
    if path.is_file():
        finding = _read(path.name, lambda: f"a state of the run {load_state(path)[1].get('run')!r}", path)
        return Diagnosis([finding], ["Adapt again to replace it."] if finding.fault else [])
    folder = RunFolder(path)
    if not any(each.exists() for each in (folder.spec, folder.events, folder.train)):
        parts = sorted(part.parent for part in path.glob("*/spec.yaml"))
        if not parts:
            raise ValueError(f"{path} is no run folder: it holds no spec.yaml")
        return _joined({part.name: diagnose(part) for part in parts})
    spec: Spec | None = None

    def read_run_file() -> str:
        nonlocal spec
        spec = read_spec(path)
        folder.check_file(folder.spec)
        return f"run file of {spec.name!r}"

    findings = [_read("spec.yaml", read_run_file, path)]
    trained = dict(Checkpoints(folder.train).examine())
    rounds = any(isinstance(found, dict) and found.get("rounds") for found in trained.values())
    findings += [*_values(folder, needed=rounds), _log(folder)]
    for part in (folder.pretrain, folder.pretrain_baselines):
        findings += [_checkpoint(path, each, found) for each, found in Checkpoints(part).examine()]
    findings += [_checkpoint(path, each, found) for each, found in trained.items()]
    findings += _report(folder)
    damaged = {finding.name for finding in findings if finding.fault}
    return Diagnosis(findings, list(_advice(folder, spec, trained, damaged)))


def _read(name: str, read: Callable[[], str], path: Path) -> Finding:
    try:
        return Finding(name, read())
    except ValueError as error:  # DamagedFile, or a run file that is refused
        return Finding(name, "", str(error).replace(f"{path}/", ""))


def _values(folder: RunFolder, needed: bool) -> Iterator[Finding]:
    """The JSON files by which a learner is built and predicts."""
    about = {
        folder.shapes: "shapes of one example",
        folder.preprocessor: "the preprocessor of the files",
        folder.rejection: "the threshold for out-of-scope examples",
    }
    for path, what in about.items():
        if path.exists() or path.name in folder.known_files() or (needed and path == folder.shapes):
            yield _read(path.name, partial(_described, folder, path, what), folder.path)


def _described(folder: RunFolder, path: Path, what: str) -> str:
    read_json(path)
    if path != folder.rejection:
        folder.check_file(path)
    return what


def _log(folder: RunFolder) -> Finding:
    numbers = ", ".join(map(str, folder.log.damaged[:5])) + (" …" if len(folder.log.damaged) > 5 else "")
    what = f"damaged lines: {numbers}" if numbers else "; ".join(folder.losses())
    fault = f"{what}; a damaged line counts as a read of the test tasks by training"
    return Finding(folder.events.name, f"{len(folder.log.values)} events", fault if what else "")


def _checkpoint(run: Path, folder: Path, found: dict[str, Any] | DamagedFile) -> Finding:
    name = str(folder.relative_to(run))
    if isinstance(found, DamagedFile):
        return Finding(name, "", str(found).replace(f"{run}/", ""))
    return Finding(name, f"step {found['step']}" if "step" in found else "complete")


def _report(folder: RunFolder) -> Iterator[Finding]:
    if not folder.report.exists():
        return
    try:
        files = read_json(folder.report).get("files") or {}
    except DamagedFile as error:
        yield Finding(folder.report.name, "", str(error))
        return
    yield Finding(folder.report.name, "the report")
    for name, expected in files.items():
        try:
            fault = "" if sha256_of(folder.path / name) == expected else "is not the file that the report was made with"
        except DamagedFile as error:
            fault = str(error)
        yield Finding(name, "a table of the report", fault)


Trained = dict[Path, dict[str, Any] | DamagedFile]
"""Folder of a checkpoint of the training to its metadata, or to what is wrong with it; the latest first."""


def _advice(folder: RunFolder, spec: Spec | None, trained: Trained, damaged: set[str]) -> Iterator[str]:
    """Sentences on what can be done with a run."""
    path = folder.path
    if owner := owner_of(path):
        yield f"{path} is being written by {owner}: what it writes at this moment can look damaged."
    elif left := [*path.rglob(f".*{PART}")]:
        yield (
            f"A killed process left {len(left)} unfinished files, such as {left[0].relative_to(path)}: they can be "
            "deleted; those of checkpoints go when the run is resumed."
        )
    if spec is None:
        yield "Without its run file the run cannot be opened: copy the file that you started it from to spec.yaml."
        return
    yield from _advice_on_training(folder, spec, trained)
    if damaged & {folder.shapes.name, folder.preprocessor.name}:
        yield "Resuming writes shapes.json and encoding.json again, if the data are where the run file says."
    if damaged & {folder.report.name, folder.tasks.name} and any(isinstance(found, dict) for found in trained.values()):
        yield f"`kshot evaluate {path} --out DIR` makes the report again, in another folder."


def _advice_on_training(folder: RunFolder, spec: Spec, trained: Trained) -> Iterator[str]:
    resume = f"kshot run {folder.spec} --out {folder.path} --resume"
    latest = next(((each, meta) for each, meta in trained.items() if isinstance(meta, dict)), None)
    if latest is None:
        kept = any(isinstance(found, dict) for _, found in Checkpoints(folder.pretrain).examine())
        start = "from the pretrained model" if kept else "from the start"
        first = f"delete {folder.train}, and " if trained else ""
        yield f"No step of the training can be read: {first}`{resume}` trains {start}."
        return
    checkpoint, meta = latest
    best = best_round([Round.from_json(entry) for entry in meta.get("rounds", [])], Target.parse(spec.target))
    if best is not None and isinstance(trained.get(folder.train / best.checkpoint), dict):
        yield f"The best round, {best.number}, is undamaged."
    elif best is not None:
        yield (
            f"The best round, {best.number}, is damaged: evaluate, adapt and predict refuse it, until a run with more "
            "rounds finds a better one."
        )
    yield f"`{resume}` goes on from {checkpoint.name}."


def _joined(parts: dict[str, Diagnosis]) -> Diagnosis:
    """The diagnoses of the runs of a folder, as of several seeds."""
    findings = [each._replace(name=f"{name}/{each.name}") for name, part in parts.items() for each in part.findings]
    return Diagnosis(findings, [f"{name}: {each}" for name, part in parts.items() for each in part.advice])


def doctor_run(path: Path, screen: Screen) -> bool:
    """Print the diagnosis of a path, and return whether anything is damaged."""
    from rich.markup import escape
    from rich.table import Column, Table

    diagnosis = diagnose(path)
    table = Table("", Column("file", overflow="fold"), Column("", overflow="fold"), box=None)
    for finding in diagnosis.findings:
        mark = "[red]damaged[/]" if finding.fault else "[green]ok[/]"
        table.add_row(mark, escape(finding.name), escape(finding.fault or finding.about))
    screen.print(table)
    for sentence in diagnosis.advice:
        screen.print(escape(sentence), highlight=False, soft_wrap=True)
    return diagnosis.damaged
