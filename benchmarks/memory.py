"""Memory of inner steps, stored or recomputed, compared with the prediction; and the time cost of recomputation.

    python benchmarks/memory.py [--runs 5]

Conv4-64 with BatchNorm, one 5-way 5-shot task with 15 queries per class on 28×28 images, MAML, second order. Each
peak is the growth of resident memory over one step, in a separate process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import kshot
from kshot import Batch, Learner, Task
from kshot.inner.unrolling import recomputing
from kshot.training.memory import predict_peak
from kshot.types import stack, unstack

STEPS = 5, 10, 15
RECOMPUTE = {"stored": False, "recomputed": True}


def work(steps: int) -> tuple[Learner, Task]:
    def batch(examples: int) -> Batch:
        return Batch.of(torch.rand(5 * examples, 1, 28, 28), torch.arange(5).repeat(examples), ways=5)

    torch.manual_seed(0)
    return kshot.maml(kshot.models.conv4(1, 5), inner_lr=0.01, steps=steps), stack([Task(batch(5), batch(15))])


def step(learner: Learner, tasks: Task, recompute: bool) -> None:
    learner.zero_grad()
    with recomputing(recompute):
        learner(unstack(tasks)[0]).backward()


def predicted(learner: Learner, tasks: Task, recompute: bool) -> float:
    def loss(one, tasks):
        with recomputing(recompute):
            one(unstack(tasks)[0]).backward()

    return predict_peak(learner, tasks, loss) / 2**20


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def print_peak(steps: int, name: str) -> None:
    learner, tasks = work(steps)
    step(learner, tasks, RECOMPUTE[name])
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    step(learner, tasks, RECOMPUTE[name])
    print((status("VmHWM") - before) / 1024)


def peak(steps: int, name: str) -> float:
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # return freed memory at once
    command = [sys.executable, __file__, "--peak", str(steps), name]
    done = subprocess.run(command, env=os.environ | fixed, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("STEPS", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        return print_peak(int(arguments.peak[0]), arguments.peak[1])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, recompute in RECOMPUTE.items():
        peaks = [peak(steps, name) for steps in STEPS]
        predictions = [predicted(*work(steps), recompute) for steps in STEPS]
        growth, expected = ((values[-1] - values[0]) / (STEPS[-1] - STEPS[0]) for values in (peaks, predictions))
        pairs = ", ".join(f"{steps} steps {a:.0f} ({b:.0f})" for steps, a, b in zip(STEPS, peaks, predictions))
        print(f"{name:<11} peak MiB (predicted): {pairs}; an additional step {growth:.2f} ({expected:.2f})")
    for steps in STEPS[:1]:
        learner, tasks = work(steps)
        ratios = []
        for number in range(arguments.runs + 1):
            times = []
            for recompute in RECOMPUTE.values():
                started = time.perf_counter()
                step(learner, tasks, recompute)
                times.append(time.perf_counter() - started)
            if number:
                ratios.append(times[1] / times[0])
        print(f"{steps} steps: recomputing takes {statistics.median(ratios):.2f} × the time")
    return None


if __name__ == "__main__":
    main()
