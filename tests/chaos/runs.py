"""Tiny runs in child processes of one that has imported everything, and what must be equal after a resume."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from chaos.layer import Disk

from kshot.app import cli, environment, run
from kshot.app.folder import RunFolder
from kshot.app.trained import load
from kshot.evaluation.report import report as reports
from kshot.training.checkpoint import Checkpoints

SECONDS = 60  # after which a child counts as stuck
TRACEBACK = 70

SINE = """
name: sine
source: {kind: sinusoids, shots: 3, queries: 3}
model: {kind: mlp, hidden: [4]}
learner: {kind: maml, inner_lr: 0.01, steps: 1}
pretrain: {steps: 2, batch: 8}
train: {steps_per_round: 2, tasks_per_step: 2, outer_lr: 0.01, checkpoint_seconds: 1.0e-9}
target: mse <= 0.0001
budget: {rounds: 2}
evaluate: {num_val_tasks: 3, num_test_tasks: 4, shots: []}
baselines: {names: [fine_tune], inner_lrs: [0.01], steps: [1], budget: 0}
"""

TABLE = """
name: table
source: {kind: table, path: shops.csv, group: shop, target: sold, shots: 3, queries: 3}
model: {kind: mlp, hidden: [4]}
learner: {kind: maml, inner_lr: 0.01, steps: 1}
train: {steps_per_round: 2, tasks_per_step: 2, outer_lr: 0.01, checkpoint_seconds: 1.0e-9}
target: mse <= 0.0001
budget: {rounds: 3}
evaluate: {num_val_tasks: 3, num_test_tasks: 4, shots: []}
baselines: {names: []}
"""

PARTS = """
name: parts
source: {kind: table, path: shops.csv, group: shop, target: sold, shots: 3, queries: 3}
model: {kind: mlp, hidden: [4]}
learner: {kind: maml, inner_lr: 0.01, steps: 1}
train: {steps_per_round: 1, tasks_per_step: 2, outer_lr: 0.01, checkpoint_seconds: 1.0e-9}
target: mse <= 0.0001
budget: {rounds: 2}
evaluate: {num_val_tasks: 3, num_test_tasks: 4, shots: [], FOLDS}
baselines: {names: []}
"""

POLICY = """
name: policy
source: {kind: sinusoids, shots: 3, queries: 3}
model: {kind: mlp, hidden: [4]}
learner: {kind: maml, inner_lr: 0.01, steps: 1}
train: {steps_per_round: 1, tasks_per_step: 2, outer_lr: 0.01, checkpoint_seconds: 1.0e-9}
target: mse <= 0.0001
budget: {rounds: 7}
evaluate: {num_val_tasks: 3, num_test_tasks: 4, shots: []}
baselines: {names: []}
policy:
  kind: extrapolation
  patience: 2
  level: 0.99
  changes: 0
  actions: [{learner.order: 1, source.shots: 5}, {learner.steps: 3}, {outer_lr: 0.001}]
"""


class Case(NamedTuple):
    """A run file, and further options of `kshot run`."""

    text: str
    options: tuple[str, ...] = ()


CASES = {
    "one run": Case(SINE),
    "a table": Case(TABLE),
    "a policy": Case(POLICY),
    "seeds": Case(PARTS.replace(", FOLDS", ""), ("--seeds", "0,1")),
    "folds": Case(PARTS.replace("FOLDS", "folds: 3")),
}

_VOLATILE = {
    "time", "seconds", "timing", "environment", "command", "cost", "files", "processor_seconds", "started", "log",
    "reason", "tried", "adapt_ms", "predict_ms",
}  # fmt: skip


def prepare() -> None:
    """Make the process a server of children: one thread, no drawing, which no figure depends on, and no step before a
    checkpoint is written, so that the changes of files have an order."""
    torch.set_num_threads(1)
    in_background = Checkpoints.save_in_background

    def save_and_wait(self: Checkpoints, *args: Any) -> None:
        in_background(self, *args)
        self.wait()

    Checkpoints.save_in_background = save_and_wait  # type: ignore[method-assign]
    reports._draw = lambda figures: ({}, [])
    run.make_figures = lambda *args: {}
    run.run_charts = SimpleNamespace(rounds_chart=lambda *args, **kwargs: None, learning_curve=lambda *args: None)
    environment._commit = lambda: None
    os.environ["COLUMNS"] = "300"
    os.environ["KSHOT_EXPERIENCE"] = "sqlite://"
    with TemporaryDirectory() as scratch:  # imports what runs import when they need it, and warms up torch
        file, out = write_inputs(Path(scratch) / "inputs", SINE), Path(scratch) / "run"
        with redirect_stdout(io.StringIO()), suppress(SystemExit):
            command(*run_words(file, out, resume=False))
        load(out)
    for name in ("polars", "kshot.data.tables.table", "kshot.sources.table"):  # polars has threads once it reads a file
        import_module(name)


def write_inputs(folder: Path, text: str) -> Path:
    """Write a run file and the data of `TABLE` into a folder, and return the run file."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = ["shop,day,price,kind,sold"]
    for shop, day in itertools.product(range(24), range(8)):
        price, kind = random.random(), "ab"[int(random.integers(2))]
        lines.append(f"s{shop},{day},{price:.3f},{kind},{shop * price + day + (kind == 'a'):.3f}")
    (folder / "shops.csv").write_text("\n".join(lines) + "\n")
    (folder / "support.csv").write_text(
        "\n".join([lines[0].split(",", 1)[1], *(x.split(",", 1)[1] for x in lines[1:7])])
    )
    file = folder / "run.yaml"
    file.write_text(text)
    return file


