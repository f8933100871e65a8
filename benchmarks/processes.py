"""Speed of meta-training by several processes, against one process with one thread and with all.

    python benchmarks/processes.py [--channels 64] [--tasks 8] [--steps 12] [--rounds 3]

MAML of one inner step on 5-way 1-shot glyphs with a Conv4, 15 queries, `kshot.fit`. Each cell is a program of its own,
and all cells are run once in each round, so that the machine's other load affects all. A time is the median over the
steps of a program after the first four; of the rounds the table has the median and the range.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

import kshot

WARM = 4
MODES = ("loop", "vmap", "traced")


def worker(options: argparse.Namespace) -> None:
    """Time the steps of one program, and write the median milliseconds."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    tasks = kshot.sources.glyphs(ways=5, shots=1, queries=15)
    learner = kshot.maml(kshot.models.conv4(1, 5, channels=options.channels), inner_lr=0.4)
    ends: list[float] = []
    kshot.fit(
        learner, tasks, steps=WARM + options.steps, tasks_per_step=options.tasks, mode=options.mode,
        observe=lambda progress: ends.append(time.perf_counter()),
    )  # fmt: skip
    times = [after - before for before, after in zip(ends[WARM - 1 :], ends[WARM:])]
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(options.worker).write_text(str(1e3 * statistics.median(times)))
    if dist.is_initialized():
        dist.destroy_process_group()


def milliseconds(options: argparse.Namespace, processes: int, threads: int, mode: str) -> float:
    """The median time of a step of a program."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ms"
        words = [__file__, f"--worker={out}", f"--mode={mode}", f"--tasks={options.tasks}", f"--steps={options.steps}"]
        words.append(f"--channels={options.channels}")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, "-W", "ignore", *(launch if processes > 1 else []), *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        return float(out.read_text())


def main() -> None:
    """Run all cells in each round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=8, help="tasks per step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", default="loop", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    cores = os.cpu_count() or 1
    cells = [(processes, threads, mode) for processes, threads in ((1, 1), (1, cores), (cores, 1)) for mode in MODES]
    times: dict[tuple[int, int, str], list[float]] = {cell: [] for cell in cells}
    for _ in range(options.rounds):
        for cell in cells:
            times[cell].append(milliseconds(options, *cell))
    print("processes  threads  mode      ms a step   range            x one thread, loop")
    slowest = statistics.median(times[1, 1, "loop"])
    for (processes, threads, mode), found in times.items():
        middle = statistics.median(found)
        spread = f"{min(found):.0f} to {max(found):.0f}"
        print(f"{processes:9}{threads:9}  {mode:8}{middle:11.0f}   {spread:15}{slowest / middle:9.2f}")
    alone = min(statistics.median(found) for (processes, _, _), found in times.items() if processes == 1)
    together = min(statistics.median(found) for (processes, _, _), found in times.items() if processes > 1)
    print(f"{cores} processes, best mode: {alone / together:.2f} x the best of one process")


if __name__ == "__main__":
    main()
