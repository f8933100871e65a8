"""Train the in-context learner that comes with kshot, on synthetic tables and on real ones that nothing is compared on.

    OMP_NUM_THREADS=1 python benchmarks/make_tabular.py --steps 4000 [--start WEIGHTS] [--out DIR] [--resume]
    OMP_NUM_THREADS=1 python benchmarks/make_tabular.py --task regression --steps 4000 --export WEIGHTS

A step is the mean loss of 16 tables; the rate falls to zero over `--steps`. `--start` goes on from weights, `--resume`
from the latest checkpoint of the same call. It runs on a GPU where there is one. Printed, on tables of packages of R
that are not trained on and on synthetic ones, each of 24 to 160 rows: the mean loss of the queries (log-loss, or the
negative log-likelihood of standardised targets), and its paired difference to the untrained learner, with a 95 %
interval over tasks.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from table_tasks import RealTables

import kshot
from kshot import Learner
from kshot.evaluation.intervals import interval
from kshot.integrations.sklearn.weights import load_weights, save_weights
from kshot.learner import evaluation_mode
from kshot.training.checkpoint import Checkpoints
from kshot.training.fit import Progress, Settings, meta_training_loop
from kshot.types import to


def losses(learner: Learner, source: RealTables, num_tasks: int, device: torch.device) -> np.ndarray:
    """The log-loss of the queries of validation tasks (T,)."""
    with evaluation_mode(learner), torch.no_grad():
        return np.array([float(learner(to(source.task("val", index), device))) for index in range(num_tasks)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["classification", "regression"], default="classification")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--tables", type=int, default=16, help="tables of a step")
    parser.add_argument("--outer-lr", type=float, default=1e-3)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", type=int, default=200, help="validation tasks of each sort")
    parser.add_argument("--every", type=int, default=500, help="steps between validations")
    parser.add_argument("--out", type=Path, default=Path("runs/make-tabular"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = kshot.objectives.classification if options.task == "classification" else kshot.objectives.gaussian
    new = partial(kshot.learners.prior_fitted, objective=objective)
    torch.manual_seed(options.seed)
    learner = load_weights(options.start) if options.start else new()
    learner = learner.requires_grad_(True).to(device)
    source = RealTables(options.task, seed=options.seed)
    judged = {name: RealTables(options.task, seed=1, rows=(24, 160), real=share, tables=source.tables)
              for name, share in (("real", 1.0), ("synthetic", 0.0))}  # fmt: skip
    untrained = new().to(device)
    known = {name: losses(untrained, each, options.validate, device) for name, each in judged.items()}
    settings = Settings(options.outer_lr, 1.0, "cosine", options.steps, options.tables, weight_decay=0.01)
    loop = meta_training_loop(learner, source, settings, mode="vmap", seed=options.seed)
    checkpoints = Checkpoints(options.out)
    if options.resume and (latest := checkpoints.latest_for_training()):
        loop.load(latest)
    started, recent = time.process_time(), list[float]()

    def validate() -> None:
        cells = []
        for name, each in judged.items():
            found = losses(learner, each, options.validate, device)
            gap = interval((found - known[name]).tolist())
            cells.append(f"{name} {found.mean():.4f} ({gap.mean:+.4f} ± {gap.ci95:.4f})")
        minutes = (time.process_time() - started) / 60
        print(
            f"step {loop.step}: loss {np.mean(recent or np.nan):.4f}, {', '.join(cells)}, {minutes:.1f} CPU minutes",
            flush=True,
        )

    def observe(progress: Progress) -> None:
        recent.append(progress.loss)
        if progress.step % options.every == 0 or progress.step == options.steps:
            learner.eval()
            validate()
            learner.train()
            recent.clear()
            loop.save(options.out / checkpoints.free(f"step-{loop.step:07d}"), {})
            checkpoints.prune()

    loop.run(options.steps - loop.step, observe)
    if options.export:
        save_weights(learner.cpu().eval(), options.export)


if __name__ == "__main__":
    main()
