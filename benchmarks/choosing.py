"""Which learner when: accuracy (or error) against the number of shots, beside what adapting costs.

    python benchmarks/choosing.py images [--steps 150] [--tasks 200] [--picture FILE]
    python benchmarks/choosing.py waves  [--steps 3000] [--tasks 400]

`images`: Omniglot (Vinyals split), 10 classes, 5 queries each. A small Conv4 (32 channels) is pretrained once on the
training classes; every learner starts from a copy of it and is meta-trained for the same number of steps of 4 tasks
with one shot, inductive. Those whose outer rate is "–" are not meta-trained.

`waves`: sinusoids, 25 tasks a step, meta-trained at 10 shots from random weights.

What the columns say: the mean over test tasks ± its 95 % interval at each number of shots, of one seed; the median
milliseconds of processor time of adapting at the most shots, on one thread; the numbers in a state; the outer rate,
the better of two on validation tasks; and the seconds of processor time that meta-training took with it. Test tasks are
the same for all.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import kshot
from kshot import Learner, objectives
from kshot.evaluation.cost import cost
from kshot.evaluation.report.style import BLUE, FAINT, canvas, quiet
from kshot.evaluation.shots import over_shots
from kshot.tasks.source import TaskSource
from kshot.training.step import Mode

WAYS, WIDTH = 10, 32  # of a task; of the features of the small Conv4


class Entry(NamedTuple):
    """A learner: how it is made of a pretrained model without or with a head, and the outer rates that are tried."""

    make: Callable[[nn.Module, nn.Module], Learner]
    outer_lrs: tuple[float, ...] = (2e-4, 1e-3)


IMAGES = {
    "nearest_centroid, pretrained": Entry(lambda body, full: kshot.protonet(body, batchnorm="running"), ()),
    "simpleshot": Entry(lambda body, full: kshot.learners.simpleshot(body, features=WIDTH), ()),
    "baseline_pp": Entry(lambda body, full: kshot.learners.baseline_pp(body, inner_lr=0.5, steps=50), ()),
    "fine_tune": Entry(lambda body, full: kshot.learners.fine_tune(full, inner_lr=0.05, steps=20), ()),
    "protonet": Entry(lambda body, full: kshot.protonet(body, batchnorm="running")),
    "matching_net": Entry(lambda body, full: kshot.learners.matching_net(body, batchnorm="running")),
    "r2d2": Entry(lambda body, full: kshot.learners.r2d2(body, batchnorm="running")),
    "metaoptnet, ridge": Entry(lambda body, full: kshot.learners.metaoptnet(body, base="ridge", batchnorm="running")),
    "feat": Entry(lambda body, full: kshot.learners.feat(body, features=WIDTH, batchnorm="running")),
    "anil": Entry(lambda body, full: kshot.learners.anil(full, inner_lr=0.1, steps=5)),
    "fomaml": Entry(lambda body, full: kshot.learners.fomaml(full, inner_lr=0.05, steps=5)),
    "maml": Entry(lambda body, full: kshot.maml(full, inner_lr=0.05, steps=5)),
    "proto_maml": Entry(
        lambda body, full: kshot.learners.proto_maml(body, inner_lr=0.01, steps=3, batchnorm="running")
    ),
}

WAVES = {
    "maml": Entry(lambda none, mlp: kshot.maml(mlp, inner_lr=0.01, steps=5, objective=objectives.mse), (1e-3, 3e-3)),
    "fomaml": Entry(
        lambda none, mlp: kshot.learners.fomaml(mlp, inner_lr=0.01, steps=5, objective=objectives.mse), (1e-3, 3e-3)
    ),
    "reptile": Entry(
        lambda none, mlp: kshot.learners.reptile(mlp, inner_lr=0.02, steps=10, objective=objectives.mse), (1e-3, 3e-3)
    ),
    "meta_sgd": Entry(
        lambda none, mlp: kshot.learners.meta_sgd(mlp, inner_lr=0.01, steps=1, objective=objectives.mse), (1e-3, 3e-3)
    ),
    "meta_curvature": Entry(
        lambda none, mlp: kshot.learners.meta_curvature(mlp, inner_lr=0.01, steps=1, objective=objectives.mse),
        (1e-3, 3e-3),
    ),
    "anil": Entry(
        lambda none, mlp: kshot.learners.anil(mlp, inner_lr=0.01, steps=5, objective=objectives.mse), (1e-3, 3e-3)
    ),
    "r2d2": Entry(lambda body, mlp: kshot.learners.r2d2(mlp.body, scale=None, objective=objectives.mse), (1e-3, 3e-3)),
}


def trained(
    entry: Entry, body: nn.Module, full: nn.Module, source: TaskSource, steps: int
) -> tuple[Learner, float | None, float]:
    """The learner at its best outer rate by validation, that rate, and the seconds of processor time it trained.

    Where there is no rate to try it is left as it is made.
    """
    if not entry.outer_lrs:
        return fresh(entry, body, full, source), None, 0.0
    metric, sign, tasks = METRIC[source.objective]
    tried = []
    for rate in entry.outer_lrs:
        learner, started = fresh(entry, body, full, source), time.process_time()
        mode: Mode = "loop" if learner.annealed else "traced"
        try:
            kshot.fit(learner, source, steps=steps, tasks_per_step=tasks, outer_lr=rate, mode=mode)
        except ArithmeticError as error:
            print(f"  outer rate {rate:g}: {error}", file=sys.stderr)
            continue
        seconds = time.process_time() - started
        found = kshot.evaluate(learner, source, split="val", tasks=100, audit=False).metrics[metric].mean
        tried.append((sign * found, rate, seconds, learner))
    _, rate, seconds, learner = max(tried, key=lambda each: each[0])
    return learner, rate, seconds


def fresh(entry: Entry, body: nn.Module, full: nn.Module, source: TaskSource) -> Learner:
    torch.manual_seed(0)
    learner = entry.make(copy.deepcopy(body), copy.deepcopy(full))
    if hasattr(getattr(learner, "head", None), "centre"):
        kshot.training.fit_feature_statistics(learner, source)
    return learner


def measure(
    name: str, entry: Entry, body: nn.Module, full: nn.Module, source: TaskSource, options: argparse.Namespace
) -> dict[str, Any]:
    """A row of the table."""
    shots = SHOTS[options.work]
    many = SOURCES[options.work](max(shots))
    learner, rate, seconds = trained(entry, body, full, source, options.steps)
    curve = over_shots(learner, many, shots, tasks=options.tasks)
    task = many.task("test", 0)
    adapted = []
    for _ in range(9):
        begun = time.process_time()
        with torch.no_grad():
            learner.eval().adapt(task.support)
        adapted.append(1e3 * (time.process_time() - begun))
    return {
        "learner": name,
        "outer_lr": rate,
        "seconds": seconds,
        "adapt_ms": statistics.median(adapted),
        "state_numbers": cost(learner, task).state_numbers,
        "shots": {point.shots: point.metrics[METRIC[source.objective][0]]._asdict() for point in curve},
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    shots = list(rows[0]["shots"])
    several = [f"{count} shot{'s' * (count > 1)}" for count in shots]
    names = ["learner", *several, "adapt, ms", "state", "outer rate", "training, s"]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        figures = [shown(**own) for own in row["shots"].values()]
        rate = "–" if row["outer_lr"] is None else f"{row['outer_lr']:g}"
        cells = [row["learner"], *figures, f"{row['adapt_ms']:.2g}", f"{row['state_numbers']:,}", rate]
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
    return lines


def shown(mean: float, ci95: float, tasks: int) -> str:
    """A figure; an error that is no number, or a thousand, is that of inner steps which diverge."""
    return f"{mean:.3f} ± {ci95:.3f}" if mean < 1000 else "diverges"


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against what adapting costs, one point a learner, at the fewest and at a middle number of shots."""
    shots = list(rows[0]["shots"])
    figure = canvas(3.6)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, count in zip(panels, (shots[0], shots[2])):
        quiet(axes, f"{count} shot{'s' * (count > 1)}", grid="both")
        for row in rows:
            own, x = row["shots"][count], row["adapt_ms"]
            axes.errorbar(x, own["mean"], own["ci95"], fmt="o", color=BLUE, markersize=4)
        axes.set_xscale("log")
        axes.set_xlim(right=3 * max(row["adapt_ms"] for row in rows))
        low, high = axes.get_ylim()
        for fast in (True, False):  # labels beside the points, as high as they are or just above the label below
            last = -1.0
            for row in sorted(rows, key=lambda row: row["shots"][count]["mean"]):
                if (row["adapt_ms"] < FAST) == fast:
                    x, y = row["adapt_ms"], row["shots"][count]["mean"]
                    last = max((y - low) / (high - low), last + 0.05)
                    axes.annotate(
                        row["learner"],
                        (x, y),
                        (1.25 * (FAST / 2 if fast else x), low + last * (high - low)),
                        fontsize=7,
                        va="center",
                        arrowprops={"arrowstyle": "-", "color": FAINT, "shrinkA": 0, "shrinkB": 2},
                    )
        axes.set_xlabel("to adapt, ms")
    panels[0].set_ylabel("accuracy")
    figure.savefig(path, dpi=150)


