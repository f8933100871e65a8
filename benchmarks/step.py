"""One outer step of MAML, `loop` against `vmap`: milliseconds, interleaved, medians.

    python benchmarks/step.py [--runs 5]

The work is that of the figures published beside it: 25 sinusoid tasks (K = 10 + 10, MLP 1-40-40-1), and 4 tasks of
5-way 1-shot with 15 queries a class on 28×28 images (Conv4-64 with BatchNorm), second order.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import kshot
from kshot import Batch, Task, objectives
from kshot.training.step import meta_gradient
from kshot.types import stack


def image_tasks(count: int = 4, ways: int = 5, shots: int = 1, queries: int = 15) -> Task:
    def batch(each: int) -> Batch:
        return Batch.of(torch.rand(each * ways, 1, 28, 28), torch.arange(ways).repeat(each), ways=ways)

    return stack([Task(batch(shots), batch(queries)) for _ in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    torch.manual_seed(0)
    waves = kshot.tasks.sinusoids().stack("train", range(25))
    work = {}
    for steps in (1, 5):
        mlp = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.01, steps=steps, objective=objectives.mse)
        work[f"sinusoid, 25 tasks, {steps} steps"] = (mlp, waves)
        for kind in ("pool", "stride"):
            conv = kshot.maml(kshot.models.conv4(1, 5, downsample=kind), inner_lr=0.1, steps=steps)
            work[f"Conv4-64 {kind}, 4 tasks, {steps} steps"] = (conv, image_tasks())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {runs}")
    for name, (learner, tasks) in work.items():
        times: dict[str, list[float]] = {"loop": [], "vmap": []}
        for number in range(runs + 1):
            for mode, values in times.items():
                started = time.perf_counter()
                meta_gradient(learner, tasks, mode)  # type: ignore[arg-type]
                if number:
                    values.append(1e3 * (time.perf_counter() - started))
        loop, vmap = (statistics.median(values) for values in times.values())
        print(f"{name:<34} loop {loop:7.1f} ms   vmap {vmap:7.1f} ms   loop/vmap {loop / vmap:5.2f}")


if __name__ == "__main__":
    main()
