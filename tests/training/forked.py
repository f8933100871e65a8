"""A group of processes that one process forks, which has imported everything."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist


def by_processes(work: Callable[[], object], folder: Path, count: int = 2) -> None:
    """Do something in several processes that are a group, as torchrun starts them; the folder is for their meeting."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_member, args=(work, folder, rank, count)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(1)


def _member(work: Callable[[], object], folder: Path, rank: int, count: int) -> None:
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=count)
    work()
    dist.destroy_process_group()
