"""What a backward pass repeats (`torch.utils.checkpoint`) is what the forward pass ran: operations and random numbers.

The right values are those of the same module without checkpoints, trained by plain PyTorch.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import kshot
from kshot import Batch, Task, objectives
from kshot.inner import SGD
from kshot.inner.functional import Function
from kshot.inner.solvers import Unrolled
from kshot.inner.unrolling import recomputing
from kshot.learners import imaml
from kshot.learners.gradient.gradient_learner import GradientLearner

RATE, STEPS = 0.2, 3


class Part(nn.Module):
    """A function (part, hidden) of a hidden layer, which a backward pass repeats, or not."""

    def __init__(self, function, repeats: bool):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.scale, self.sizes = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6, 1))
        self.function, self.repeats = function, repeats

    def forward(self, x):
        hidden, function = self.first(x), lambda h: self.function(self, h)
        return self.last(checkpoint(function, hidden, use_reentrant=False) if self.repeats else function(hidden))


RANDOM = {
    "RReLU": lambda part, h: nn.RReLU(0.1, 0.9)(h),
    "RReLU in place": lambda part, h: nn.RReLU(0.1, 0.9, inplace=True)(h * 2),
    "RReLU of one slope": lambda part, h: nn.RReLU(0.2, 0.2)(h),
    "F.rrelu": lambda part, h: F.rrelu(h, 0.1, 0.9, part.training),
    "torch.rrelu": lambda part, h: torch.rrelu(h, 0.1, 0.9, part.training),
    "torch.rrelu_": lambda part, h: torch.rrelu_(h.sin(), 0.1, 0.9, part.training),
    "dropout": lambda part, h: F.dropout(h, 0.4, part.training),
    "noise": lambda part, h: h + 0.3 * torch.randn_like(h),
}
REPLACED = {
    "a layer of BatchNorm": lambda part, h: part.norm(h).tanh(),
    "a function of BatchNorm": lambda part, h: F.batch_norm(h, None, None, part.scale, None, True).tanh(),
    "layer normalisation": lambda part, h: F.layer_norm(h, (6,), part.scale),
    "group normalisation": lambda part, h: F.group_norm(h, 2, part.scale),
    "weight normalisation": lambda part, h: (
        h @ torch._weight_norm(part.last.weight.mT, part.sizes, 0) @ part.last.weight
    ),
    "attention": lambda part, h: F.scaled_dot_product_attention(h[None], h[None].sin(), h[None])[0],
    "a function in a function": lambda part, h: checkpoint(
        lambda g: F.group_norm(g, 2, part.scale), h.sin(), use_reentrant=False
    ),
}


def build(name: str, repeats: bool) -> Part:
    torch.manual_seed(1)
    return Part((RANDOM | REPLACED)[name], repeats).double()


def task() -> Task:
    generator = torch.Generator().manual_seed(2)
    inputs, targets = (torch.randn(9, size, generator=generator, dtype=torch.float64) for size in (4, 2))
    batch = Batch(inputs, targets, torch.ones(9, dtype=torch.float64))
    return Task(batch.rows(slice(5)), batch.rows(slice(5, None)))


def learner_of(model: nn.Module) -> GradientLearner:
    return GradientLearner(model, objectives.mse, Unrolled(SGD(RATE), STEPS))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", RANDOM)
def test_adaptation_equals_training_without_checkpoints(name, training):
    model, data = build(name, repeats=True).train(training), task()
    trained = build(name, repeats=False).train(training)
    learner = learner_of(model)
    torch.manual_seed(3)
    state = learner.adapt(data.support)
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(trained.parameters(), RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(trained(data.support.inputs), data.support.targets).backward()
        optimizer.step()
    torch.manual_seed(4)
    expected = trained(data.query.inputs).detach()
    torch.manual_seed(4)
    torch.testing.assert_close(learner.predict(state, data.query.inputs), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [*RANDOM, *REPLACED])
def test_the_outer_gradient_is_that_without_checkpoints(name):
    grads = []
    for repeats in (True, False):
        model = build(name, repeats)
        torch.manual_seed(3)
        learner_of(model)(task()).backward()
        grads.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][key], rtol=1e-9, atol=1e-11)
    assert grads[0]["first.weight"].abs().max() > 1e-4


class Reentrant(nn.Module):
    """A hidden layer that is repeated by the older kind of checkpoint, below a head."""

    def __init__(self, first: nn.Module):
        super().__init__()
        self.first, self.hidden, self.head = first, nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(checkpoint(self.hidden, self.first(x.requires_grad_()), use_reentrant=True))


@pytest.mark.parametrize("first", [nn.Identity(), nn.Linear(4, 4)], ids=["first", "after another"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_reentrant_checkpoint_is_refused_by_inner_steps(first, recompute):
    learner = learner_of(Reentrant(first).double())
    with pytest.raises(RuntimeError, match=r"the model \(Reentrant\) runs a part .* use use_reentrant=False"):
        learner.adapt(task().support)
    with recomputing(recompute), pytest.raises(RuntimeError, match=r"use use_reentrant=False"):
        learner(task())


def test_a_reentrant_checkpoint_is_right_without_inner_steps():
    """`protonet` runs all of the graph backward."""
    grads = []
    for reentrant in (True, False):
        torch.manual_seed(0)
        model = Reentrant(nn.Linear(4, 4)).double()
        if not reentrant:
            model.forward = lambda x, model=model: model.head(model.hidden(model.first(x)))
        data = task()
        labels = F.one_hot(torch.arange(9) % 2).double()
        batches = [Batch(batch.inputs, rows, batch.weight) for batch, rows in zip(data, (labels[:5], labels[5:]))]
        kshot.protonet(model)(Task(*batches)).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*grads):
        torch.testing.assert_close(found, expected)


def test_a_checkpoint_is_refused_by_implicit_differentiation():
    learner = imaml(build("layer normalisation", repeats=True), inner_lr=RATE, objective=objectives.mse)
    with pytest.raises(RuntimeError, match=r"the model \(Part\) repeats its forward in the backward pass, which .*"):
        learner(task()).backward()


def masked(part, h):
    with torch.no_grad():
        mask = (h > 0.1).to(h.dtype)
    return h * mask * part.scale


def test_inputs_of_a_reentrant_checkpoint_are_taken():
    """An encoder that does not adapt may be checkpointed in any way."""
    encoder, data = nn.Linear(4, 4).double(), task().support
    features = checkpoint(encoder, data.inputs.requires_grad_(), use_reentrant=True)
    model = Part(masked, repeats=True).double()
    output, _ = Function(model).adapting(dict(model.named_parameters()), {}, data._replace(inputs=features))
    output.sum().backward()
    assert encoder.weight.grad.abs().max() > 0


class _checkpoint_hook(torch.autograd.graph.saved_tensors_hooks):
    """As that of a version of PyTorch that keeps elsewhere what it repeats."""

    def __init__(self):
        super().__init__(lambda tensor: tensor, lambda tensor: tensor)


def kept_elsewhere(part, h):
    with _checkpoint_hook():
        return h.tanh()


def test_a_checkpoint_of_an_unknown_kind_is_refused():
    model = Part(kept_elsewhere, repeats=False).double()
    with pytest.raises(RuntimeError, match="the model repeats a function .* switch checkpointing off"):
        learner_of(model).adapt(task().support)
