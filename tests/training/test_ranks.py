"""Two processes that share the tasks of a step train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training.in_ranks import trained
from zoo import ZOO

import kshot
from kshot.training.ranks import Ranks

TESTS = Path(__file__).parents[1]
RANDOM = ("p>m>f",)
"""Learners that draw random numbers, of which each process has its own."""


def by_two(trainings: list[tuple[str, str, int]], out: Path) -> list[dict]:
    """What two processes end with."""
    torchrun = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, str(TESTS / "training" / "in_ranks.py"), json.dumps(trainings), str(out)]
    paths = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def check_equal(trainings: list[tuple[str, str, int]], ends: list[dict]) -> None:
    """Both processes end with the same bits, and with what one process ends with but for rounding."""
    for training, first, second in zip(trainings, *(end["trained"] for end in ends)):
        alone = trained(*training)
        for name, value in alone["weights"].items():
            assert torch.equal(first["weights"][name], second["weights"][name]), (training, name)
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-10, atol=1e-10)
        assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        assert first["per_task"] == second["per_task"]
        for metric, values in alone["per_task"].items():
            assert first["per_task"][metric] == pytest.approx(values, abs=1e-9), (training, metric)


def test_two_processes_train_as_one_and_fail_together(tmp_path: Path) -> None:
    trainings = [("maml, running BatchNorm", "loop", 3), ("cnp", "vmap", 20)]
    ends = by_two(trainings, tmp_path)
    check_equal(trainings, ends)
    refused = [end["refused"] for end in ends]  # task 6 is the second of step 1, and so of process 1
    assert refused == ["RuntimeError: process 1: task 6 is damaged", "ValueError: task 6 is damaged"]


@pytest.mark.slow
def test_two_processes_train_every_learner_as_one(tmp_path: Path) -> None:
    names = [name for name, row in ZOO.items() if row.make(3).trained_parameters() and name not in RANDOM]
    trainings = [(name, mode, 20) for name in names for mode in ("loop", "vmap")]
    check_equal(trainings, by_two(trainings, tmp_path))


def test_a_step_of_fewer_tasks_than_processes_is_refused() -> None:
    assert list(Ranks(1, 3).part_of(range(10, 17))) == [11, 14]
    with pytest.raises(ValueError, match="set tasks_per_step to at least 3"):
        Ranks(0, 3).part_of(range(2))
    assert kshot.training.ranks.ranks() == (0, 1)
