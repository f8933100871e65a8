"""A program for several processes: meta-train learners of the zoo together, and save what each process ends with.

torchrun --standalone --nproc-per-node 2 in_ranks.py NAMES OUT
"""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from zoo import ZOO, Row, make_task

import kshot

STEPS, TASKS, MODES = 20, 5, ("loop", "vmap")


class Tasks(kshot.TaskSource):
    """Small tasks that the learner of a row can solve, in float64."""

    def __init__(self, row: Row) -> None:
        self.row, self.objective, self.seed = row, row.objective, 0

    def task(self, split: str, index: int) -> kshot.Task:
        return kshot.types.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf,
                                    make_task(self.row, seed=index % 1000))  # fmt: skip


def trained(name: str, mode: str) -> dict:
    """The weights, buffers and losses after training, and an evaluation."""
    row, torch.default = ZOO[name], None
    torch.manual_seed(0)
    learner = copy.deepcopy(row.make(3)).double()
    losses = kshot.fit(learner, Tasks(row), steps=STEPS, tasks_per_step=TASKS, outer_lr=1e-3, mode=mode)
    result = kshot.evaluate(learner, Tasks(row), num_tasks=7, audit=False)
    return {"weights": learner.state_dict(), "losses": losses, "per_task": result.per_task}


def main() -> None:
    names, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    found = {f"{name}, {mode}": trained(name, mode) for name in names for mode in MODES}
    torch.save(found, out / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
