"""BatchNorm with written-out derivatives, and images with their channels last, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import Batch, Task, maml
from kshot.inner.batch_norm import batch_norm
from kshot.inner.functional import Function
from kshot.inner.memory_format import channels_last

SHAPES = [(6, 3), (4, 3, 5), (4, 3, 2, 5)]


def normed(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    sizes = shape, (shape[1],), (shape[1],)
    return tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_that_of_pytorch(shape):
    z, weight, bias = normed(shape)
    expected = F.batch_norm(z, None, None, weight, bias, training=True, eps=1e-3)
    torch.testing.assert_close(batch_norm(z, weight, bias, 1e-3), expected)
    torch.testing.assert_close(batch_norm(z, None, None, 1e-3), F.batch_norm(z, None, None, training=True, eps=1e-3))


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_has_its_first_second_and_third_derivative(shape):
    inputs = normed(shape)

    def call(*args):
        return batch_norm(*args, 1e-5)

    def slopes(*args):
        return torch.autograd.grad(call(*args).sin().sum(), args, create_graph=True)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(slopes, inputs)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_come_last_in_memory_and_values_stay(channels):
    images = torch.randn(2, channels, 4, 5)
    laid_out = channels_last({"images": images, "ids": torch.arange(3)})
    assert torch.equal(laid_out["images"], images)
    assert laid_out["images"].stride() == (20 * channels, 1, 5 * channels, channels)
    assert channels_last(laid_out["images"]) is laid_out["images"]


class OfItsMemory(nn.Module):
    """A network whose author counted on the usual layout."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(24, 2)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = torch.as_strided(x, (len(x), 4, 6, 2), x.stride())
        return self.head(F.max_pool2d(x, 2).repeat(1, 2, 1, 1).view(len(x), -1))


@pytest.mark.parametrize("model", [OfItsMemory(), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(), nn.Flatten(1))])
def test_a_module_that_depends_on_the_layout_gives_what_it_gave(model):
    images = torch.randn(5, 1, 8, 4)
    torch.manual_seed(3)
    expected = model(images)
    torch.manual_seed(3)
    torch.testing.assert_close(Function(model).query({}, {}, images), expected)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.LeakyReLU(0.1, True)])
def test_pooling_before_the_activation_changes_no_derivative(activation):
    """Values from a few integers, so that most windows have ties."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), activation, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    images = torch.randint(-2, 3, (6, 1, 4, 4), dtype=torch.float64)
    batch = Batch.of(images, torch.arange(6) % 2, ways=2)
    task = Task(batch, batch)
    maml(model, inner_lr=0.3, steps=2)(task).backward()
    found = [p.grad for p in model.parameters()]

    params = dict(model.named_parameters())
    for _ in range(2):
        loss = F.cross_entropy(torch.func.functional_call(model, params, images), batch.targets)
        slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: p - 0.3 * slope for (name, p), slope in zip(params.items(), slopes)}
    loss = F.cross_entropy(torch.func.functional_call(model, params, images), batch.targets)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(found, list(expected))


def test_tasknorm_blends_the_moments_of_the_support_with_those_of_each_image():
    """As written in arXiv:2003.03284, for the support and for a query under the support's moments."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten()).double()
    learner = kshot.protonet(model, batchnorm="tasknorm").double()
    nn.init.constant_(learner.task_norm.slope, 0.3)
    nn.init.constant_(learner.task_norm.offset, -1.0)
    support, query = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64).unbind()
    alpha = torch.sigmoid(torch.tensor(0.3 * 4 - 1.0).double())

    def normed(images):
        mean, var = support.mean((0, 2, 3))[:, None, None], support.var((0, 2, 3), correction=0)[:, None, None]
        own, own_var = images.mean((2, 3), keepdim=True), images.var((2, 3), correction=0, keepdim=True)
        mixed = alpha * mean + (1 - alpha) * own
        spread = alpha * (var + (mean - mixed) ** 2) + (1 - alpha) * (own_var + (own - mixed) ** 2)
        return F.softplus((images - mixed) / (spread + 1e-5).sqrt()).flatten(1)

    state = learner.adapt(Batch(support, torch.eye(4).double(), torch.ones(4).double()))
    torch.testing.assert_close(state["head"]["prototypes"] + state["head"]["reference"], normed(support))
    found = learner.predict(state, query)
    torch.testing.assert_close(found, -torch.cdist(normed(query), normed(support)).square())
    found.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in learner.task_norm.parameters())
    assert not learner.transductive
    assert kshot.protonet(nn.Flatten(), batchnorm="tasknorm").task_norm is None