def in_child(work: Callable[[], object], log: Path) -> int:
    """Do something in a child process, and return its exit code, or minus the signal that killed it."""
    return ended(started(work, log))


def ended(pid: int) -> int:
    """Wait for a child, and return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def started(work: Callable[[], object], log: Path) -> int:
    """Begin to do something in a child process, whose output goes to a file; returns the number of the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(SECONDS)
        code = TRACEBACK
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            work()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def command(*words: object, disk: Disk | None = None) -> None:
    """Call the command line in this process, with a disk that ends if given."""
    sys.argv = ["kshot", *map(str, words)]
    if disk is not None:
        disk.install()
    cli.main()


def run_words(file: Path, out: Path, *, resume: bool, options: Sequence[str] = ()) -> list[object]:
    return ["run", file, "--out", out, *options, *(["--resume"] if resume else [])]


def last_line(log: Path) -> str:
    """What a child said last."""
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1]


def outcome(out: Path) -> dict[str, Any]:
    """All that matters of a finished run, or of one of several parts: the outcome of each, and the common figures."""
    parts = sorted(spec.parent for spec in out.glob("*/spec.yaml"))
    found: dict[str, Any] = {part.name: outcome_of_one(part) for part in parts} if parts else outcome_of_one(out)
    folder = RunFolder(out)
    found["report"] = _still(json.loads(folder.report.read_text()))
    if folder.tasks.exists():
        with folder.tasks.open(newline="") as table:
            found["tasks"] = list(csv.reader(table))
    found["left"] = sorted(str(path.relative_to(out)) for path in out.rglob("*.part"))
    return found


def outcome_of_one(out: Path) -> dict[str, Any]:
    """The bytes of the weights and states of one run, its settings, and its events."""
    folder = RunFolder(out)
    found: dict[str, Any] = {}
    for parent in (folder.pretrain, folder.train):
        latest = Checkpoints(parent).latest() if parent.exists() else None
        if latest is not None:
            found |= {f"{parent.name}/{file.name}": file.read_bytes() for file in latest.glob("*.safetensors")}
            found[f"{parent.name}/meta"] = _still(json.loads((latest / "meta.json").read_text()))
    rounds = found["train/meta"]["rounds"]
    best = min(rounds, key=lambda entry: entry["val"]["mse"]["mean"])["checkpoint"]
    found["best"] = (folder.train / best / "weights.safetensors").read_bytes()
    found["shapes"] = _still(json.loads(folder.shapes.read_text()))
    found["encoding"] = _still(json.loads(folder.preprocessor.read_text())) if folder.preprocessor.exists() else None
    found["spec"] = re.sub("#.*\n", "", folder.spec.read_text())
    events = [json.dumps(_still(json.loads(line)), sort_keys=True) for line in _whole_lines(folder.events)]
    found["events"] = sorted(set(events))  # steps after the last checkpoint are taken, and logged, again
    return found


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two outcomes differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found for key in {**one, **other} for found in differences(one.get(key), other.get(key), f"{path}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [found for i, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{path}/{i}")]
    return [f"{path}: {one!r:.200} or {other!r:.200}"] if repr(one) != repr(other) else []  # so that nan equals nan


def _whole_lines(path: Path) -> list[str]:
    """The lines that are JSON, without those that tell of kills."""
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            kind = json.loads(line)["kind"]
        except ValueError:
            continue
        if kind not in ("resumed", "train", "pretrain"):  # the means over steps depend on where a process began
            lines.append(line.decode())
    return lines


def _still(value: Any) -> Any:
    """A value without times, checksums and what else differs between two equal runs."""
    if isinstance(value, dict):
        return {
            key: _still(entry)
            for key, entry in value.items()
            if key not in _VOLATILE
            and not key.endswith(("_ms", "_seconds", "sha256"))
            and key not in ("check", "after")
        }
    return [_still(entry) for entry in value] if isinstance(value, list) else value
