"""Two processes meta-train learners of the zoo together, and save what each process ends with.

python -m training.in_ranks '[["maml", "loop", 20]]' OUT     # in the folder of the tests
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from training.forked import by_processes
from zoo import ZOO, Row, make_task

import kshot
from kshot.training.fit import Settings, meta_training_loop
from kshot.training.ranks import help_first, leading, map_over_ranks, others
from kshot.types import tree_map

TASKS = 5


class Tasks(kshot.TaskSource):
    """Small tasks that the learner of a row can solve; that of a number cannot be read."""

    seed = 0

    def __init__(self, row: Row, unreadable: int | None = None, dtype: torch.dtype = torch.float64) -> None:
        self.row, self.objective, self.unreadable, self.dtype = row, row.objective, unreadable, dtype

    def task(self, split: str, index: int) -> kshot.Task:
        if index == self.unreadable:
            raise ValueError(f"task {index} is damaged")
        task = make_task(self.row, seed=index)
        return tree_map(lambda leaf: leaf.to(self.dtype) if leaf.is_floating_point() else leaf, task)


def trained(name: str, mode: str, steps: int) -> dict:
    """The weights, buffers and losses after training, and the figures of test tasks."""
    row = ZOO[name]
    torch.manual_seed(0)
    learner = copy.deepcopy(row.make(3)).double()
    losses = kshot.fit(learner, Tasks(row), steps=steps, tasks_per_step=TASKS, mode=mode)
    result = kshot.evaluate(learner, Tasks(row), num_tasks=7, audit=False)
    return {"weights": learner.state_dict(), "losses": losses, "per_task": result.per_task}


def in_float16() -> dict:
    """The weights, losses and scale after a training that begins with too large a scale."""
    row = ZOO["maml, regression"]
    torch.manual_seed(0)
    learner, settings = copy.deepcopy(row.make(3)), Settings(size=TASKS)
    loop = meta_training_loop(learner, Tasks(row, dtype=torch.float32), settings, precision="float16")
    loop.scale.exponent = 40
    losses = loop.run(3)
    return {"weights": learner.state_dict(), "losses": losses, "scale": loop.scale.state()}


def refused() -> str:
    """The message of a training in which one process cannot read a task."""
    row = ZOO["protonet"]
    try:
        kshot.fit(row.make(3).double(), Tasks(row, unreadable=6), steps=3, tasks_per_step=TASKS)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def hung() -> str:
    """What process 0 says where process 1 does not answer in the second that the group waits."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    if dist.get_rank() == 1:
        time.sleep(3)
        return ""
    try:
        kshot.fit(ZOO["protonet"].make(3).double(), Tasks(ZOO["protonet"]), steps=1, tasks_per_step=TASKS)
    except ConnectionError as error:
        return str(error)
    return ""


def evaluated(name: str) -> kshot.evaluation.Evaluation:
    """The evaluation of a learner with its initial weights."""
    torch.manual_seed(0)
    return kshot.evaluate(copy.deepcopy(ZOO[name].make(3)).double(), Tasks(ZOO[name]), num_tasks=19, audit=False)


def rank_for(item: int) -> tuple[int, int]:
    """An item with the process that does it; process 1 does no multiples of 10, and takes 0.01 s for others."""
    time.sleep(0.01)
    if dist.get_rank() == 1 and item % 10 == 0:
        raise ValueError(f"item {item} is damaged")
    return item, dist.get_rank()


def rank_at_once(item: int) -> tuple[int, int]:
    return item, dist.get_rank()


def rank_with_others(item: int) -> tuple[int, int]:
    """As `rank_for`, by way of several items."""
    return mapped(rank_for, range(item + 1, item + 4))[0]


def mapped(work: Callable[[int], tuple[int, int]], items: range, **options: bool) -> list[tuple[int, int]]:
    return [result for _, result in map_over_ranks(work, items, **options)]


def led(names: list[str]) -> dict:
    """What process 0 computes with the help of the others; {} in them."""
    those = others()
    if dist.get_rank() > 0:
        help_first(those)
        return {}
    with leading(those):
        found = {
            "shared": mapped(rank_for, range(-1, 10)),
            "failing": mapped(rank_for, range(-5, 35, 3)),
            "not sent": mapped(lambda item: rank_for(item), range(4)),
            "nested": mapped(rank_with_others, range(5)),
            "cheap": mapped(rank_at_once, range(4)),
            "not led": mapped(rank_for, range(4), led=False),
            "evaluated": {name: evaluated(name) for name in names},
        }
        try:
            kshot.evaluate(ZOO["protonet"].make(3).double(), Tasks(ZOO["protonet"], unreadable=6), num_tasks=8)
        except ValueError as error:
            found["refused"] = str(error)
        return found


def main() -> None:
    trainings, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    found = {"trained": [trained(*each) for each in trainings], "refused": refused()}
    found |= {"in float16": in_float16(), "led": led(sys.argv[3:]), "hung": hung()}
    torch.save(found, out / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    by_processes(main)
