"""MAML against its update written out by hand, and the approximation against its own formula."""

import pytest
import torch
from torch import nn

import kshot
from kshot import Batch, Task, objectives
from kshot.training.step import meta_gradient
from kshot.types import one_hot, stack


def line_task(dtype=torch.float64) -> Task:
    x = torch.tensor([[1.0], [2.0], [-1.0], [0.5]], dtype=dtype)
    y = torch.tensor([[2.0], [3.0], [0.0], [1.0]], dtype=dtype)
    weight = torch.ones(2, dtype=dtype)
    return Task(Batch.of(x[:2], y[:2], weight=weight), Batch.of(x[2:], y[2:], weight=weight))


def line_gradient(w, x, y):
    """d/dw of mean (w x - y)^2, and its derivative."""
    return (2 * x * (w * x - y)).mean(), (2 * x * x).mean()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradient_of_a_line_equals_the_formula(steps, order):
    model = nn.Linear(1, 1, bias=False).double()
    task, rate = line_task(), 0.1
    (xs, ys, _), (xq, yq, _) = task
    w, jacobian = model.weight.detach().clone().squeeze(), 1.0
    for _ in range(steps):
        slope, curvature = line_gradient(w, xs, ys)
        w, jacobian = w - rate * slope, jacobian * (1 - rate * curvature)
    outer, _ = line_gradient(w, xq, yq)
    expected = outer * (jacobian if order == 2 else 1.0)

    learner = kshot.maml(model, inner_lr=rate, steps=steps, order=order, objective=objectives.mse)
    learner(task).backward()
    torch.testing.assert_close(model.weight.grad.squeeze(), torch.as_tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(learner.adapt(task.support)["params"]["weight"].squeeze(), w)


def test_second_order_equals_autograd_written_out_by_hand():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1] * 4)
    make = lambda part: Batch(x[part], nn.functional.one_hot(labels[part]).double(), torch.ones(4).double())  # noqa: E731
    task = Task(make(slice(0, 4)), make(slice(4, 8)))
    names, values = zip(*model.named_parameters())

    def loss(params, batch):
        w1, b1, w2, b2 = params
        logits = torch.tanh(batch.inputs @ w1.T + b1) @ w2.T + b2
        return nn.functional.cross_entropy(logits, batch.targets)

    params = list(values)
    for _ in range(2):
        grads = torch.autograd.grad(loss(params, task.support), params, create_graph=True)
        params = [p - 0.3 * g for p, g in zip(params, grads)]
    expected = torch.autograd.grad(loss(params, task.query), values)

    kshot.maml(model, inner_lr=0.3, steps=2)(task).backward()
    for name, parameter, grad in zip(names, values, expected):
        torch.testing.assert_close(parameter.grad, grad, msg=name)


def test_first_order_outer_gradient_is_the_query_gradient_at_the_adapted_weights():
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    task = line_task()
    learner = kshot.maml(model, inner_lr=0.1, steps=3, order=1, objective=objectives.mse)
    learner(task).backward()
    adapted = {n: p.detach().requires_grad_() for n, p in learner.adapt(task.support)["params"].items()}
    prediction = torch.func.functional_call(model, adapted, (task.query.inputs,))
    objectives.mse.loss(prediction, task.query).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, adapted[name].grad, msg=name)


def test_support_batchnorm_normalises_a_query_exactly_as_the_support():
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    x = torch.randn(6, 2) * 3 + 5
    batch = Batch.of(x, torch.tensor([0, 1] * 3), ways=2)
    learner = kshot.maml(model, inner_lr=0.1, steps=0)
    got = learner.predict(learner.adapt(batch), x[:1])
    model.train()
    torch.testing.assert_close(got, model(x)[:1])


