"""A program for several processes: meta-train learners of the zoo together, and save what each process ends with.

torchrun --nproc-per-node 2 tests/training/in_ranks.py '[["maml", "loop", 20]]' OUT
"""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from zoo import ZOO, Row, make_task

import kshot
from kshot.types import tree_map

TASKS = 5


class Tasks(kshot.TaskSource):
    """Small tasks that the learner of a row can solve, in float64; that of a number cannot be read."""

    seed = 0

    def __init__(self, row: Row, unreadable: int | None = None) -> None:
        self.row, self.objective, self.unreadable = row, row.objective, unreadable

    def task(self, split: str, index: int) -> kshot.Task:
        if index == self.unreadable:
            raise ValueError(f"task {index} is damaged")
        task = make_task(self.row, seed=index)
        return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, task)


def trained(name: str, mode: str, steps: int) -> dict:
    """The weights, buffers and losses after training, and the figures of test tasks."""
    row = ZOO[name]
    torch.manual_seed(0)
    learner = copy.deepcopy(row.make(3)).double()
    losses = kshot.fit(learner, Tasks(row), steps=steps, tasks_per_step=TASKS, mode=mode)
    result = kshot.evaluate(learner, Tasks(row), num_tasks=7, audit=False)
    return {"weights": learner.state_dict(), "losses": losses, "per_task": result.per_task}


def refused() -> str:
    """The message of a training in which one process cannot read a task."""
    row = ZOO["protonet"]
    try:
        kshot.fit(row.make(3).double(), Tasks(row, unreadable=6), steps=3, tasks_per_step=TASKS)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    trainings, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    found = [trained(*each) for each in trainings]
    torch.save({"trained": found, "refused": refused()}, out / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
