"""One learner that many threads call: every answer is that of a single thread, and the module stays as it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fuzz.checks import Snapshot, make_learner, make_task
from fuzz.expressions import normal
from fuzz.grammar import Case
from torch import nn

THREADS = 8


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.PReLU()
        self.body = nn.Sequential(nn.Linear(4, 8), shared, nn.LayerNorm(8), nn.Linear(8, 8), shared)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.body(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(self.body(x))[0].mean(1))


MODULES = {"mlp": (Mlp, (4,)), "conv": (Conv, (1, 6, 6)), "attention": (Attention, (3, 4))}


def count_wrong_answers(case: Case, calls: int) -> int:
    """Wrong answers of `adapt` and `predict` when each thread makes `calls` calls; and the module must not change."""
    module = case.build()
    learner, before = make_learner(case, module), Snapshot(module)
    tasks = [make_task(case, number) for number in range(4)]
    flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        states = [learner.adapt(task.support) for task in tasks]
        expected = [learner.predict(state, task.query.inputs) for state, task in zip(states, tasks)]

    def work(thread: int) -> int:
        wrong = 0
        with torch.no_grad():
            for call in range(calls):
                number = (thread + call) % len(tasks)
                try:
                    state = learner.adapt(tasks[number].support) if call % 8 == 0 else states[number]
                    answer = learner.predict(state, tasks[number].query.inputs)
                    wrong += not torch.allclose(answer, expected[number], rtol=1e-12, atol=1e-13)
                except (RuntimeError, ValueError, KeyError, AttributeError, TypeError):
                    wrong += 1
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        wrong = sum(pool.map(work, range(THREADS)))
    assert before.differences(module) == []
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()) == flags
    return wrong


def thread_case(name: str) -> Case:
    """A module that threads call."""
    made, shape = MODULES[name]
    return Case(f"threads {name}", "", normal(*shape), made=made, steps=1)


@pytest.mark.parametrize("name", MODULES)
def test_threads(name):
    assert count_wrong_answers(thread_case(name), 200 // len(MODULES)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_many_calls_by_threads(name):
    assert count_wrong_answers(thread_case(name), 5_000) == 0
