"""Update rules against torch.optim step by step, and their derivatives against finite differences."""

import pytest
import torch
from torch import nn

from kshot.inner import SGD, Accumulate, Adam, AdamW, Chain, ClipNorm, LearnedRate, RMSprop, unroll

PAIRS = {
    "SGD": (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
    "dampening": (
        SGD(0.1, momentum=0.9, dampening=0.3, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, 0.3, 0.1),
    ),
    "nesterov": (
        SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, 0.8, 0.0, 0.01, True),
    ),
    "Adam": (Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "Adam, decay": (
        Adam(0.05, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.05, (0.7, 0.9), 1e-3, 0.1),
    ),
    "AdamW": (AdamW(0.05, weight_decay=0.2), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.2)),
    "RMSprop": (RMSprop(0.05), lambda p: torch.optim.RMSprop(p, 0.05)),
    "RMSprop, all": (
        RMSprop(0.05, smoothing=0.9, momentum=0.5, centered=True, weight_decay=0.1, eps=1e-4),
        lambda p: torch.optim.RMSprop(p, 0.05, 0.9, 1e-4, 0.1, 0.5, True),
    ),
}
pairs = pytest.mark.parametrize(("rule", "optimizer"), PAIRS.values(), ids=PAIRS.keys())


def start():
    random = torch.Generator().manual_seed(1)
    return {n: torch.randn(s, generator=random, dtype=torch.float64) for n, s in {"a": (3, 2), "b": (2,)}.items()}


def loss(params):
    return torch.sin(params["a"] @ params["b"]).sum() + (params["a"] ** 2).mean() + params["b"].exp().sum()


@pairs
def test_a_rule_equals_torch_optim_at_each_step(rule, optimizer):
    params, leaves = start(), {name: nn.Parameter(value) for name, value in start().items()}
    state, peer = rule.init(params), optimizer(leaves.values())
    for _ in range(15):
        params, state = rule.update(torch.func.grad(loss)(params), state, params)
        peer.zero_grad()
        loss(leaves).backward()
        peer.step()
        for name, value in params.items():
            torch.testing.assert_close(value, leaves[name].detach(), rtol=1e-12, atol=1e-14)


@pairs
def test_a_rule_is_differentiable_through_its_steps(rule, optimizer):
    values = tuple(value.requires_grad_() for value in start().values())
    assert torch.autograd.gradcheck(lambda a, b: loss(unroll(loss, {"a": a, "b": b}, rule, 3)), values)


@pairs
def test_a_parameter_without_gradient_makes_no_nan(rule, optimizer):
    params = start() | {"idle": torch.ones(2, dtype=torch.float64)}
    params = {name: value.requires_grad_() for name, value in params.items()}
    adapted = unroll(loss, params, rule, 2)
    grads = torch.autograd.grad(loss(adapted) + adapted["idle"].sum(), list(params.values()))
    assert all(torch.isfinite(grad).all() for grad in grads)


@pairs
def test_a_rule_runs_under_vmap(rule, optimizer):
    many = {name: torch.stack([value, 2 * value]) for name, value in start().items()}
    got = torch.vmap(lambda params: unroll(loss, params, rule, 3))(many)
    for i in range(2):
        one = unroll(loss, {name: value[i] for name, value in many.items()}, rule, 3)
        for name in one:
            torch.testing.assert_close(got[name][i], one[name])


def test_clipping_equals_torch_and_is_differentiable_on_both_sides():
    grads = start()
    leaves = [nn.Parameter(torch.zeros_like(grad)) for grad in grads.values()]
    for leaf, grad in zip(leaves, grads.values()):
        leaf.grad = grad.clone()
    nn.utils.clip_grad_norm_(leaves, 0.5)
    clipped, _ = ClipNorm(0.5).apply_to(grads, (), grads)
    for leaf, got in zip(leaves, clipped.values()):
        torch.testing.assert_close(got, leaf.grad, rtol=1e-5, atol=1e-6)
    values = tuple(value.requires_grad_() for value in start().values())
    for bound in (0.5, 100.0):
        rule = Chain(ClipNorm(bound), SGD(0.1, momentum=0.9))
        assert torch.autograd.gradcheck(lambda a, b, r=rule: loss(unroll(loss, {"a": a, "b": b}, r, 3)), values)


