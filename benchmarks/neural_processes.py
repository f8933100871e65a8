"""How likely neural processes hold what they are asked for: random functions and sine waves, beside the best there is.

    OMP_NUM_THREADS=1 python benchmarks/neural_processes.py [--steps 2000] [--only rbf] [--out runs/neural-processes]
    python benchmarks/neural_processes.py --figure docs/images/neural-processes.png

Each learner is trained on each kind of task, and scored on the same test tasks as whoever knows the kernel of each
task (the posterior of the Gaussian process), or that the function is a sine wave. What is trained is kept in `--out`,
and used again. A table in Markdown is printed; `--figure` draws the first test tasks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import kshot
from kshot.evaluation.evaluate import interval
from kshot.evaluation.report import charts
from kshot.learners import SupportMean
from kshot.objectives import gaussian
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import load_checkpoint, save_checkpoint
from kshot.types import Tree

NOISE = 0.1
SOURCES: dict[str, Callable[..., TaskSource]] = {
    "rbf": lambda **more: kshot.sources.gaussian_processes(kernel="rbf", noise=NOISE, **more),
    "matern52": lambda **more: kshot.sources.gaussian_processes(kernel="matern52", noise=NOISE, **more),
    "periodic": lambda **more: kshot.sources.gaussian_processes(kernel="periodic", noise=NOISE, **more),
    "sinusoid": lambda **more: kshot.sources.sinusoids(
        shots=10, noise=NOISE, target_type="distribution", **({"queries": 50} | more)
    ),
}
LEARNERS: dict[str, Callable[[], kshot.Learner]] = {
    "CNP": lambda: kshot.learners.cnp(1, 1),
    "ANP": lambda: kshot.learners.attentive_np(1, 1),
    "TNP-D": lambda: kshot.learners.tnp_d(1, 1),
}
FIGURES = ("log_likelihood", "mse", "coverage")


def known(source: TaskSource, index: int) -> Tree:
    """The prediction of whoever knows where a test task comes from."""
    if isinstance(source, kshot.sources.functions.GaussianProcesses):
        return source.posterior("test", index)
    return sine_wave(source, index)


def sine_wave(source: TaskSource, index: int) -> Tree:
    r"""Bayesian linear regression on $\sin x$ and $\cos x$, of coefficients $N(0, 3^2)$, which about fits the prior."""
    support, query = source.task("test", index)
    seen, asked = (
        torch.cat([batch.inputs.sin(), batch.inputs.cos()], 1).double().numpy() for batch in (support, query)
    )
    precision = seen.T @ seen / NOISE**2 + np.eye(2) / 9
    mean = asked @ np.linalg.solve(precision, seen.T @ support.targets.double().numpy() / NOISE**2)
    variance = (asked * np.linalg.solve(precision, asked.T).T).sum(1, keepdims=True) + NOISE**2
    return {"mean": torch.from_numpy(mean).float(), "std": torch.from_numpy(np.sqrt(variance)).float()}


def trained(name: str, kind: str, steps: int, out: Path) -> kshot.Learner:
    """A learner trained on tasks of a kind, or read back."""
    torch.manual_seed(0)
    learner, folder = LEARNERS[name](), out / f"{kind}-{name}-{steps}"
    if not folder.exists():
        started = time.monotonic()
        kshot.fit(learner, SOURCES[kind](), steps=steps, tasks_per_step=16, outer_lr=1e-3, mode="vmap")
        save_checkpoint(folder, learner, None, {"seconds": time.monotonic() - started})
    load_checkpoint(folder, learner)
    return learner.eval()


def scores(source: TaskSource, tasks: int) -> dict[str, list[float]]:
    """The figures of whoever knows, task by task."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for index in range(tasks):
        metrics = gaussian.metrics(known(source, index), source.task("test", index).query)
        for name in FIGURES:
            found[name].append(float(metrics[name]))
    return found


def table(kinds: list[str], steps: int, tasks: int, out: Path) -> None:
    """Train and score, and print a row for each learner and kind of task."""
    print("| tasks | learner | log-likelihood | behind the best | mse | coverage of 95 % | ms to adapt |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in kinds:
        source = SOURCES[kind]()
        best = scores(source, tasks)
        show(kind, "known kernel" if kind != "sinusoid" else "known family", best, best, None)
        for name in LEARNERS:
            result = kshot.evaluate(trained(name, kind, steps, out), source, tasks=tasks)
            show(kind, name, result.per_task, best, result.adapt_ms)
        show(kind, "support mean", kshot.evaluate(SupportMean(gaussian), source, tasks=tasks).per_task, best, None)


def show(
    kind: str, name: str, own: dict[str, list[float]], best: dict[str, list[float]], adapt_ms: float | None
) -> None:
    """One row; what a learner is behind the best is taken task by task."""
    behind = interval(list(np.subtract(best["log_likelihood"], own["log_likelihood"])))
    cells = [kind, name]
    for figure in FIGURES:
        mean, half, _ = interval(own[figure])
        cells.append(f"{mean:.3f} ± {half:.3f}")
    cells.insert(3, "–" if own is best else f"{behind.mean:.3f} ± {behind.ci95:.3f}")
    cells.append("–" if adapt_ms is None else f"{adapt_ms:.1f}")
    print(f"| {' | '.join(cells)} |", flush=True)


def draw(path: Path, kind: str, steps: int, out: Path) -> None:
    """The first test tasks as the learners see them."""
    source = SOURCES[kind](queries=150)
    tasks = [source.task("test", index) for index in range(3)]
    said = {"known kernel": [known(source, index) for index in range(3)]}
    for name in LEARNERS:
        learner = trained(name, kind, steps, out)
        with torch.no_grad():
            said[name] = [learner.predict(learner.adapt(task.support), task.query.inputs) for task in tasks]
    charts.predictive_bands(tasks, said).savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--only", choices=list(SOURCES))
    parser.add_argument("--out", type=Path, default=Path("runs/neural-processes"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.figure:
        draw(options.figure, options.only or "rbf", options.steps, options.out)
    else:
        table([options.only] if options.only else list(SOURCES), options.steps, options.tasks, options.out)


if __name__ == "__main__":
    main()
