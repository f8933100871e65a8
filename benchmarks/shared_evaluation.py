"""Speed of the final evaluation of a run by several processes, against one process with one thread and with all.

    python benchmarks/shared_evaluation.py [--tasks 200] [--rounds 2]

A Conv4 is trained on 5-way 1-shot glyphs for a few steps by MAML, then `kshot run --resume` repeats its final
evaluation: the tuning of the baselines, and the test tasks of the learner and of the baselines. Each cell is a program
of its own, and all cells are run once in each round, so that the machine's other load affects all. The time is what
the report states for the process, without the start of Python and the imports; of the rounds the table has the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUN_FILE = """
name: shared-evaluation
source: {kind: glyphs, ways: 5, shots: 1, queries: 15}
model: {kind: conv4, channels: 16}
learner: {kind: maml, inner_lr: 0.4}
pretrain: {steps: 20, batch: 32}
train: {steps_per_round: 4, tasks_per_step: 4}
target: accuracy >= 0.99
budget: {rounds: 1}
evaluate: {num_val_tasks: 20, num_test_tasks: TASKS, shots: []}
baselines: {names: [fine_tune, centroid], inner_lrs: [0.01], steps: [10], num_val_tasks: 10, num_test_tasks: TASKS}
"""


def seconds(folder: Path, processes: int, threads: int) -> float:
    """The seconds of a run, which is trained only if that is not done."""
    run = folder / "run"
    words = ["run", str(folder / "run.yaml"), "--out", str(run), *(["--resume"] if run.exists() else [])]
    words += ["--processes", str(processes)] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, "-m", "kshot.app", *words], check=False, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "KSHOT_EXPERIENCE": "sqlite://"},
    )  # fmt: skip
    if done.returncode not in (0, 1):  # 1 for a target that is missed
        raise RuntimeError(done.stdout + done.stderr)
    return float(json.loads((run / "report.json").read_text())["timing"]["this_process_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200, help="test tasks")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    cells: dict[tuple[int, int], list[float]] = {(1, 1): [], (1, cores): [], (cores, 1): []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "run.yaml").write_text(RUN_FILE.replace("TASKS", str(options.tasks)))
        seconds(folder, 1, cores)  # trains it
        for _ in range(options.rounds):
            for (processes, threads), times in cells.items():
                times.append(seconds(folder, processes, threads))
    print("processes  threads   seconds   range          x one thread")
    slowest = statistics.median(cells[1, 1])
    for (processes, threads), times in cells.items():
        middle, spread = statistics.median(times), f"{min(times):.1f} to {max(times):.1f}"
        print(f"{processes:9}{threads:9}{middle:10.1f}   {spread:12}{slowest / middle:10.2f}")


if __name__ == "__main__":
    main()
