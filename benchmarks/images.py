"""Time to the first tasks from a folder of many images, and the time of sampling afterwards.

    python benchmarks/images.py [--images 100000] [--classes 1000] [--side 32] [--folder DIR]

Creates a folder of small PNG files with one folder per class (kept and reused with `--folder`), and an empty cache.
Each run is a separate process, timed after the imports. The first run decodes on demand, and the second uses the images
that the first decoded. Then all images are decoded in one pass, and the last run uses all of them.
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
    parser.add_argument("--folder", type=Path, help="folder of the images; created if absent")
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(measure(options.folder, options.side, options.all)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "images"
        if not folder.exists():
            started = time.perf_counter()
            make(folder, options.images, options.classes, options.side)
            print(f"created {options.images:,} images in {time.perf_counter() - started:.1f} s")
        environment = os.environ | {"KSHOT_CACHE": str(Path(scratch) / "cache")}
        command = [sys.executable, __file__, "--open", "--folder", folder, "--side", str(options.side)]
        for run_name, extra in (("first", []), ("second", []), ("in one pass", ["--all"]), ("last", [])):
            run = subprocess.run([*command, *extra], env=environment, check=True, capture_output=True, text=True)
            figures = "  ".join(f"{name} {value}" for name, value in json.loads(run.stdout).items())
            print(f"{run_name:<12} {figures}")


def make(folder: Path, images: int, classes: int, side: int) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(classes):
        class_folder = folder / f"class{number:06}"
        class_folder.mkdir(parents=True)
        for k in range(number, images, classes):
            content = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(content, "PNG", compress_level=1)
            (class_folder / f"{k:07}.png").write_bytes(content.getvalue())


def measure(folder: Path, side: int, all_at_once: bool) -> dict[str, str]:
    """The formatted times of one run."""
    import resource

    import torch

    from kshot import sources, tasks

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    tasks.ClassTasks  # noqa: B018  import before timing
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
