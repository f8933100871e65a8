"""Update rules against torch.optim step by step, and their derivatives against finite differences."""

import pytest
import torch
from torch import nn

from kshot.inner import (
    ASGD,
    SGD,
    Accumulate,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Alfa,
    Chain,
    ClipNorm,
    ClipValue,
    CoordinateLSTM,
    CoordinateMLP,
    Curvature,
    GatedRule,
    Kronecker,
    LearnedRate,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    unroll,
)

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
    "SGD, maximize": (
        SGD(0.01, momentum=0.9, weight_decay=0.1, maximize=True),
        lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=0.1, maximize=True),
    ),
    "Adam": (Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "Adam, decay": (
        Adam(0.05, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.05, (0.7, 0.9), 1e-3, 0.1),
    ),
    "AMSGrad": (
        Adam(0.3, betas=(0.6, 0.5), weight_decay=0.1, amsgrad=True, maximize=True),
        lambda p: torch.optim.Adam(p, 0.3, (0.6, 0.5), weight_decay=0.1, amsgrad=True, maximize=True),
    ),
    "AdamW": (AdamW(0.05, weight_decay=0.2), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.2)),
    "AdamW, AMSGrad": (
        AdamW(0.3, betas=(0.6, 0.5), weight_decay=0.2, amsgrad=True, maximize=True),
        lambda p: torch.optim.AdamW(p, 0.3, (0.6, 0.5), weight_decay=0.2, amsgrad=True, maximize=True),
    ),
    "RMSprop": (RMSprop(0.05), lambda p: torch.optim.RMSprop(p, 0.05)),
    "RMSprop, all": (
        RMSprop(0.05, smoothing=0.9, momentum=0.5, centered=True, weight_decay=0.1, eps=1e-4),
        lambda p: torch.optim.RMSprop(p, 0.05, 0.9, 1e-4, 0.1, 0.5, True),
    ),
    "RMSprop, maximize": (RMSprop(0.05, maximize=True), lambda p: torch.optim.RMSprop(p, 0.05, maximize=True)),
    "Adamax": (Adamax(0.05), lambda p: torch.optim.Adamax(p, 0.05)),
    "Adamax, all": (
        Adamax(0.05, betas=(0.7, 0.6), eps=1e-3, weight_decay=0.1, maximize=True),
        lambda p: torch.optim.Adamax(p, 0.05, (0.7, 0.6), 1e-3, 0.1, maximize=True),
    ),
    "NAdam": (NAdam(0.05), lambda p: torch.optim.NAdam(p, 0.05)),
    "NAdam, all": (
        NAdam(0.05, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1, momentum_decay=0.1, maximize=True),
        lambda p: torch.optim.NAdam(p, 0.05, (0.7, 0.9), 1e-3, 0.1, 0.1, maximize=True),
    ),
    "NAdam, decoupled": (
        NAdam(0.05, weight_decay=0.1, decoupled_weight_decay=True),
        lambda p: torch.optim.NAdam(p, 0.05, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "RAdam": (RAdam(0.05), lambda p: torch.optim.RAdam(p, 0.05)),
    "RAdam, all": (
        RAdam(0.05, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1, maximize=True),
        lambda p: torch.optim.RAdam(p, 0.05, (0.7, 0.9), 1e-3, 0.1, maximize=True),
    ),
    "RAdam, decoupled": (
        RAdam(0.05, betas=(0.7, 0.5), weight_decay=0.1, decoupled_weight_decay=True),
        lambda p: torch.optim.RAdam(p, 0.05, (0.7, 0.5), weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "Adagrad": (Adagrad(0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
    "Adagrad, all": (
        Adagrad(0.1, lr_decay=0.2, weight_decay=0.1, initial_accumulator_value=0.5, eps=1e-3, maximize=True),
        lambda p: torch.optim.Adagrad(p, 0.1, 0.2, 0.1, 0.5, 1e-3, maximize=True),
    ),
    "Adadelta": (Adadelta(), lambda p: torch.optim.Adadelta(p)),
    "Adadelta, all": (
        Adadelta(0.5, rho=0.7, eps=1e-2, weight_decay=0.1, maximize=True),
        lambda p: torch.optim.Adadelta(p, 0.5, 0.7, 1e-2, 0.1, maximize=True),
    ),
    "Rprop": (Rprop(0.1), lambda p: torch.optim.Rprop(p, 0.1)),
    "Rprop, all": (
        Rprop(0.1, etas=(0.4, 1.5), step_sizes=(0.03, 0.4), maximize=True),
        lambda p: torch.optim.Rprop(p, 0.1, (0.4, 1.5), (0.03, 0.4), maximize=True),
    ),
    "ASGD": (ASGD(0.1), lambda p: torch.optim.ASGD(p, 0.1)),
    "ASGD, all": (
        ASGD(0.02, lambd=0.5, alpha=0.6, t0=4, weight_decay=0.1, maximize=True),
        lambda p: torch.optim.ASGD(p, 0.02, 0.5, 0.6, 4, 0.1, maximize=True),
    ),
}
pairs = pytest.mark.parametrize(("rule", "optimizer"), PAIRS.values(), ids=PAIRS.keys())


def start():
    random = torch.Generator().manual_seed(1)
    return {n: torch.randn(s, generator=random, dtype=torch.float64) for n, s in {"a": (3, 2), "b": (2,)}.items()}


def loss(params):
    return torch.sin(params["a"] @ params["b"]).sum() + (params["a"] ** 2).mean() + params["b"].exp().sum()


@pytest.fixture
def wide():
    """torch.optim keeps some numbers of its state, such as the rate of ASGD, in the default dtype."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def assert_equal_steps(rule, optimizer, params, loss, schedule):
    """Compare with `torch.optim` step by step; a step of the schedule names the parameters that have a gradient."""
    leaves = {name: nn.Parameter(value.clone()) for name, value in params.items()}
    state, peer = rule.init(params), optimizer(leaves.values())
    for used in schedule:
        grads = torch.func.grad(loss)(params)
        params, state = rule.update({name: grads[name] for name in used}, state, params)
        peer.zero_grad()
        loss(leaves).backward()
        for name in leaves.keys() - set(used):
            leaves[name].grad = None
        peer.step()
        for name, value in params.items():
            torch.testing.assert_close(value, leaves[name].detach(), rtol=1e-11, atol=1e-13)
    return state, {name: peer.state[leaf] for name, leaf in leaves.items()}


@pairs
@pytest.mark.parametrize(
    "schedule",
    [["ab"] * 20, ["b", "b", "ab", "a", "", "ab", "b", "ab", "a", "a", "ab", "b", "ab", "ab"]],
    ids=["always", "sometimes"],
)
@pytest.mark.usefixtures("wide")
def test_a_rule_equals_torch_optim_at_each_step(rule, optimizer, schedule):
    assert_equal_steps(rule, optimizer, start(), loss, schedule)


@pairs
@pytest.mark.usefixtures("wide")
def test_a_rule_equals_torch_optim_for_complex_parameters(rule, optimizer):
    random = torch.Generator().manual_seed(2)
    params = {"a": torch.randn(3, generator=random, dtype=torch.complex128)}
    assert_equal_steps(
        rule, optimizer, params, lambda p: (p["a"].exp().abs() + p["a"].abs().square()).sum(), ["a"] * 12
    )


@pytest.mark.usefixtures("wide")
def test_the_average_of_asgd_equals_that_of_torch():
    state, peer = assert_equal_steps(*PAIRS["ASGD, all"], start(), loss, ["ab", "b"] * 5)
    for name in "ab":
        torch.testing.assert_close(state["slots"][name]["average"], peer[name]["ax"])


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
    many = {name: torch.stack([value, 2 * value]).requires_grad_() for name, value in start().items()}
    got = torch.vmap(lambda params: unroll(loss, params, rule, 3))(many)
    loop = [unroll(loss, {name: value[i] for name, value in many.items()}, rule, 3) for i in range(2)]
    one = {name: torch.stack([params[name] for params in loop]) for name in many}
    for name in one:
        torch.testing.assert_close(got[name], one[name])
    grads = [torch.autograd.grad(sum(torch.vmap(loss)(adapted)), list(many.values())) for adapted in (got, one)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


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


def test_clipping_by_value_equals_torch_and_is_differentiable_on_both_sides():
    grads = start()
    leaves = [nn.Parameter(torch.zeros_like(grad)) for grad in grads.values()]
    for leaf, grad in zip(leaves, grads.values()):
        leaf.grad = grad.clone()
    nn.utils.clip_grad_value_(leaves, 0.5)
    clipped, _ = ClipValue(0.5).apply_to(grads, (), grads)
    assert all(torch.equal(leaf.grad, got) for leaf, got in zip(leaves, clipped.values()))
    values = tuple(value.requires_grad_() for value in start().values())
    rule = Chain(ClipValue(0.5), SGD(0.1, momentum=0.9))
    assert torch.autograd.gradcheck(lambda a, b: loss(unroll(loss, {"a": a, "b": b}, rule, 3)), values)


def test_clipping_bounds_the_norm_of_all_dtypes_together_and_takes_no_gradients():
    mixed = {"a": torch.full((2,), 3.0, dtype=torch.float64), "b": torch.full((2,), 4.0), "c": torch.tensor(3 + 4j)}
    clipped, _ = ClipNorm(1.0).apply_to(mixed, (), {})
    assert [value.dtype for value in clipped.values()] == [value.dtype for value in mixed.values()]
    torch.testing.assert_close(sum(value.abs().square().sum().double() for value in clipped.values()).item(), 1.0)
    assert ClipNorm(1.0).apply_to({}, (), {}) == ({}, ())


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


def test_accumulation_takes_the_gradients_that_there_are_as_torch_does():
    rule, params = Accumulate(SGD(1.0, weight_decay=0.5), every=2), {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    state = rule.init(params)
    for grads in ({}, {"a": torch.tensor(4.0)}):
        params, state = rule.update(grads, state, params)
    assert {name: value.item() for name, value in params.items()} == {"a": -1.5, "b": 1.0}


NUMBERS = {
    "SGD": lambda x: SGD(x(0.1), momentum=x(0.5), dampening=x(0.2), weight_decay=x(0.3)),
    "nesterov": lambda x: SGD(x(0.1), momentum=x(0.5), nesterov=True),
    "Adam": lambda x: Adam(x(0.1), betas=(x(0.6), x(0.7)), eps=x(0.01), weight_decay=x(0.1)),
    "one beta": lambda x: Adam(0.1, betas=(0.9, x(0.8))),
    "AMSGrad": lambda x: Adam(0.3, betas=(x(0.6), x(0.5)), amsgrad=True),
    "AdamW": lambda x: AdamW(x(0.1), betas=(x(0.6), x(0.7)), eps=x(0.01), weight_decay=x(0.1)),
    "RMSprop": lambda x: RMSprop(x(0.1), smoothing=x(0.8), eps=x(0.01), momentum=x(0.3), weight_decay=x(0.1)),
    "centred": lambda x: RMSprop(0.1, smoothing=x(0.8), centered=True, eps=0.1),
    "Adamax": lambda x: Adamax(x(0.1), betas=(x(0.6), x(0.7)), eps=x(0.01), weight_decay=x(0.1)),
    "NAdam": lambda x: NAdam(x(0.1), betas=(x(0.6), x(0.7)), eps=x(0.01), weight_decay=x(0.1), momentum_decay=x(0.1)),
    "NAdam, decoupled": lambda x: NAdam(x(0.1), weight_decay=x(0.1), decoupled_weight_decay=True),
    "RAdam": lambda x: RAdam(x(0.1), betas=(x(0.6), x(0.9)), eps=x(0.01), weight_decay=x(0.1)),
    "RAdam, short": lambda x: RAdam(0.1, betas=(0.6, x(0.5))),
    "Adagrad": lambda x: Adagrad(
        x(0.1), lr_decay=x(0.2), weight_decay=x(0.1), initial_accumulator_value=x(0.5), eps=x(0.01)
    ),
    "Adadelta": lambda x: Adadelta(x(0.5), rho=x(0.7), eps=x(0.01), weight_decay=x(0.1)),
    "Rprop": lambda x: Rprop(x(0.1), etas=(x(0.4), x(1.5))),
    "Rprop, clamped": lambda x: Rprop(x(0.5), step_sizes=(x(0.3), x(0.55))),
    "ASGD": lambda x: ASGD(x(0.1), lambd=x(0.2), alpha=x(0.6), weight_decay=x(0.1)),
    "ClipNorm": lambda x: Chain(ClipNorm(x(0.5)), SGD(0.1)),
    "ClipValue": lambda x: Chain(ClipValue(x(0.3)), SGD(0.1)),
    "CoordinateLSTM": lambda x: CoordinateLSTM(x(0.1)),
    "CoordinateMLP": lambda x: CoordinateMLP(x(0.1)),
}
numbers = pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS.keys())


def values_of(make):
    values = []
    make(lambda value: values.append(value) or value)
    return values


@numbers
@pytest.mark.usefixtures("wide")
def test_tensors_as_hyperparameters_have_the_derivative_of_central_differences(make):
    def outer(*tensors):
        remaining = iter(tensors)
        return loss(unroll(loss, start(), make(lambda _: next(remaining)), 9))

    tensors = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values_of(make)]
    assert torch.autograd.gradcheck(outer, tensors)
    grads = torch.autograd.grad(outer(*tensors), tensors)
    for grad, transformed in zip(grads, torch.func.grad(outer, tuple(range(len(tensors))))(*tensors)):
        torch.testing.assert_close(grad, transformed)


def test_a_hyperparameter_of_0_has_a_derivative_if_it_is_a_tensor():
    def outer(momentum, weight_decay):
        return loss(unroll(loss, start(), SGD(0.1, momentum=momentum, weight_decay=weight_decay), 5))

    for argument in (0, 1):
        numbers, step = [0.0, 0.0], 1e-6
        tensors = [torch.tensor(0.0, dtype=torch.float64, requires_grad=True) for _ in numbers]
        numbers[argument] = step
        expected = (outer(*numbers) - outer(0.0, 0.0)) / step
        assert expected.abs() > 0.1
        (got,) = torch.autograd.grad(outer(*tensors), tensors[argument])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=0.0)


@numbers
@pytest.mark.usefixtures("wide")
def test_parameters_as_hyperparameters_are_registered_and_change_nothing_else(make):
    rule, plain = make(lambda value: nn.Parameter(torch.tensor(value, dtype=torch.float64))), make(lambda value: value)
    if isinstance(rule, CoordinateLSTM | CoordinateMLP):
        rule.load_state_dict(plain.state_dict(), strict=False)
    added = len(list(rule.parameters())) - len(list(plain.parameters()))
    assert added == len(values_of(make))
    for a, b in zip(unroll(loss, start(), rule, 9).values(), unroll(loss, start(), plain, 9).values()):
        torch.testing.assert_close(a, b)


@numbers
def test_tensors_as_hyperparameters_leave_the_dtype_of_parameters(make):
    rule = make(lambda value: torch.tensor(value, dtype=torch.float64)).to("cpu")
    params = {"w": torch.tensor(1.0), "v": torch.ones(2)}
    for _ in range(2):
        params, _ = rule.update({name: value.sin() for name, value in params.items()}, rule.init(params), params)
    assert all(value.dtype == torch.float32 for value in params.values())


LEARNED = {
    "Alfa": lambda params: Alfa(params, 0.1, steps=2),
    "CoordinateLSTM": lambda params: CoordinateLSTM(0.1).double(),
    "CoordinateMLP": lambda params: CoordinateMLP(0.1).double(),
    "GatedRule": lambda params: GatedRule(0.1, keep=0.9).double(),
    "Curvature": lambda params: Chain(Curvature(params), SGD(0.1, weight_decay=0.1)),
    "Kronecker": lambda params: Chain(Kronecker(params), SGD(0.1, weight_decay=0.1)),
    "clipped": lambda params: Chain(ClipNorm(0.1), ClipValue(0.1), SGD(0.1, weight_decay=0.1)),
}


def perturbed(rule):
    for parameter in rule.parameters():
        nn.init.normal_(parameter, 0.3, 0.2)
    return rule


@pytest.mark.parametrize("make", LEARNED.values(), ids=LEARNED.keys())
def test_a_learned_rule_leaves_an_unused_parameter_and_its_state_as_they_are(make):
    params = start()
    rule = perturbed(make(params))
    grads = torch.func.grad(loss)(params)
    # with "a" unused in between, "b" unchanged by it: the next step of "a" is that of its state
    state = rule.update(grads, rule.init(params), params)[1]
    adapted, state_without = rule.update({"b": grads["b"]}, state, params)
    assert torch.equal(adapted["a"], params["a"])
    assert not torch.equal(adapted["b"], params["b"])
    if not isinstance(rule, Alfa):  # its rates depend on all gradients, and on the step
        other_order = {"b": grads["b"], "a": grads["a"]}
        expected = rule.update(grads, state, params)[0]["a"]
        assert torch.equal(rule.update(other_order, state_without, params)[0]["a"], expected)
    unused, _ = rule.update({}, state, params)
    assert all(torch.equal(unused[name], params[name]) for name in params)


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 3, 2, 2), ()])
@pytest.mark.parametrize("psd", [True, False])
def test_kronecker_multiplies_by_a_kronecker_product(shape, psd):
    grad = torch.randn(shape, dtype=torch.float64)
    transform = Kronecker({"w": grad}, psd=psd)
    torch.testing.assert_close(transform.apply_to({"w": grad}, (), {})[0]["w"], grad)
    perturbed(transform)
    left, right = transform.factors["w.left"], torch.eye(1, dtype=torch.float64)
    if len(shape) > 1:
        right = transform.factors["w.right"]
    if psd:
        left, right = left.T @ left, right.T @ right
    rows = grad.reshape(-1, len(left) * len(right))  # vec by rows
    expected = (torch.kron(left, right.T.contiguous()) @ rows.T).T.reshape(shape)
    torch.testing.assert_close(transform.apply_to({"w": grad}, (), {})[0]["w"], expected)
    if psd:
        assert (transform.apply_to({"w": grad}, (), {})[0]["w"] * grad).sum() >= 0


@pytest.mark.parametrize(("per", "steps"), [("tensor", None), ("tensor", 2), ("element", None), ("element", 3)])
@pytest.mark.parametrize("make", [SGD, Adam, AdamW, RMSprop, Adamax, NAdam, RAdam, Adagrad, Adadelta, ASGD])
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


def test_rates_of_a_step_go_by_the_steps_of_the_solver_also_for_a_parameter_that_was_not_used():
    rate = LearnedRate({"w": torch.zeros(()), "v": torch.zeros(())}, 0.5, steps=3)
    with torch.no_grad():
        rate.rates["w"].copy_(torch.tensor([1.0, 2.0, 4.0]))
    rule, params = SGD(rate), {"w": torch.tensor(0.0), "v": torch.tensor(0.0)}
    state = rule.init(params)
    for grads in ({"v": torch.tensor(1.0)}, {}, {"w": torch.tensor(1.0)}):
        params, state = rule.update(grads, state, params)
    assert params["w"].item() == -4.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), "inner_lr must be above 0, got 0.0"),
        (lambda: SGD(0.1, nesterov=True), "nesterov needs momentum above 0"),
        (lambda: SGD(0.1, weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), "betas must be at least 0 and below 1 each"),
        (lambda: RMSprop(0.1, smoothing=2.0), "smoothing must be"),
        (lambda: ClipNorm(0.0), "max_norm must be above 0"),
        (lambda: ClipValue(-1.0), "max_value must be above 0"),
        (lambda: Rprop(0.1, etas=(1.2, 0.5)), "etas must be below 1 and above 1, got 1.2 and 0.5"),
        (lambda: Rprop(0.1, step_sizes=(2.0, 1.0)), "step_sizes must be a smallest and a largest size"),
        (lambda: Adadelta(0.1, rho=1.5), "rho must be at least 0 and at most 1"),
        (lambda: ASGD(0.1, t0=torch.tensor(3.0)), "t0 must be a number, got a tensor: no derivative goes through it"),
        (lambda: SGD(torch.tensor(-0.1)), "inner_lr must be above 0, got -0.1"),
        (lambda: Adam(0.1, betas=(0.9, nn.Parameter(torch.tensor(1.5)))), "betas must be at least 0 and below 1 each"),
        (lambda: SGD(torch.tensor([0.1])), r"inner_lr must be a number or a real tensor of shape \(\), got .* \(1,\)"),
        (lambda: SGD(0.1, momentum=torch.tensor(1)), "momentum must be a number or a real tensor"),
        (lambda: LearnedRate(start(), torch.tensor(0.1)), "inner_lr must be a number, got a tensor"),
        (lambda: Alfa(start(), torch.tensor(0.1), steps=1), "inner_lr must be a number, got a tensor"),
        (lambda: GatedRule(0.1, keep=torch.tensor(0.9)), "keep must be a number, got a tensor"),
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
