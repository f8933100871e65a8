"""Processes as torchrun starts them, forked by one that has imported everything."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable


def by_processes(work: Callable[[], object], count: int = 2) -> None:
    """Do something in several processes, each with the environment variables of a member of a group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    context = multiprocessing.get_context("fork")
    own = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
    processes = [context.Process(target=_work_with, args=(work, shared | each)) for each in own]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))


def _work_with(work: Callable[[], object], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    work()
