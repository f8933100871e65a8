"""Counted costs against closed forms."""

import pytest
import torch
from torch import nn
from zoo import ZOO, make_task

import kshot
from kshot import Batch, Task, objectives
from kshot.evaluation.cost import cost


def mlp_task(n: int = 10, m: int = 7) -> Task:
    return Task(*(Batch.of(torch.ones(rows, 3), torch.ones(rows, 2)) for rows in (n, m)))


def test_a_gradient_step_on_an_mlp_costs_what_its_matrix_products_do():
    model, steps = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), 4
    found = cost(kshot.maml(model, inner_lr=0.1, steps=steps, objective=objectives.mse), mlp_task())
    forward = 2 * (3 * 5 + 5 * 2)
    backward = forward + 2 * 5 * 2  # each weight's gradient, and the hidden layer's
    assert found.adapt_flops == steps * 10 * (forward + backward)
    assert found.predict_flops == 7 * forward
    assert found.num_parameters == found.state_size == 3 * 5 + 5 + 5 * 2 + 2
    assert found.state_bytes == 4 * found.state_size


def test_a_convolution_counts_as_one():
    learner = kshot.protonet(nn.Conv2d(1, 4, 3, padding=1))
    batch = Batch.of(torch.zeros(6, 1, 8, 8), torch.tensor([0, 1] * 3), ways=2)
    convolution, features = 2 * 6 * 64 * 4 * 9, 4 * 64
    found = cost(learner, Task(batch, batch))
    assert found.adapt_flops == convolution + 2 * 6 * features + 2 * 2 * 6 * features  # the mean, the class means
    assert found.predict_flops == convolution + 2 * 6 * features * 2
    assert found.state_size == 3 * features + 2


def test_the_context_of_cavia_is_a_small_state():
    row = ZOO["cavia"]
    assert cost(row.make(3), make_task(row)).state_size == 4


@pytest.mark.parametrize("name", ZOO)
def test_every_learner_is_counted_and_left_as_it_was(name):
    row = ZOO[name]
    learner = row.make(3).train()
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    found = cost(learner, make_task(row))
    assert learner.training
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())
    assert found.num_parameters == sum(p.numel() for p in learner.parameters())
    assert (found.predict_flops > 0) == (name != "support mean")
    assert (found.adapt_flops > 0) == (
        name not in ("support mean", "transductive fine-tuning")
    )  # adapts as it predicts
