"""Memory of each process for the frozen weights of a causal language model, whole and shared, and the time of a step.

    python benchmarks/shared_weights.py [--width 768] [--layers 12] [--steps 4]

MAML of one inner step on adapters of a GPT-2 of random weights and 1,000 symbols, on texts of 8 random symbols, two
tasks a step, `kshot.fit` by processes of one thread. Memory is by how much the anonymous resident set of process 0 has
grown since before the model was loaded: once it was loaded, shared if it is, and copied as to a device; and at most
during the steps, which need activations too. Safetensors are mapped into memory, and pages of the file are not counted.
"MiB of weights" is arithmetic: what is not shared, the parts of the blocks, and one whole block.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist

import kshot
from kshot.training import shards
from kshot.types import Batch, Split, Task

MIB = 2**20
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(MIB)}
"""One thread, and memory that is freed goes back at once."""
SYMBOLS, LENGTH, TASKS = 1000, 8, 2


class Texts(kshot.TaskSource):
    """Random symbols to continue."""

    seed, objective = 0, kshot.objectives.next_token

    def task(self, split: Split, index: int) -> Task:
        """A task of one text for support and one for query."""
        random = torch.Generator().manual_seed(index)
        sets = torch.randint(0, SYMBOLS, (2, 1, LENGTH + 1), generator=random)
        return Task(*(Batch.of(each[:, :-1], each[:, 1:]) for each in sets))


def anonymous() -> int:
    """Bytes of this process's resident set that are of no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


class Peak:
    """The largest anonymous resident set of this process while it is watched, as far as samples every 2 ms see it."""

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, anonymous())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def worker(options: argparse.Namespace) -> None:
    """Train, and write what this process measured."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    for package in ("peft", "transformers"):  # whose memory is not that of the model
        importlib.import_module(package)
    before = anonymous()
    model = kshot.models.causal_lm(options.folder, rank=8)
    if options.shared:
        shards.shard_frozen(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    gc.collect()
    loaded = anonymous() - before
    weights = sum(p.nbytes for p in model.parameters())
    parts = [block.part.nbytes for block in shards._blocks.values()]
    if parts:
        weights += sum(parts) + max(parts) * dist.get_world_size()
    learner = kshot.maml(model, inner_lr=0.01, objective=kshot.objectives.next_token)
    ends = [time.perf_counter()]
    with Peak() as peak:
        kshot.fit(
            learner, Texts(), steps=options.steps, tasks_per_step=TASKS,
            observe=lambda progress: ends.append(time.perf_counter()),
        )  # fmt: skip
    steps = [1e3 * (after - start) for start, after in pairwise(ends[1:])]
    found = {"weights": weights, "loaded": loaded, "peak": peak.bytes - before, "ms": statistics.median(steps)}
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(options.worker).write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def write_model(folder: Path, width: int, layers: int) -> None:
    """Write a GPT-2 of random weights."""
    import transformers

    sizes = {
        "n_positions": LENGTH,
        "n_embd": width,
        "n_layer": layers,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=SYMBOLS, **sizes)).save_pretrained(folder)


def main() -> None:
    """Run each cell once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    print("processes  weights  MiB of weights  MiB once loaded  MiB at most in steps  ms a step")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options.width, options.layers)
        for processes, shared in ((1, False), (options.processes, False), (options.processes, True)):
            out = Path(folder) / "found"
            words = [__file__, f"--worker={out}", f"--folder={folder}", f"--steps={options.steps}"] + [
                "--shared"
            ] * shared
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command = [sys.executable, "-W", "ignore", *(launch if processes > 1 else []), *words]
            subprocess.run(command, env=os.environ | ENVIRONMENT, check=True, capture_output=True)
            found = json.loads(out.read_text())
            numbers = [found[name] / MIB for name in ("weights", "loaded", "peak")]
            print(
                f"{processes:9}  {'shared' if shared else 'whole':7}" + "{:16.0f}{:17.0f}{:22.0f}".format(*numbers),
                end="",
            )
            print(f"{found['ms']:11.0f}", flush=True)


if __name__ == "__main__":
    main()
