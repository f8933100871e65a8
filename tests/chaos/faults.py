"""Faults that can be planted in kshot, each of which a harness must find."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from chaos import corruptions, full_disk, kills, races
from chaos.runs import command, in_child, last_line, run_words

from kshot import files
from kshot.app import folder, run, trained
from kshot.data.images import cache
from kshot.deciding import decisions
from kshot.training import checkpoint

fit = import_module("kshot.training.fit")  # the package has a function of that name


class Made(NamedTuple):
    """What the checks of faults share, made without a fault."""

    scratch: Path
    whole: kills.Reference
    runs: list[corruptions.Subject]


Check = Callable[[Made, Path], object]
"""What is wrong with a kshot that has a fault, if anything: (shared things, empty folder)."""


def killed(made: Made, place: Path, *, event: str, when: str = "torn") -> str:
    """Kill a run at the first event that matches a pattern, and resume it."""
    return kills.kill_and_resume(place / "run", made.whole, [(event, when)])[1]


def corrupted(made: Made, place: Path, *, names: str, count: int = 25) -> list[str]:
    """Damage files of some names."""
    return corruptions.damage_all(made.runs, count, random.Random(0), place, names=names).faults


def filled(made: Made, place: Path) -> str:
    """Let a run make so few files that it fails within its first checkpoint."""
    limits = range(6, 12)
    faults = (full_disk.fill_and_free(place / f"{most}", made.whole, {"num_files": most}) for most in limits)
    return next(filter(None, faults), "")


def raced(made: Made, place: Path) -> int:
    """Open a fresh cache by several processes."""
    return races.check_caches(3, vandal=False)


def started_twice(made: Made, place: Path) -> str:
    """Start a run in a folder that another process holds."""
    out = place / "run"
    with files.owned(out):
        (out / files.LOCK).touch()
        code = in_child(lambda: command(*run_words(made.whole.file, out, resume=False)), place / "log")
    return "" if code == 2 and "is being written by" in last_line(place / "log") else f"exit code {code}"


def under_another_clock(made: Made, place: Path) -> list[str]:
    """Kill and resume runs while the clock jumps."""
    return races.check_clocks(2, made.whole)


def _plant_manifest_first() -> None:
    def write(self: checkpoint.Snapshot, place: Path) -> None:
        place.mkdir(parents=True)
        number = 1 + max((number for number, _ in checkpoint._numbered(place.parent)), default=0)
        own = {"number": number, "name": place.name, "files": {}}
        files.write_json(place / checkpoint.META, self.meta | {"checkpoint": own})
        for name, tensors in self.tensors.items():
            checkpoint.save_file(tensors, place / name)

    checkpoint.Snapshot.write = write


def _plant_lines_that_run_on() -> None:
    def append(path: Path, values: dict[str, Any], after: str = "") -> str:
        values = {**values, files.AFTER: after}
        check = files.digest(values)[:16]
        with path.open("ab") as file:
            file.write(json.dumps({**values, files.LINE_CHECKSUM: check}).encode() + b"\n")
        return check

    decisions.append_line = append


def _plant_leftovers_that_count() -> None:
    def is_empty(path: Path) -> bool:
        return not path.exists() or all(each.name in (files.LOCK, files.OWNER) for each in path.iterdir())

    run.is_empty = folder.is_empty = is_empty


def _plant_forgotten_optimizer() -> None:
    load = fit.load_checkpoint
    fit.load_checkpoint = lambda place, module, optimizer=None: load(place, module)


def _plant_unchecked_weights() -> None:
    checkpoint.read_manifest = lambda place: files.read_json(place / checkpoint.META)


def _plant_unchecked_values() -> None:
    def read(path: Path) -> dict[str, Any]:
        values: dict[str, Any] = files.parse_json(files._bytes(path), path)
        values.pop(files.CHECKSUM, None)
        return values

    for module in (checkpoint, folder, trained):
        module.read_json = read


def _plant_unchecked_states() -> None:
    trained.load_state = partial(_load_unchecked, trained.load_state)


def _load_unchecked(load: Callable[..., Any], path: Path) -> Any:
    digest, checkpoint._digest = checkpoint._digest, lambda tensors, meta: None  # type: ignore[assignment]
    text = path.read_bytes()
    try:
        path.write_bytes(text.replace(b"content_sha256", b"content_sha25x"))
        return load(path)
    finally:
        path.write_bytes(text)
        checkpoint._digest = digest


def _plant_unknown_files() -> None:
    folder.RunFolder.check_files = lambda self: None  # type: ignore[method-assign]


def _plant_going_back() -> None:
    latest = checkpoint.Checkpoints.latest
    checkpoint.Checkpoints.latest = lambda self, **options: latest(self)  # type: ignore[method-assign]
    folder.RunFolder.check_rounds = lambda self, count: None  # type: ignore[method-assign]


def _plant_forgotten_lines() -> None:
    folder.RunFolder.losses = lambda self: []  # type: ignore[method-assign]


def _plant_torn_lines_that_count() -> None:
    read = files.read_lines

    def read_lines(path: Path) -> files.Lines:
        found = read(path)
        count = len([line for line in path.read_bytes().split(b"\n") if line]) if path.exists() else 0
        return found._replace(damaged=found.damaged or [1] * (count - len(found.values)))

    decisions.read_lines = folder.read_lines = read_lines


def _plant_order_by_time() -> None:
    numbered = checkpoint._numbered

    def by_time(parent: Path, damaged: bool = False) -> Iterator[tuple[int, Path]]:
        return iter([(path.stat().st_mtime_ns, path) for _, path in numbered(parent, damaged)])

    checkpoint._numbered = by_time


def _plant_errors_of_libraries() -> None:
    checkpoint._save = lambda tensors, path, meta=None: checkpoint.save_file(tensors, path, meta)


def _plant_checksums_before_pixels() -> None:
    def write(self: Any, images: dict[int, Any]) -> None:
        for row in images:
            self._files["checksums"].seek(4 * row)
            self._files["checksums"].write((1).to_bytes(4, "little"))
        if images:
            time.sleep(0.2)  # longer than others wait for the lock
        for row, image in images.items():
            self._files["pixels"].seek(row * image.nbytes)
            self._files["pixels"].write(image.tobytes())
        self._verified[list(images)] = True

    cache.DecodedImages._write = write  # type: ignore[method-assign]
    cache._checksum = lambda image: cache._CHECKSUM.type(1)


def _plant_no_lock() -> None:
    @contextlib.contextmanager
    def owned(place: Path) -> Iterator[None]:
        place.mkdir(parents=True, exist_ok=True)
        yield

    run.owned = owned


FAULTS: dict[str, tuple[Callable[[], None], Check]] = {
    "a manifest that is written first": (
        _plant_manifest_first, partial(killed, event="write .*round-0002.*optimizer", when="before"),
    ),
    "lines without a line feed before them": (_plant_lines_that_run_on, partial(killed, event="write events")),
    "torn lines that count as damaged": (_plant_torn_lines_that_count, partial(killed, event="write events")),
    "half files that make a folder full": (_plant_leftovers_that_count, partial(killed, event="write .*owner")),
    "an optimiser that is not restored": (
        _plant_forgotten_optimizer, partial(killed, event="rename .*train/round-0001", when="after"),
    ),
    "weights without a checksum": (_plant_unchecked_weights, partial(corrupted, names="weights.*")),
    "JSON without a checksum": (_plant_unchecked_values, partial(corrupted, names="report.json")),
    "states without a checksum": (_plant_unchecked_states, partial(corrupted, names="state.*")),
    "files that the log does not know": (_plant_unknown_files, partial(corrupted, names="spec.*|shapes.*")),
    "an older round in place of a damaged one": (_plant_going_back, partial(corrupted, names="meta.*|weights.*")),
    "lines that can be lost": (_plant_forgotten_lines, partial(corrupted, names="events.*")),
    "checkpoints in the order of their times": (_plant_order_by_time, under_another_clock),
    "errors of safetensors as they are": (_plant_errors_of_libraries, filled),
    "checksums before pixels": (_plant_checksums_before_pixels, raced),
    "a folder without an owner": (_plant_no_lock, started_twice),
}  # fmt: skip


QUICK = (
    "a manifest that is written first", "lines without a line feed before them", "half files that make a folder full",
    "a folder without an owner",
)  # fmt: skip


def unfound(made: Made, names: Sequence[str]) -> list[str]:
    """The faults of some names that no check finds; each is planted in a process of its own."""
    missed = []
    for number, name in enumerate(names):
        plant, check = FAULTS[name]
        place = made.scratch / f"fault-{number}"
        place.mkdir()
        log = place / "log-of-fault"

        def work(plant: Callable[[], None] = plant, check: Check = check, place: Path = place) -> None:
            plant()
            found = check(made, place)
            print(found)
            raise SystemExit(1 if found else 0)

        code = in_child(work, log)
        if code != 1:
            missed.append(f"{name}: ends with {code}, {last_line(log)[:300]}")
        shutil.rmtree(place)
    return missed
