"""`kshot run --processes auto`: one process with all threads, or one for each core, whichever takes outer steps faster.

Each way is tried by a program of its own, `python -m kshot.app.process_count FILE RECIPE [PATH=VALUE ...]`, which takes
steps as the run will, without its pretraining, and writes how long one takes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.app.processes import EVENT, is_member
from kshot.files import read_lines

if TYPE_CHECKING:
    from kshot.app.spec import Spec

SECONDS, LEAST_STEPS = 10.0, 8
"""How long steps are taken in each way, and how many at least; the last half of them counts."""


def count_of(text: str) -> int | None:
    """The number of processes that a user asks for; None for "auto"."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--processes must be 1 or more, or auto, got {text}")
    return int(text)


def fastest_count(
    spec: Spec, recipe: str, overrides: Sequence[str], folder: Path, *, resume: bool, say: Callable[[str], None]
) -> int:
    """How many processes take the outer steps of a run fastest: one, or one for each core of this machine.

    Args:
        spec, recipe, overrides: the run file, and by which words it is read.
        folder: of the run; one that is resumed has as many as before, and a process of torchrun starts no others.

    Raises:
        ValueError: the run is not on a CPU.
    """
    from kshot.app.build import device_of

    if is_member():
        return 1
    if resume and (events := folder / "events.jsonl").exists():
        before = [event["count"] for event in read_lines(events)[0] if event["kind"] == EVENT]
        return int(before[-1]) if before else 1
    if (device := device_of(spec).type) != "cpu":
        raise ValueError(f"--processes auto measures processes of a CPU, and this run is on {device}: name a number")
    count = min(_cores(), spec.train.tasks_per_step)
    if count < 2:
        return 1
    alone, together = (_seconds_per_step(each, recipe, overrides) for each in (1, count))
    if alone is None or together is None:  # an error, which the run will meet, too, and say
        return 1
    say(f"an outer step takes {alone:.3g} s by one process, and {together:.3g} s by {count} processes of one thread")
    return count if together < alone else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds_per_step(processes: int, recipe: str, overrides: Sequence[str]) -> float | None:
    """The median time of an outer step; None if the program fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds"
        group = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(group if processes > 1 else []), "-m", __name__, str(out), recipe, *overrides]
        subprocess.run(command, check=False, capture_output=True)
        return float(out.read_text()) if out.exists() else None


def main(out: Path, recipe: str, overrides: list[str]) -> None:
    """Take steps of a run, and write the median time of the last half of them."""
    import torch.distributed as dist

    from kshot.app.build import build_learner, build_source, device_of, shapes_of
    from kshot.app.run import new_model
    from kshot.app.spec import load_spec
    from kshot.training.closed_form import fit_closed_form
    from kshot.training.fit import Settings, meta_training_loop

    if is_member():
        dist.init_process_group("gloo")
    spec = load_spec(recipe, overrides)
    source, train = build_source(spec), spec.train
    shapes = shapes_of(source)
    learner = build_learner(spec, new_model(spec, shapes, device_of(spec)), shapes)
    fit_closed_form(learner, source, after_training=False)
    settings = Settings(train.outer_lr, train.clip, "constant", 1, train.tasks_per_step, train.weight_decay)
    loop = meta_training_loop(learner, source, settings, mode=train.mode, precision=train.precision, seed=spec.seed)
    times = [started := time.monotonic()]
    loop.run(LEAST_STEPS, lambda progress: times.append(time.monotonic()))
    loop.run(sys.maxsize, lambda progress: times.append(time.monotonic()), started + SECONDS)
    steps = [after - before for before, after in pairwise(times)]
    if not is_member() or dist.get_rank() == 0:
        out.write_text(str(statistics.median(steps[len(steps) // 2 :])))
    if is_member():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
