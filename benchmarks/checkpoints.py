"""What checkpoints cost: seconds to copy what one holds and to write it, of which for its SHA-256 and its flush.

    python benchmarks/checkpoints.py [--repeats 7] [--recipe glyphs]

For each model, with the state of Adam, a checkpoint is written to a temporary folder; medians. The shares are of a
training with the default interval: 30 s, or 40 times the time of a save, at most 300 s. Training waits for the copies,
and goes on while they are written, which takes time of another core. The recipe is then run with each call of the hash
timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import kshot
from kshot.app.run import run
from kshot.app.spec import load_spec
from kshot.training import checkpoint

INTERVAL = 30.0  # seconds between checkpoints, the default of run files
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Conv4-64": lambda: kshot.models.conv4(3, 5),
    "ResNet-12": lambda: kshot.models.resnet12(3, 5),
    "transformer, 86 M": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(768, 12, 3072), 12, enable_nested_tensor=False
    ),
}


@contextmanager
def timed(name: str) -> Iterator[list[float]]:
    """The seconds of each call of a function that `kshot.training.checkpoint` imports."""
    seconds: list[float] = []
    original = getattr(checkpoint, name)

    def measured(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            seconds.append(time.perf_counter() - started)

    with mock.patch.object(checkpoint, name, measured):
        yield seconds


def row(name: str, model: nn.Module, repeats: int) -> str:
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    whole, copying, hashing, flushing = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            started = time.perf_counter()
            with timed("_copies") as copies, timed("sha256_of") as hashes, timed("sync") as flushes:
                checkpoint.save_checkpoint(Path(folder) / f"{number}", model, optimizer, {})
            whole.append(time.perf_counter() - started)
            copying.append(sum(copies))
            hashing.append(sum(hashes))
            flushing.append(sum(flushes))
        size = sum(file.stat().st_size for file in (Path(folder) / "0").iterdir()) / 2**20
    save, copied, hashed, flushed = (statistics.median(each) for each in (whole, copying, hashing, flushing))
    interval = min(max(INTERVAL, checkpoint.RARER * save), checkpoint.LONGEST * INTERVAL)
    cells = [f"{size:.1f}", *(f"{each:.3f}" for each in (copied, save - copied, hashed, flushed))]
    return f"| {' | '.join([name, *cells, *(f'{each / interval:.2%}' for each in (copied, save, hashed))])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--recipe", default="glyphs")
    options = parser.parse_args()
    print("| model | MiB | copy, s | write, s | hash, s | flush, s | training waits | all work | hash |")
    print("|" + " --- |" * 9)
    for name, make in MODELS.items():
        print(row(name, make(), options.repeats), flush=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, timed("sha256_of") as hashes:
        run(load_spec(options.recipe, ["baselines.names=[scratch]"]), Path(folder) / "run")
    seconds = time.perf_counter() - started
    share = f"{sum(hashes):.3f} s of {seconds:.1f} s in {len(hashes)} hashes, {sum(hashes) / seconds:.2%}"
    print(f"\n{options.recipe}: {share}")


if __name__ == "__main__":
    main()
