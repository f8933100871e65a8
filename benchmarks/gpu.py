"""Measurements on a GPU, each of which prints rows for RESULTS.md; `benchmarks/gpu.sh` has them all.

    python benchmarks/gpu.py omniglot FOLDER [--device cuda] [--minutes 1.5] [--set KEY=VALUE ...]
    python benchmarks/gpu.py largest [--device cuda] [--most 1024] [--size 84]
    python benchmarks/gpu.py precisions [--device cuda] [--tasks 32] [--size 84]

omniglot: the time until 98 % of the queries of 5-way 1-shot validation tasks are right, with pretraining, by the recipe
    omniglot-quick in FOLDER, and the figure of the test.
largest: the largest power of two of tasks whose second-order meta-gradient fits at once: MAML of five steps, Conv4-64,
    5-way 1-shot, 15 queries, colour images; and the tasks that kshot would take at once of twice as many.
precisions: the time and memory of such a step, of 32 tasks, in float32, bfloat16 and float16.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, get_args

import torch
from peers import episodes

import kshot
from kshot.inner.precision import Precision
from kshot.training.step import MetaGradient
from kshot.types import to

SETTINGS = "target=accuracy >= 0.98", "source.ways=5", "source.queries=15", "evaluate.num_test_tasks=600"


def name_of(device: str) -> str:
    return "CPU" if device == "cpu" else torch.cuda.get_device_name(device)


def omniglot(options: argparse.Namespace) -> str:
    """A row: the recipe, its seconds to the target, and its test."""
    settings = [*SETTINGS, f"device={options.device}", f"budget.minutes={options.minutes}", "baselines.names=[]"]
    report = kshot.run("omniglot-quick", options.folder, overrides=[*settings, *options.set])
    timing, test = report["timing"], report["test"]["accuracy"]
    seconds = timing["pretrain_seconds"] + timing["seconds"]
    reached = f"{seconds:.0f} s" if report["outcome"] == "TARGET_MET" else f"not in {seconds:.0f} s"
    tested = f"{100 * test['mean']:.2f} ± {100 * test['ci95']:.2f} %"
    return f"| Omniglot 5-way 1-shot to 98 % | {name_of(options.device)} | {reached} | {tested} |"


def step(options: argparse.Namespace, count: int, **settings: Any) -> MetaGradient:
    """Take a second-order step of Conv4-64 over so many tasks."""
    torch.manual_seed(0)
    model = kshot.models.conv4(3, 5, size=options.size)
    gradient = MetaGradient(kshot.maml(model, inner_lr=0.01, steps=5).to(options.device), "vmap", **settings)
    gradient(to(episodes(3, options.size, options.size, count=count), options.device))
    if options.device != "cpu":
        torch.cuda.synchronize()
    return gradient


def measured(options: argparse.Namespace, count: int, **settings: Any) -> tuple[float, float]:
    """The seconds and GiB of a step."""
    step(options, count, **settings)  # which chooses algorithms
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step(options, count, **settings)
    seconds = time.perf_counter() - started
    return seconds, float("nan") if options.device == "cpu" else torch.cuda.max_memory_allocated() / 2**30


def precisions(options: argparse.Namespace) -> str:
    """A row for each precision: the time and memory of a step."""
    rows = []
    for precision in get_args(Precision):
        seconds, peak = measured(options, options.tasks, precision=precision)
        what = f"{options.tasks} tasks of {options.size} px in {precision}"
        rows.append(f"| {what} | {name_of(options.device)} | {1e3 * seconds:.0f} ms, {peak:.1f} GiB | |")
    return "\n".join(rows)


def largest(options: argparse.Namespace) -> str:
    """A row: the largest number of tasks, its time and memory, and what kshot takes at once of twice as many."""
    device, fits, seconds, peak = options.device, 0, float("nan"), float("nan")
    count = 1
    while count <= options.most:
        try:
            seconds, peak = measured(options, count, chunk=count)
        except (MemoryError, torch.OutOfMemoryError):
            break
        fits = count
        count *= 2
    chunk = step(options, 2 * fits).plan.chunk
    return (
        f"| {fits} tasks of {options.size} px at once | {name_of(device)} | {1e3 * seconds:.0f} ms, {peak:.1f} GiB "
        f"| of {2 * fits}, kshot takes {chunk or 'all'} at once |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for function in (omniglot, largest, precisions):
        part = parts.add_parser(function.__name__)
        part.set_defaults(function=function)
        part.add_argument("--device", default="cuda")
        if function is omniglot:
            part.add_argument("folder", type=Path)
            part.add_argument("--minutes", type=float, default=1.5)
            part.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of the run file")
        else:
            part.add_argument("--size", type=int, default=84)
        if function is largest:
            part.add_argument("--most", type=int, default=1024)
        if function is precisions:
            part.add_argument("--tasks", type=int, default=32)
    options = parser.parse_args()
    print(options.function(options))


if __name__ == "__main__":
    main()