FAST = 60  # milliseconds; what adapts in fewer has its labels in one column


def drawings(shots: int) -> TaskSource:
    return kshot.sources.omniglot(ways=WAYS, shots=shots, queries=5)


def waves(shots: int) -> TaskSource:
    return kshot.sources.sinusoids(shots=shots, queries=50 if shots == max(SHOTS["waves"]) else 10)


SOURCES: dict[str, Callable[[int], TaskSource]] = {"images": drawings, "waves": waves}
SHOTS = {"images": [1, 2, 5, 10], "waves": [2, 5, 10, 20]}
METRIC = {objectives.classification: ("accuracy", 1, 4), objectives.mse: ("mse", -1, 25)}
"""The metric, 1 if more of it is better, and the tasks of a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["images", "waves"])
    parser.add_argument("--steps", type=int, help="of meta-training")
    parser.add_argument("--tasks", type=int, default=200, help="test tasks")
    parser.add_argument("--pretrain", type=int, default=1000, help="steps of pretraining of the images' model")
    parser.add_argument("--only", nargs="+", help="learners whose name contains one of these")
    parser.add_argument("--picture", type=Path, help="PNG of accuracy against the cost of adapting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.work == "images":
        entries, source, steps = IMAGES, drawings(1), 150
        full: nn.Module = kshot.models.conv4(1, WAYS, channels=WIDTH)
        kshot.pretrain(full, source, steps=options.pretrain, outer_lr=5e-3)
    else:
        entries, source, steps = WAVES, waves(10), 3000
        full = kshot.models.mlp(1, 1)
    options.steps = options.steps or steps
    rows = []
    for name, entry in entries.items():
        if not options.only or any(part in name for part in options.only):
            rows.append(measure(name, entry, full.get_submodule("body"), full, source, options))
            print(f"{name} is measured", file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    if options.picture:
        picture(rows, options.picture)


if __name__ == "__main__":
    main()
