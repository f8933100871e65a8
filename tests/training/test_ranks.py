"""Two processes that share the tasks of a step train as one does."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from training.in_ranks import evaluated, in_float16, trained
from zoo import ZOO, make_task

import kshot
from kshot.learner import predict_query
from kshot.training.fit import seeded
from kshot.training.ranks import Ranks, _packed, _unpacked

TESTS = Path(__file__).parents[1]
BOUNDS = {"partial pooling": 1e-6, "partial pooling, an embedding": 1e-8, "metaoptnet, svm": 1e-9}
"""Differences that rounding makes, over 1e-10.

The tasks of partial pooling have no noise, so that the covariance of a task is nearly singular: in one process, too,
the meta-gradient at the fit changes by 1e-5 of itself if the tasks are stacked in two parts. The SVM is solved in 20
steps.
"""
RANDOM = ("p>m>f",)
"""Learners that draw random numbers, of which each process has its own."""


def by_two(trainings: list[tuple[str, str, int]], out: Path, *evaluated: str) -> list[dict]:
    """What two processes end with."""
    command = [sys.executable, "-m", "training.in_ranks", json.dumps(trainings), str(out), *evaluated]
    paths = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


def without_gradient(model: nn.Module) -> set[str]:
    """The biases before a BatchNorm: their gradient is rounding alone, which Adam divides by its size."""
    return {
        f"{place}.{before}.bias"
        for place, layers in model.named_modules()
        if isinstance(layers, nn.Sequential)
        for (before, _), (_, layer) in pairwise(layers.named_children())
        if isinstance(layer, nn.BatchNorm2d)
    }


def check_equal(trainings: list[tuple[str, str, int]], ends: list[dict]) -> None:
    """Both processes end with the same bits, and with what one process ends with but for rounding."""
    for training, first, second in zip(trainings, *(end["trained"] for end in ends)):
        alone, most = trained(*training), BOUNDS.get(training[0], 1e-10)
        loose = without_gradient(ZOO[training[0]].make(3))
        for name, value in alone["weights"].items():
            assert torch.equal(first["weights"][name], second["weights"][name]), (training, name)
            bound = 1e-9 if name in loose else most
            torch.testing.assert_close(first["weights"][name], value, rtol=bound, atol=bound, msg=f"{training} {name}")
        assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=most)
        assert first["per_task"] == second["per_task"]
        for metric, values in alone["per_task"].items():
            assert first["per_task"][metric] == pytest.approx(values, abs=max(most, 1e-9)), (training, metric)


def test_two_processes_train_as_one_and_fail_together(tmp_path: Path) -> None:
    trainings = [("maml, running BatchNorm", "loop", 3), ("cnp", "vmap", 20)]
    names = ["maml, running BatchNorm", "protonet", "cnp"]
    ends = by_two(trainings, tmp_path, *names)
    check_equal(trainings, ends)
    refused = [end["refused"] for end in ends]  # task 6 is the second of step 1, and so of process 1
    assert refused == ["RuntimeError: process 1: task 6 is damaged", "ValueError: task 6 is damaged"]
    check_led(names, ends[0]["led"])
    assert ends[0]["hung"].startswith("another process of the run ended, or did not answer in time: ")
    check_scaled(*(end["in float16"] for end in ends))


def check_scaled(first: dict, second: dict) -> None:
    """Both processes halve the scale of float16 together, and have the losses of one process."""
    alone = in_float16()
    for name, value in first["weights"].items():
        assert torch.equal(second["weights"][name], value), name
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=0.01)
    assert first["scale"] == second["scale"]
    assert 10 < first["scale"]["exponent"] < 40
    assert first["scale"]["finite"] >= 1


def check_led(names: list[str], led: dict) -> None:
    """Process 0 has what it would compute alone, of which process 1 has computed its part."""
    assert led["shared"] == [(-1, 0), (0, 0), *((item, (item - 1) % 2) for item in range(1, 10))]
    alone = [(item, 0) for item in range(-5, 35, 3)]
    assert led["failing"] == alone, "item 10 is of process 1, whose part process 0 does then"
    assert led["nested"] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 0)]
    assert led["not sent"] == led["not led"] == led["cheap"] == [(item, 0) for item in range(4)]
    assert led["refused"] == "task 6 is damaged"
    for name in names:
        alone, shared = evaluated(name), led["evaluated"][name]
        assert shared.per_task == alone.per_task, name
        assert shared.metrics == alone.metrics
        assert shared.episodes_sha256 == alone.episodes_sha256
        assert shared.episodes == alone.episodes
        assert shared.calibration == alone.calibration


@pytest.mark.slow
def test_two_processes_train_every_learner_as_one(tmp_path: Path) -> None:
    names = [name for name, row in ZOO.items() if row.make(3).trained_parameters() and name not in RANDOM]
    trainings = [(name, mode, 20) for name in names for mode in ("loop", "vmap")]
    check_equal(trainings, by_two(trainings, tmp_path))


@pytest.mark.parametrize("name", ZOO)
def test_every_learner_can_be_sent_to_another_process(name: str) -> None:
    row = ZOO[name]
    learner, task = row.make(3).eval(), make_task(row, seed=1)
    again = _unpacked(_packed(learner))
    with torch.no_grad():
        expected, found = (figures_of(each, task) for each in (learner, again))
    assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def figures_of(learner: kshot.Learner, task: kshot.Task) -> dict[str, float]:
    with seeded(0):
        prediction = predict_query(learner, learner.adapt(task.support), task.query)
    return {name: float(value) for name, value in learner.objective.metrics(prediction, task.query).items()}


def test_a_view_is_sent_without_what_it_does_not_show() -> None:
    whole = torch.randn(1000, 100)
    content = _packed({"row": whole[3]})
    assert len(content) < 10_000
    assert torch.equal(_unpacked(content)["row"], whole[3])


def test_a_step_of_fewer_tasks_than_processes_is_refused() -> None:
    assert list(Ranks(1, 3).part_of(range(10, 17))) == [11, 14]
    with pytest.raises(ValueError, match="set tasks_per_step to at least 3"):
        Ranks(0, 3).part_of(range(2))
    assert kshot.training.ranks.ranks() == (0, 1)
