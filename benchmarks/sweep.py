"""The cost to reach a target by search over settings: TPE with early stopping, as `kshot sweep`, against random search.

    python benchmarks/sweep.py [--seeds 10] [--target "mse <= 1.0"] [--trials 60] [--out runs/sweep]

Each method searches the same space of MAML on sinusoids with the same training seeds, without experience or the
settings of the run file first. Its cost is the CPU time of one thread until a trial meets the target on validation
tasks, or of all trials if none does, which is marked by ">". The last row is the geometric mean of the cost as a share
of that of the last method, with a 95 % interval by the t distribution over seeds.

tpe + halving: TPE and successive halving, the default.
tpe: TPE, all trials to their last round.
random + halving, random: random search, with and without early stopping.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import optuna
import yaml
from cpu_clock import use_cpu_clock
from ratios import geometric_mean

from kshot.app.build import build_source
from kshot.app.sweep import study as notes
from kshot.app.sweep.worker import Job, work
from kshot.evaluation.target import Target

FILE = {
    "name": "waves",
    "source": {"kind": "sinusoids", "shots": 10, "queries": 10},
    "model": {"kind": "mlp", "hidden": [40, 40]},
    "learner": {"kind": "maml", "inner_lr": 0.01, "steps": 1},
    "train": {"steps_per_round": 50, "tasks_per_step": 8, "mode": "vmap", "schedule": "constant"},
    "budget": {"rounds": 9},
    "evaluate": {"num_val_tasks": 100},
    "search": {
        "train.outer_lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "learner.inner_lr": {"low": 1e-4, "high": 1.0, "log": True},
        "learner.steps": {"low": 1, "high": 5},
        "learner.kind": ["maml", "anil"],
    },
}
METHODS: dict[str, tuple[Any, Any]] = {
    "tpe + halving": (None, None),
    "tpe": (None, optuna.pruners.NopPruner()),
    "random + halving": (optuna.samplers.RandomSampler, None),
    "random": (optuna.samplers.RandomSampler, optuna.pruners.NopPruner()),
}


def cost(method: str, seed: int, target: str, trials: int, folder: Path) -> tuple[float, bool, int]:
    """Seconds until a trial meets the target, whether one does, and the number of trials."""
    sampler, pruner = METHODS[method]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = yaml.safe_dump(FILE | {"target": target, "seed": seed})
    storage = f"sqlite:///{(folder / 'study.sqlite').absolute()}"
    job = Job(text, "waves", None, (), str(folder.absolute()), method, storage, "study", trials, time.time() + 1e6)
    source = build_source(job.base)
    study = notes.open_study(
        storage,
        "study",
        Target.parse(target),
        seed,
        sampler=sampler and sampler(seed=seed),
        pruner=pruner,
    )
    started = time.process_time()
    work(job, study, source)
    spent = time.process_time() - started
    met = any(trial.user_attrs.get(notes.MET) for trial in study.trials)
    count = len(study.trials)
    shutil.rmtree(folder)
    return spent, met, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--target", default="mse <= 1.0")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=["tpe + halving", "random"])
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    options = parser.parse_args()
    use_cpu_clock()
    print(f"| seed | {' | '.join(options.methods)} |\n| --- |{' --- |' * len(options.methods)}", flush=True)
    spent: dict[str, list[float]] = {method: [] for method in options.methods}
    for seed in range(options.first, options.first + options.seeds):
        cells = []
        for method in options.methods:
            seconds, met, count = cost(method, seed, options.target, options.trials, options.out / "trials")
            spent[method].append(seconds)
            cells.append(f"{'' if met else '> '}{seconds:.0f} s, {count} trials")
        print(f"| {seed} | {' | '.join(cells)} |", flush=True)
    cells = []
    for method in options.methods:
        last = spent[options.methods[-1]]
        cells.append(geometric_mean([one / other for one, other in zip(spent[method], last)]))
    print(f"| share | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