def test_gradients_of_zero_stay_zero_when_clipped():
    zero = torch.zeros(2, requires_grad=True)
    clipped, _ = ClipNorm(1.0).apply_to({"w": zero}, (), {})
    clipped["w"].sum().backward()
    assert torch.equal(zero.grad, torch.ones(2))


def test_accumulated_minibatches_equal_one_large_batch():
    x = torch.randn(6, 3, dtype=torch.float64)
    fit = lambda params, batch: (batch @ params["a"] @ params["b"] - 1).square().mean()  # noqa: E731
    small = unroll(fit, start(), Accumulate(Adam(0.1), every=3), list(x.split(2)) * 2)
    large = unroll(fit, start(), Adam(0.1), [x, x])
    for name in large:
        torch.testing.assert_close(small[name], large[name])


def test_a_chain_of_accumulation_waits_for_its_last_batch():
    rule = Accumulate(SGD(0.1), every=2)
    assert torch.equal(unroll(loss, start(), rule, 1)["a"], start()["a"])


@pytest.mark.parametrize(("per", "steps"), [("tensor", None), ("tensor", 2), ("element", None), ("element", 3)])
@pytest.mark.parametrize("make", [SGD, Adam, AdamW, RMSprop])
def test_learned_rates_begin_as_the_fixed_rate_and_learn(make, per, steps):
    rate = LearnedRate(start(), 0.1, per=per, steps=steps)
    rule = make(rate)
    assert set(map(id, rate.parameters())) == set(map(id, rule.parameters()))
    adapted, fixed = unroll(loss, start(), rule, 4), unroll(loss, start(), make(0.1), 4)
    for name in fixed:
        torch.testing.assert_close(adapted[name], fixed[name])
    loss(adapted).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in rule.parameters())


def test_rates_of_a_step_move_that_step_only():
    rate = LearnedRate({"w": torch.zeros(())}, 0.5, steps=2)
    with torch.no_grad():
        rate.rates["w"].copy_(torch.tensor([0.25, 0.0]))
    adapted = unroll(lambda params: params["w"] ** 2, {"w": torch.tensor(1.0)}, SGD(rate), 3)
    torch.testing.assert_close(adapted["w"], torch.tensor(0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), "inner_lr must be above 0, got 0.0"),
        (lambda: SGD(0.1, nesterov=True), "nesterov needs momentum above 0"),
        (lambda: SGD(0.1, weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), "betas must be at least 0 and below 1 each"),
        (lambda: RMSprop(0.1, smoothing=2.0), "smoothing must be"),
        (lambda: ClipNorm(0.0), "max_norm must be above 0"),
        (lambda: Chain(SGD(0.1), ClipNorm(1.0)), "any number of transforms followed by one rule, got: SGD, ClipNorm"),
        (lambda: Chain(), "got: nothing"),
        (lambda: Accumulate(SGD(0.1), every=0), "every must be at least 1"),
        (lambda: LearnedRate({}, 0.1, per="layer"), "per must be one of tensor, element, got 'layer'"),
        (lambda: LearnedRate({}, 0.1, steps=0), "steps must be at least 1"),
        (lambda: LearnedRate({"w": torch.ones(1)}, 0.1)("v", 0), "no value for the parameter 'v'; it was built for: w"),
        (lambda: unroll(loss, start(), SGD(0.1), 1, order=3), "order must be 2"),
        (lambda: unroll(loss, start(), SGD(0.1), -1), "steps must be at least 0"),
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
