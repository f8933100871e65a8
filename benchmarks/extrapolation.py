"""How well `extrapolation` predicts real validation curves: `python benchmarks/extrapolation.py --out FOLDER`.

Curves of small learners are trained to the end of their budget, and kept in the folder. On each, the policy then
decides round after round for two targets: one that the curve just meets, on which a stop is false, and one that it
misses, on which a stop saves rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import kshot
from kshot.deciding import Budget, Outcome, Past, Round, Stop, extrapolation
from kshot.evaluation.target import Target
from kshot.learners import cnp

ROUNDS, STEPS = 20, 40
MARGIN = 0.1
"""By which share the missed target is better than the best figure of a curve."""


def sine(seed: int) -> tuple[kshot.Learner, kshot.TaskSource, str]:
    """MAML on sinusoids."""
    torch.manual_seed(seed)
    model = kshot.models.mlp(1, 1, [40, 40])
    return kshot.maml(model, inner_lr=0.01, objective=kshot.objectives.mse), kshot.sources.sinusoids(), "mse"


def functions(seed: int) -> tuple[kshot.Learner, kshot.TaskSource, str]:
    """A conditional neural process on functions of Gaussian processes."""
    torch.manual_seed(seed)
    return cnp(1, 1, width=64), kshot.sources.gaussian_processes(), "log_likelihood"


FIELDS: dict[str, Callable[[int], tuple[kshot.Learner, kshot.TaskSource, str]]] = {"sine": sine, "functions": functions}


def train(field: str, schedule: str, seed: int) -> list[Round]:
    """The rounds of a run to the end of its budget."""
    learner, source, metric = FIELDS[field](seed)
    best = "<= -1e9" if metric == "mse" else ">= 1e9"

    def to_the_end(rounds: list[Round]) -> kshot.deciding.Decision:
        last = rounds[-1].number == ROUNDS or rounds[-1].diverged
        return Stop(Outcome.BUDGET_SPENT, "") if last else kshot.deciding.Continue("")

    run = kshot.run_until(
        learner, source, f"{metric} {best}", budget=Budget(rounds=ROUNDS), steps_per_round=STEPS, tasks_per_step=8,
        schedule=schedule, mode="vmap", num_val_tasks=50, policy=to_the_end, seed=seed, outer_lr=0.002,
    )  # fmt: skip
    return run.rounds


class Judged(NamedTuple):
    """What the policy does on a curve for a target.

    Attributes:
        stopped: the round after which the target counts as not reachable; None if it never does before it is met.
        covered: for each prediction, whether its interval has the figure of the last round.
    """

    stopped: int | None
    covered: list[bool]


def judge(rounds: list[Round], target: Target) -> Judged:
    """Let the policy decide after each round of a curve."""
    policy, last = extrapolation(target, Budget(rounds=ROUNDS), Past(), changes=0), target.of(rounds[-1].val).mean
    decisions = [policy(rounds[:count]) for count in range(1, len(rounds) + 1)]
    ends = [decision.predicted[-1] for decision in decisions if decision.predicted]
    stops = [(number, decision.outcome) for number, decision in enumerate(decisions, 1) if isinstance(decision, Stop)]
    stops = [stop for stop in stops if stop[1] in (Outcome.NOT_REACHABLE, Outcome.TARGET_MET)]
    stopped = stops[0][0] if stops and stops[0][1] is Outcome.NOT_REACHABLE else None
    return Judged(stopped, [end.low <= last <= end.high for end in ends])


def targets(rounds: list[Round], metric: str, *, at_least: bool) -> tuple[Target, Target]:
    """The target that a curve just meets, and one that it misses."""
    figures = [entry.val[metric] for entry in rounds]
    sign, best = (1, max) if at_least else (-1, min)
    met = best(figure.low if at_least else figure.high for figure in figures)
    beyond = best(figure.mean for figure in figures)
    return Target(metric, at_least, met), Target(metric, at_least, beyond + sign * MARGIN * abs(beyond))


def main() -> None:
    """Train what is missing in the folder, and print a line for each field and schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for field, metric, at_least in (("sine", "mse", False), ("functions", "log_likelihood", True)):
        for schedule in ("constant", "cosine"):
            false_stops, stops, covered = [], [], []
            for seed in range(arguments.seeds):
                file = arguments.out / f"{field}-{schedule}-{seed}.json"
                if not file.exists():
                    file.write_text(json.dumps([entry.to_json() for entry in train(field, schedule, seed)]))
                rounds = [Round.from_json(entry) for entry in json.loads(file.read_text())]
                met, missed = targets(rounds, metric, at_least=at_least)
                false_stops.append(judge(rounds, met).stopped is not None)
                judged = judge(rounds, missed)
                stops.append(judged.stopped or ROUNDS)
                covered += judged.covered
            print(
                f"{field}, {schedule}: {sum(false_stops)} false stops in {len(stops)} runs; of rounds without hope "
                f"{1 - np.mean(stops) / ROUNDS:.2f} saved; intervals cover {np.mean(covered):.2f} of {len(covered)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