def test_query_batchnorm_gives_the_same_meta_gradient_by_the_kernel_written_out_for_padding_and_under_vmap():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randn(8, 1, 4, 4).double(), one_hot(torch.tensor([0, 1] * 4), 2, torch.float64)
    query = Batch(x[4:], y[4:], torch.ones(4).double())
    even = Task(Batch(x[:4], y[:4], torch.full((4,), 2.0).double()), query)
    padded = Task(Batch(x[:5], y[:5], torch.tensor([1.0, 1, 1, 1, 0]).double()), query)
    learner = kshot.maml(model, inner_lr=0.3, steps=3, batchnorm="query")

    def gradients(task, mode):
        learner.zero_grad()
        meta_gradient(learner, stack([task]), mode)
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients(even, "loop")
    assert expected[2].abs().max() > 1e-6  # through the norm
    for task, mode in ((padded, "loop"), (even, "vmap"), (padded, "vmap")):
        torch.testing.assert_close(gradients(task, mode), expected)


def test_running_batchnorm_equals_the_module_in_evaluation_mode():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model.train()
    model(torch.randn(50, 2) * 3 + 5)
    x = torch.randn(4, 2)
    learner = kshot.maml(model, inner_lr=0.1, steps=0, batchnorm="running")
    state = learner.adapt(Batch.of(x, torch.tensor([0, 1, 0, 1]), ways=2))
    torch.testing.assert_close(learner.predict(state, x), model.eval()(x))


def test_a_batchnorm_used_twice_keeps_two_statistics():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 2)

        def forward(self, x):
            return self.out(self.norm(3 * self.norm(x) + 1))

    model, x = Twice(), torch.randn(6, 2)
    learner = kshot.maml(model, inner_lr=0.1, steps=0)
    state = learner.adapt(Batch.of(x, torch.tensor([0, 1] * 3), ways=2))
    assert sorted(state["statistics"]) == ["norm", "norm#2"]
    torch.testing.assert_close(learner.predict(state, x), model.train()(x))


def test_running_statistics_that_do_not_exist_are_named():
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2))
    learner = kshot.maml(model, inner_lr=0.1, batchnorm="running")
    with pytest.raises(ValueError, match="keeps no running statistics"):
        learner.adapt(Batch.of(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), ways=2))


def test_a_frozen_parameter_neither_adapts_nor_learns():
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model[0].weight.requires_grad_(False)
    learner = kshot.maml(model, inner_lr=0.1, objective=objectives.mse)
    assert "0.weight" not in learner.adapt(line_task().support)["params"]
    learner(line_task()).backward()
    assert model[0].weight.grad is None


def test_inputs_may_be_dicts_and_tuples():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 1), nn.Linear(3, 1)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    model = Two()
    left, right, y = torch.randn(4, 2), torch.randn(4, 3), torch.randn(4, 1)
    learner = kshot.maml(model, inner_lr=0.1, objective=objectives.mse)
    named = learner.predict(learner.adapt(Batch.of({"left": left, "right": right}, y)), {"left": left, "right": right})
    placed = learner.predict(learner.adapt(Batch.of((left, right), y)), (left, right))
    torch.testing.assert_close(named, placed)


def test_steps_may_be_given_when_adapting():
    learner = kshot.maml(nn.Linear(1, 1), inner_lr=0.1, steps=1, objective=objectives.mse)
    support = Batch.of(torch.randn(4, 1), torch.randn(4, 1))
    twice = learner.adapt(support, steps=2)["params"]["weight"]
    assert torch.equal(learner.adapt(support, steps=0)["params"]["weight"], learner.model.weight)
    assert not torch.equal(twice, learner.adapt(support)["params"]["weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 3}, "order must be one of"),
        ({"inner_lr": -1.0}, "inner_lr must be above 0"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"adaptable": "body.*"}, "no trainable parameter .* it has: weight, bias"),
        ({"batchnorm": "train"}, "batchnorm must be one of support, query, running"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        kshot.maml(nn.Linear(1, 1), **({"inner_lr": 0.1} | arguments))


def test_other_ways_than_the_model_has_are_named():
    learner = kshot.maml(nn.Linear(4, 5), inner_lr=0.1)
    with pytest.raises(ValueError, match=r"predicts \(3, 5\) but the targets are \(3, 3\)"):
        learner.adapt(Batch.of(torch.randn(3, 4), torch.arange(3), ways=3))
