"""How soon a folder of many images gives its first tasks, and what drawing costs afterwards.

    python benchmarks/images.py [--images 100000] [--classes 1000] [--side 32] [--folder DIR]

Makes a folder of tiny PNGs with one folder a class (once, if `--folder` names a place to keep it), and an empty cache.
Each opening is a process of its own; its times begin after the imports. The first opening decodes by need, the second
finds what the first decoded; then all images are decoded in one pass; the last opening finds all of them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TASKS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where the images are, or are put")
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(opened(options.folder, options.side, options.all)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "images"
        if not folder.exists():
            started = time.perf_counter()
            make(folder, options.images, options.classes, options.side)
            print(f"made {options.images:,} images in {time.perf_counter() - started:.1f} s")
        environment = os.environ | {"KSHOT_CACHE": str(Path(scratch) / "cache")}
        command = [sys.executable, __file__, "--open", "--folder", folder, "--side", str(options.side)]
        for name, extra in (("first", []), ("second", []), ("in one pass", ["--all"]), ("last", [])):
            run = subprocess.run([*command, *extra], env=environment, check=True, capture_output=True, text=True)
            figures = "  ".join(f"{what} {value}" for what, value in json.loads(run.stdout).items())
            print(f"{name:<12} {figures}")


def make(folder: Path, images: int, classes: int, side: int) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(classes):
        own = folder / f"class{number:06}"
        own.mkdir(parents=True)
        for k in range(number, images, classes):
            content = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(content, "PNG", compress_level=1)
            (own / f"{k:07}.png").write_bytes(content.getvalue())


def opened(folder: Path, side: int, all_at_once: bool) -> dict[str, str]:
    """The times of one opening, in words."""
    import resource

    import torch

    from kshot import sources, tasks

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    tasks.ClassTasks  # noqa: B018  the imports are not what is measured
    started = time.perf_counter()
    source = sources.images(folder, ways=5, shots=1, queries=15, size=side)
    indexed = time.perf_counter()
    if all_at_once:
        source.examples.decode(np.arange(len(source.examples)))
        passed = time.perf_counter()
        return {
            "open": f"{indexed - started:.2f} s",
            "decode all": f"{passed - indexed:.1f} s",
            "memory": _memory(resource),
        }
    source.stack("train", range(TASKS))
    first = time.perf_counter()
    rounds = 20
    for _ in range(rounds):
        source.stack("train", range(TASKS))
    again = (time.perf_counter() - first) / rounds
    return {
        "open": f"{indexed - started:.2f} s",
        "first stack": f"{first - indexed:.3f} s",
        "same stack again": f"{1000 * again:.2f} ms ({TASKS / again:,.0f} tasks/s)",
        "memory": _memory(resource),
    }


def _memory(resource) -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"


if __name__ == "__main__":
    main()
