"""Log-likelihood of neural processes on random functions and sine waves, compared with the best possible predictor.

    OMP_NUM_THREADS=1 python benchmarks/neural_processes.py [--steps 2000] [--only rbf] [--out runs/neural-processes]
    python benchmarks/neural_processes.py --figure docs/images/neural-processes.png

Each learner is trained on each kind of task, and scored on the same test tasks as the predictor that knows the kernel
of each task (the posterior of the Gaussian process), or that the function is a sine wave. Trained learners are saved in
`--out` and reused. Prints a Markdown table; `--figure` plots the first test tasks.
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
from kshot.evaluation.report.task_pictures import predictive_bands
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
METRICS = ("log_likelihood", "mse", "coverage")


def known(source: TaskSource, index: int) -> Tree:
    """The prediction of the predictor that knows the distribution of a test task."""
    if isinstance(source, kshot.sources.functions.GaussianProcesses):
        return source.posterior("test", index)
    return sine_wave(source, index)


def sine_wave(source: TaskSource, index: int) -> Tree:
    r"""Bayesian linear regression on $\sin x$ and $\cos x$ with coefficients $N(0, 3^2)$, close to the true prior."""
    support, query = source.task("test", index)
    support_features, query_features = (
        torch.cat([batch.inputs.sin(), batch.inputs.cos()], 1).double().numpy() for batch in (support, query)
    )
    precision = support_features.T @ support_features / NOISE**2 + np.eye(2) / 9
    mean = query_features @ np.linalg.solve(precision, support_features.T @ support.targets.double().numpy() / NOISE**2)
    variance = (query_features * np.linalg.solve(precision, query_features.T).T).sum(1, keepdims=True) + NOISE**2
    return {"mean": torch.from_numpy(mean).float(), "std": torch.from_numpy(np.sqrt(variance)).float()}


def trained(name: str, kind: str, steps: int, out: Path) -> kshot.Learner:
    """Train a learner on a kind of task, or load it."""
    torch.manual_seed(0)
    learner, folder = LEARNERS[name](), out / f"{kind}-{name}-{steps}"
    if not folder.exists():
        started = time.monotonic()
        kshot.fit(learner, SOURCES[kind](), steps=steps, tasks_per_step=16, outer_lr=1e-3, mode="vmap")
        save_checkpoint(folder, learner, None, {"seconds": time.monotonic() - started})
    load_checkpoint(folder, learner)
    return learner.eval()


def scores(source: TaskSource, num_tasks: int) -> dict[str, list[float]]:
    """The metrics of the best possible predictor for each task."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for index in range(num_tasks):
        metrics = gaussian.metrics(known(source, index), source.task("test", index).query)
        for name in METRICS:
            values[name].append(float(metrics[name]))
    return values


def table(kinds: list[str], steps: int, num_tasks: int, out: Path) -> None:
    """Train and score all learners, and print a row for each learner and kind of task."""
    print("| tasks | learner | log-likelihood | gap to best | mse | coverage of 95 % | ms to adapt |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in kinds:
        source = SOURCES[kind]()
        best = scores(source, num_tasks)
        show(kind, "known kernel" if kind != "sinusoid" else "known family", best, best, None)
        for name in LEARNERS:
            result = kshot.evaluate(trained(name, kind, steps, out), source, num_tasks=num_tasks)
            show(kind, name, result.per_task, best, result.adapt_ms.median)
        show(
            kind,
            "support mean",
            kshot.evaluate(SupportMean(gaussian), source, num_tasks=num_tasks).per_task,
            best,
            None,
        )


def show(
    kind: str, name: str, scores: dict[str, list[float]], best: dict[str, list[float]], adapt_ms: float | None
) -> None:
    """Print one row; the gap to the best predictor is paired by task."""
    gap = interval(list(np.subtract(best["log_likelihood"], scores["log_likelihood"])))
    cells = [kind, name]
    for metric in METRICS:
        mean, half, *_ = interval(scores[metric])
        cells.append(f"{mean:.3f} ± {half:.3f}")
    cells.insert(3, "–" if scores is best else f"{gap.mean:.3f} ± {gap.ci95:.3f}")
    cells.append("–" if adapt_ms is None else f"{adapt_ms:.1f}")
    print(f"| {' | '.join(cells)} |", flush=True)


def draw(path: Path, kind: str, steps: int, out: Path) -> None:
    """Plot the predictions of all learners on the first test tasks."""
    source = SOURCES[kind](queries=150)
    tasks = [source.task("test", index) for index in range(3)]
    predictions = {"known kernel": [known(source, index) for index in range(3)]}
    for name in LEARNERS:
        learner = trained(name, kind, steps, out)
        with torch.no_grad():
            predictions[name] = [learner.predict(learner.adapt(task.support), task.query.inputs) for task in tasks]
    predictive_bands(tasks, predictions).savefig(path)


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
