"""What inner steps cost in memory, kept or recomputed, what was predicted of it, and what recomputing costs in time.

    python benchmarks/memory.py [--runs 5]

Conv4-64 with BatchNorm, one 5-way 5-shot task with 15 queries a class on 28×28 images, MAML, second order. Each peak is
the growth of resident memory over one step, in a process of its own.
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
WAYS = {"kept": False, "recomputed": True}


def work(steps: int) -> tuple[Learner, Task]:
    def batch(each: int) -> Batch:
        return Batch.of(torch.rand(5 * each, 1, 28, 28), torch.arange(5).repeat(each), ways=5)

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


def print_peak(steps: int, way: str) -> None:
    learner, tasks = work(steps)
    step(learner, tasks, WAYS[way])
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step(learner, tasks, WAYS[way])
    print((status("VmHWM") - before) / 1024)


def peak(steps: int, way: str) -> float:
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed memory goes back at once
    command = [sys.executable, __file__, "--peak", str(steps), way]
    done = subprocess.run(command, env=os.environ | fixed, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("STEPS", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        return print_peak(int(arguments.peak[0]), arguments.peak[1])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for way, recompute in WAYS.items():
        peaks = [peak(steps, way) for steps in STEPS]
        told = [predicted(*work(steps), recompute) for steps in STEPS]
        growth, expected = ((values[-1] - values[0]) / (STEPS[-1] - STEPS[0]) for values in (peaks, told))
        pairs = ", ".join(f"{steps} steps {a:.0f} ({b:.0f})" for steps, a, b in zip(STEPS, peaks, told))
        print(f"{way:<11} peak MiB (predicted): {pairs}; a further step {growth:.2f} ({expected:.2f})")
    for steps in STEPS[:1]:
        learner, tasks = work(steps)
        ratios = []
        for number in range(arguments.runs + 1):
            times = []
            for recompute in WAYS.values():
                started = time.perf_counter()
                step(learner, tasks, recompute)
                times.append(time.perf_counter() - started)
            if number:
                ratios.append(times[1] / times[0])
        print(f"{steps} steps: recomputing takes {statistics.median(ratios):.2f} × the time")
    return None


if __name__ == "__main__":
    main()
