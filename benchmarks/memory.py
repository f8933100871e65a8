"""Memory of inner steps, stored or recomputed, compared with the prediction; and that of many images with masks.

    python benchmarks/memory.py [--runs 5]
    OMP_NUM_THREADS=1 python benchmarks/memory.py --masks 4000

Conv4-64 with BatchNorm, one 5-way 5-shot task with 15 queries per class on 28×28 images, MAML, second order. Each
peak is the growth of resident memory over one step, in a separate process; and the time cost of recomputation.

`--masks N` makes N and 2N small images with masks, opens them at the default sizes, 84 px as pixels and 224 px as
feature maps of 112 channels and stride 16, and draws 100 tasks, each in a separate process: pixels first with an empty
cache, then from what is there. Peaks are those of memory that the system cannot take back, above that of the imports;
pages of files come on top, as far as memory is free.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import kshot
from kshot import Batch, Learner, Task
from kshot.data.images.encoder import ImageEncoder
from kshot.inner.unrolling import recomputing
from kshot.training.memory import predict_peak
from kshot.types import stack, unstack

STEPS = 5, 10, 15
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # return freed memory at once
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
    command = [sys.executable, __file__, "--peak", str(steps), name]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def make_masks(folder: Path, count: int) -> None:
    """Images of 32 pixels in 20 classes, each with a mask of its own."""
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.png", compress_level=1)
        mask = np.where(pixels[..., 0] > 99, 1 + number % 20, 0).astype(np.uint8)
        Image.fromarray(mask).save(folder / f"masks/{number}.png", compress_level=1)


def peak_of(call: Callable[[], object]) -> tuple[float, float]:
    """The growth of memory that the system cannot take back, at its peak during a call, in MiB; and seconds of CPU."""
    before, done, peaks = status("RssAnon"), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.005):
            peaks.append(status("RssAnon"))

    watcher, began = threading.Thread(target=watch), time.process_time()
    watcher.start()
    call()
    done.set()
    watcher.join()
    return (max(peaks) - before) / 1024, time.process_time() - began


def print_masks(folder: Path, features: str) -> None:
    options = {"split": {"ratio": [0.5, 0.25, 0.25]}, "shots": 1, "queries": 5}
    if features == "maps":
        torch.manual_seed(0)
        network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 112, 16, stride=16), nn.ReLU()), nn.Flatten())
        options["features"] = ImageEncoder.of(network, size=224, stride=16)

    def use() -> None:
        source = kshot.sources.masks(folder, **options)
        for number in range(100):
            source.task("train", number)

    print(*peak_of(use), status("VmHWM") / 1024)


def measure_masks(count: int) -> None:
    """Print the peaks for a number of images and for twice as many, and what 100,000 need at the same growth."""
    columns = (
        "inputs",
        "cache",
        "N, MiB",
        "2N, MiB",
        "bytes an image",
        "100,000, MiB",
        "2N with files and imports",
        "CPU",
    )
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    with tempfile.TemporaryDirectory() as scratch:
        for number in (count, 2 * count):
            make_masks(Path(scratch, str(number)), number)
        environment = os.environ | MALLOC | {"KSHOT_CACHE": str(Path(scratch, "cache"))}
        for features, cache in (("pixels", "empty"), ("pixels", "filled"), ("maps", "empty")):
            peaks, whole, seconds = [], 0.0, 0.0
            for number in (count, 2 * count):
                command = [sys.executable, __file__, "--open", str(Path(scratch, str(number))), features]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                peak, cpu, whole = map(float, done.stdout.split())
                peaks.append(peak)
                seconds += cpu
            growth = (peaks[1] - peaks[0]) / count
            expected = peaks[1] + growth * (100_000 - 2 * count)
            cells = [f"{each:,.0f}" for each in (*peaks, growth * 2**20, expected, whole)]
            print(f"| {features} | {cache} | {' | '.join(cells)} | {seconds:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("STEPS", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--masks", type=int, metavar="N", help="measure N and 2N images with masks")
    parser.add_argument("--open", nargs=2, metavar=("FOLDER", "FEATURES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.masks:
        return measure_masks(arguments.masks)
    if arguments.open:
        return print_masks(Path(arguments.open[0]), arguments.open[1])
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
