"""Two measurements on a GPU, each of which prints a row for RESULTS.md; `benchmarks/gpu.sh` has them all.

    python benchmarks/gpu.py omniglot FOLDER [--device cuda] [--minutes 1.5] [--set KEY=VALUE ...]
    python benchmarks/gpu.py largest [--device cuda] [--most 1024] [--size 84]

omniglot: the time until 98 % of the queries of 5-way 1-shot validation tasks are right, with pretraining, by the recipe
    omniglot-quick in FOLDER, and the figure of the test.
largest: the largest power of two of tasks whose second-order meta-gradient fits at once: MAML of five steps, Conv4-64,
    5-way 1-shot, 15 queries, colour images; and the tasks that kshot would take at once of twice as many.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from peers import episodes

import kshot
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


def largest(options: argparse.Namespace) -> str:
    """A row: the largest number of tasks, its time and memory, and what kshot takes at once of twice as many."""
    device, fits, seconds, peak = options.device, 0, float("nan"), float("nan")
    make = partial(episodes, 3, options.size, options.size)

    def step(count: int, chunk: int | None) -> MetaGradient:
        torch.manual_seed(0)
        learner = kshot.maml(kshot.models.conv4(3, 5, size=options.size), inner_lr=0.01, steps=5).to(device)
        gradient = MetaGradient(learner, "vmap", chunk=chunk)
        gradient(to(make(count=count), device))
        if device != "cpu":
            torch.cuda.synchronize()
        return gradient

    count = 1
    while count <= options.most:
        try:
            step(count, count)  # which chooses algorithms
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            step(count, count)
        except (MemoryError, torch.OutOfMemoryError):
            break
        fits, seconds = count, time.perf_counter() - started
        peak = float("nan") if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30
        count *= 2
    chunk = step(2 * fits, None).plan.chunk
    return (
        f"| {fits} tasks of {options.size} px at once | {name_of(device)} | {1e3 * seconds:.0f} ms, {peak:.1f} GiB "
        f"| of {2 * fits}, kshot takes {chunk or 'all'} at once |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for function in (omniglot, largest):
        part = parts.add_parser(function.__name__)
        part.set_defaults(function=function)
        part.add_argument("--device", default="cuda")
        if function is omniglot:
            part.add_argument("folder", type=Path)
            part.add_argument("--minutes", type=float, default=1.5)
            part.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of the run file")
        else:
            part.add_argument("--most", type=int, default=1024)
            part.add_argument("--size", type=int, default=84)
    options = parser.parse_args()
    print(options.function(options))


if __name__ == "__main__":
    main()
