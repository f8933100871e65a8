"""Programs as CUDA graphs, by a graph that repeats its program on the CPU; `test_gpu.py` has those of a GPU."""

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import kshot
from kshot.training import cuda_graph, replay
from kshot.training.step import MetaGradient

TASKS = kshot.sources.sinusoids(shots=5, queries=5)


class OnCpu(cuda_graph.Recording):
    """As a recording, reads and writes the same memory at each call."""

    made = 0

    def __init__(self, program: Any, arguments: Any) -> None:
        OnCpu.made += 1
        self.inputs = tree_map(torch.clone, arguments)
        self.outputs = program(*self.inputs)
        self.program, self.graph = program, self

    def replay(self) -> None:
        for kept, new in zip(tree_leaves(self.outputs), tree_leaves(self.program(*self.inputs))):
            kept.copy_(new)


class Refused(cuda_graph.Recording):
    """A recording that fails, as one that waits for the CPU."""

    def __init__(self, program: Any, arguments: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


def learner() -> kshot.Learner:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    return kshot.maml(model, inner_lr=0.05, steps=2, objective=kshot.objectives.mse)


def stack(start: int, count: int = 4) -> kshot.Task:
    return tree_map(torch.Tensor.double, TASKS.stack("train", range(start, start + count)))


def grads(of: kshot.Learner) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in of.parameters() if parameter.grad is not None]


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Programs are recorded as on a GPU."""
    monkeypatch.setattr(OnCpu, "made", 0)
    monkeypatch.setattr(replay, "on_gpu", lambda tree: True)
    monkeypatch.setattr(cuda_graph, "Recording", OnCpu)
    return monkeypatch


@pytest.mark.parametrize("chunk", [None, 2, 3])
def test_gradients_of_several_calls_are_added_and_parts_of_a_stack_averaged(as_on_gpu, chunk):
    found, expected = learner(), learner()
    traced, plain = MetaGradient(found, "traced", chunk=chunk), MetaGradient(expected, "vmap")
    for start in (0, 4, 8, 12):  # without zero_grad
        assert float(traced(stack(start))) == pytest.approx(float(plain(stack(start))), rel=1e-12)
    assert traced.engine == "traced", traced.choice
    for mine, other in zip(grads(found), grads(expected), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)
    assert OnCpu.made == (2 if chunk == 3 else 1)  # chunks of 3 and of 1


def test_weights_that_change_between_calls_are_read(as_on_gpu):
    found, expected = learner().float(), learner().float()
    options = {"steps": 8, "tasks_per_step": 4}
    losses = kshot.fit(found, TASKS, mode="traced", **options)
    assert losses == pytest.approx(kshot.fit(expected, TASKS, mode="vmap", **options), rel=1e-5)
    assert OnCpu.made == 1


def test_results_of_a_call_are_not_overwritten_by_the_next(as_on_gpu):
    of = learner()
    step = MetaGradient(of, "traced")
    losses = [step(stack(start)) for start in (0, 4)]
    assert losses[0] != losses[1]
    assert float(losses[0]) == pytest.approx(float(MetaGradient(learner(), "vmap")(stack(0))), rel=1e-12)


def test_a_program_that_cannot_be_recorded_runs_without_a_graph(as_on_gpu, caplog):
    as_on_gpu.setattr(cuda_graph, "Recording", Refused)
    found, expected = learner(), learner()
    step = MetaGradient(found, "traced")
    with caplog.at_level("INFO", logger="kshot"):
        for start in (0, 4, 8):
            loss = step(stack(start))
    assert step.engine == "traced"
    assert float(loss) == pytest.approx(float(MetaGradient(expected, "vmap")(stack(8))), rel=1e-12)
    assert [record.getMessage() for record in caplog.records].count(
        "kernels are launched one by one: operation not permitted when stream is capturing"
    ) == 1  # which is tried once


def test_random_numbers_are_not_recorded(as_on_gpu):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    of = kshot.maml(model, inner_lr=0.05, objective=kshot.objectives.mse)
    step = MetaGradient(of, "traced")
    step(TASKS.stack("train", range(3)))
    assert (step.engine, OnCpu.made) == ("traced", 0)
