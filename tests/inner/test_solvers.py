"""How solutions are differentiated, against closed forms and against each other."""

import copy
import pickle

import pytest
import torch
from torch import nn

from kshot.inner import (
    ASGD,
    SGD,
    Accumulate,
    Adam,
    AdamW,
    Chain,
    ClipNorm,
    Evolution,
    FirstOrder,
    GatedRule,
    Implicit,
    ImplicitRoot,
    LearnedRate,
    Truncated,
    Unrolled,
    trajectory,
    unroll,
    zero_order,
)

A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
B = torch.tensor([1.0, -2.0], dtype=torch.float64)
I = torch.eye(2, dtype=torch.float64)  # noqa: E741


def quadratic(params, shift=0.0):
    w = params["w"]
    return 0.5 * w @ A @ w - (B + shift) @ w


def jacobian(solver):
    start = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda w: solver(quadratic, {"w": w})["w"], start)


def test_the_unrolled_jacobian_of_a_quadratic_is_a_power():
    torch.testing.assert_close(jacobian(Unrolled(SGD(0.1), 4)), torch.linalg.matrix_power(I - 0.1 * A, 4))


def test_the_first_order_jacobian_is_the_identity():
    torch.testing.assert_close(jacobian(FirstOrder(SGD(0.1), 4)), I)


@pytest.mark.parametrize("last", [0, 1, 3, 9])
def test_the_truncated_jacobian_is_the_power_of_the_last_steps(last):
    expected = torch.linalg.matrix_power(I - 0.1 * A, min(last, 4))
    torch.testing.assert_close(jacobian(Truncated(SGD(0.1), 4, last=last)), expected)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_the_implicit_jacobian_is_the_formula(damping):
    solver = Implicit(SGD(0.2), 1, proximity=3.0, damping=damping, iterations=2)
    torch.testing.assert_close(jacobian(solver), 3.0 * torch.linalg.inv(A + (3.0 + damping) * I))


def test_neumann_converges_to_the_formula_and_is_its_series_on_the_way():
    far = Implicit(SGD(0.2), 1, proximity=3.0, method="neumann", iterations=60)
    torch.testing.assert_close(jacobian(far), 3.0 * torch.linalg.inv(A + 3.0 * I))
    near = Implicit(SGD(0.2), 1, proximity=3.0, method="neumann", iterations=2)
    torch.testing.assert_close(jacobian(near), I - A / 3 + A @ A / 9)


def test_the_implicit_minimum_and_all_its_derivatives_are_those_of_a_long_unrolled_loop():
    class Near(Unrolled):
        def forward(self, loss, params, steps=None):
            near = lambda moved: loss(moved) + (moved["w"] - params["w"]).square().sum()  # noqa: E731
            return super().forward(near, params, steps)

    found = []
    for solver in (Implicit(SGD(0.1), 300, proximity=2.0, iterations=2), Near(SGD(0.1), 300)):
        start = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
        other = torch.tensor([1.5, -0.2], dtype=torch.float64, requires_grad=True)
        uneven = lambda params, other=other: quadratic(params) + (params["w"] * other).exp().sum()  # noqa: E731
        adapted = solver(uneven, {"w": start})["w"]
        found.append([adapted, *torch.autograd.grad(adapted.sin().sum(), (start, other))])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["cg", "neumann"])
def test_implicit_under_vmap_is_implicit_in_a_loop(method):
    solver = Implicit(SGD(0.1), 20, proximity=3.0, method=method)
    start = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    shifts = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    uneven = lambda params, shift: quadratic(params, shift) + (params["w"] * shift).sin().sum()  # noqa: E731
    adapt = lambda shift: solver(uneven, {"w": start}, [shift] * 20)["w"].exp().sum()  # noqa: E731
    many = torch.autograd.grad(torch.vmap(adapt)(shifts).sum(), (start, shifts))
    one = torch.autograd.grad(sum(adapt(shift) for shift in shifts), (start, shifts))
    for a, b in zip(many, one):
        torch.testing.assert_close(a, b)


def test_the_strength_of_the_pull_is_learned_if_it_is_a_tensor():
    def outer(strength):
        start = {"w": torch.tensor([0.3, 0.7], dtype=torch.float64)}
        return Implicit(SGD(0.1), 400, proximity=strength, iterations=2)(quadratic, start)["w"].sin().sum()

    strength = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outer, (strength,))
    (expected,) = torch.autograd.grad(outer(strength), strength)
    torch.testing.assert_close(torch.func.grad(outer)(strength.detach()), expected)
    assert len(list(Implicit(SGD(0.1), 4, proximity=nn.Parameter(strength.detach())).parameters())) == 1


def test_an_unused_parameter_stays_under_the_pull_and_learns():
    start = {name: torch.ones(2, dtype=torch.float64, requires_grad=True) for name in ("w", "idle")}
    adapted = Implicit(Adam(0.1), 20, proximity=3.0)(lambda params: quadratic({"w": params["w"]}), start)
    assert torch.equal(adapted["idle"], start["idle"])
    (grad,) = torch.autograd.grad(adapted["idle"].sum(), start["idle"])
    torch.testing.assert_close(grad, torch.ones_like(grad))


def test_a_second_derivative_of_an_implicit_solution_raises_instead_of_being_wrong():
    start = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    solve = lambda w: Implicit(SGD(0.1), 9, proximity=2.0)(quadratic, {"w": w})["w"].exp().sum()  # noqa: E731
    (grad,) = torch.autograd.grad(solve(start), start, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.jacrev(torch.func.grad(solve))(start.detach())


GENERAL = torch.tensor([[2.0, 1.5, 0.0], [-1.0, 1.0, 0.5], [0.3, -0.7, 1.4]], dtype=torch.float64)
METHODS = {"gmres": 3, "bicgstab": 3, "normal_cg": 3, "neumann": 300}


def linear_condition(params, matrix, right):
    """Two parameters, so that the order and shapes of a system's parts matter."""
    residual = matrix @ torch.cat([params["a"], params["b"].flatten()]) - right
    return {"b": residual[1:].view(2, 1), "a": residual[:1]}


def linear_root(params, matrix, right):
    solution = torch.linalg.solve(matrix, right)
    return {"a": solution[:1], "b": solution[1:].view(2, 1)}


ORIGIN = {"a": torch.zeros(1, dtype=torch.float64), "b": torch.zeros(2, 1, dtype=torch.float64)}


def of_root(root, matrix, right):
    solution = root(ORIGIN, matrix, right)
    return (solution["a"].exp().sum() + solution["b"].sin().sum()) * right.sum()


@pytest.mark.parametrize(("method", "iterations"), METHODS.items())
def test_the_root_of_a_condition_that_is_not_symmetric_has_the_derivatives_of_the_closed_form(method, iterations):
    inputs = GENERAL.clone().requires_grad_(), torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(of_root(linear_root, *inputs), inputs)
    root = ImplicitRoot(linear_condition, linear_root, method=method, iterations=iterations, scale=0.3)
    got = torch.autograd.grad(of_root(root, *inputs), inputs)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["gmres", "bicgstab", "normal_cg"])
@pytest.mark.parametrize("iterations", [20, 60])
def test_iterations_after_convergence_change_nothing(method, iterations):
    inputs = GENERAL.clone().requires_grad_(), torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64, requires_grad=True)
    roots = [ImplicitRoot(linear_condition, linear_root, method=method, iterations=n) for n in (3, iterations)]
    few, many = (torch.autograd.grad(of_root(root, *inputs), inputs) for root in roots)
    for a, b in zip(few, many):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    zero = torch.autograd.grad(0.0 * of_root(roots[1], *inputs), inputs)
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in zero)


@pytest.mark.parametrize("method", METHODS)
def test_roots_under_vmap_are_roots_in_a_loop(method):
    root = ImplicitRoot(linear_condition, linear_root, method=method, iterations=METHODS[method], scale=0.3)
    random = torch.Generator().manual_seed(3)
    noise = torch.rand(4, 3, 3, generator=random, dtype=torch.float64)
    matrices = (GENERAL + 0.2 * noise).requires_grad_()
    rights = torch.randn(4, 3, generator=random, dtype=torch.float64, requires_grad=True)
    many = torch.vmap(lambda *inputs: of_root(root, *inputs))(matrices, rights)
    one = torch.stack([of_root(root, *inputs) for inputs in zip(matrices, rights)])
    torch.testing.assert_close(many, one)
    for a, b in zip(*(torch.autograd.grad(values.sum(), (matrices, rights)) for values in (many, one))):
        torch.testing.assert_close(a, b)
    # transforms in the other order
    per_task = torch.vmap(torch.func.grad(lambda right, matrix: of_root(root, matrix, right)))(rights, matrices)
    torch.testing.assert_close(per_task, b)


def test_parameters_in_the_condition_learn_and_the_initial_parameters_do_not():
    class FixedPoint(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(0.3 * GENERAL)

        def forward(self, params, x):
            return {"z": (self.weight @ params["z"] + x).tanh() - params["z"]}

    def find(params, x):
        with torch.no_grad():
            for _ in range(200):
                params = {"z": params["z"] + layer(params, x)["z"]}
        return params

    layer, start = FixedPoint(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    root = ImplicitRoot(layer, find, iterations=3)
    assert [name for name, _ in root.named_parameters()] == ["condition.weight"]

    def outer(weight, x):
        call = lambda candidate, x: torch.func.functional_call(layer, {"weight": weight}, (candidate, x))  # noqa: E731
        with torch.no_grad():
            layer.weight.copy_(weight)  # of the procedure
        return ImplicitRoot(call, find, iterations=3)({"z": start}, x)["z"]

    inputs = (0.3 * GENERAL).requires_grad_(), torch.tensor([0.1, 0.5, -0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outer, inputs)
    root({"z": start}, inputs[1])["z"].sum().backward()
    expected = torch.autograd.grad(outer(*inputs).sum(), inputs[0])[0]
    torch.testing.assert_close(layer.weight.grad, expected)
    assert start.grad is None


def test_a_procedure_may_use_autograd_and_leaves_no_trace():
    def descend(params, target):
        leaf = params["w"].clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], 0.2)
        for _ in range(200):
            optimizer.zero_grad()
            ((leaf - target).square().sum() / 2 + leaf.pow(4).sum() / 4).backward()
            optimizer.step()
        return {"w": leaf}

    stationary = lambda params, target: {"w": params["w"] - target + params["w"] ** 3}  # noqa: E731
    target = torch.tensor([0.4, -0.8], dtype=torch.float64, requires_grad=True)
    root = ImplicitRoot(stationary, descend, method="cg", iterations=2)({"w": torch.zeros_like(target)}, target)["w"]
    root.sum().backward()
    torch.testing.assert_close(target.grad, 1 / (1 + 3 * root.detach() ** 2))


def z_scores(samples, expected):
    """Standard errors between the mean of samples (n, ...) and what it should be."""
    return ((samples.mean(0) - expected) / (samples.std(0) / len(samples) ** 0.5)).abs()


@pytest.mark.parametrize("inner_population", [None, 2])
def test_the_evolutionary_derivative_is_unbiased(inner_population):
    torch.manual_seed(0)
    steps = 1 if inner_population else 3
    solver = Evolution(SGD(0.1), steps, population=1, sigma=0.5, inner_population=inner_population)
    cotangent = torch.tensor([1.0, -0.5], dtype=torch.float64)
    start = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    grads, values = [], []
    for _ in range(600):
        adapted = solver(quadratic, {"w": start})["w"]
        values.append(adapted.detach())
        grads.append(torch.autograd.grad(adapted @ cotangent, start)[0])
    samples = torch.stack(grads)
    assert samples.std(0).min() > 0
    # of a quadratic, smoothing changes no derivative
    assert z_scores(samples, torch.linalg.matrix_power(I - 0.1 * A, steps) @ cotangent).max() < 4
    assert z_scores(samples, cotangent).max() > 6  # the test can tell a wrong derivative
    expected = unroll(quadratic, {"w": start.detach()}, SGD(0.1), steps)["w"]
    if inner_population:
        assert z_scores(torch.stack(values), expected).max() < 4
    else:
        assert all(torch.equal(value, expected) for value in values)


def test_zero_order_gradients_are_unbiased_for_the_smoothed_function():
    torch.manual_seed(1)
    start = {"w": torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True), "v": torch.ones(1)}
    step = lambda params: (params["w"] > 0).double().sum() + params["v"].sum()  # noqa: E731
    grads = []
    for _ in range(2000):
        value = zero_order(step, start, population=2, sigma=0.7)
        assert value.item() == 2.0
        grads.append(torch.autograd.grad(value, start["w"])[0])
    density = torch.exp(-0.5 * (start["w"].detach() / 0.7) ** 2) / (0.7 * (2 * torch.pi) ** 0.5)
    assert z_scores(torch.stack(grads), density).max() < 4
    assert density.min() > 0.3


def test_evolution_meta_trains_on_losses_without_derivative():
    """ES-MAML: inner and outer loss count errors, which autograd takes for constants."""
    torch.manual_seed(2)
    x = torch.randn(200, 2)
    errors = lambda params, batch: (((batch @ params["w"]) > 0) != (batch[:, 0] > 0)).float().mean()  # noqa: E731
    solver = Evolution(SGD(0.5), 2, population=4, sigma=0.3, inner_population=8)
    outer = lambda start: errors(solver(lambda p: errors(p, x[:100]), start), x[100:])  # noqa: E731
    start = {"w": torch.tensor([-0.5, 1.0], requires_grad=True)}
    optimizer, first = torch.optim.SGD(start.values(), 1.0), errors(start, x).item()
    for _ in range(30):
        optimizer.zero_grad()
        zero_order(outer, start, population=8, sigma=0.3).backward()
        optimizer.step()
    assert first > 0.6
    assert errors(start, x) < 0.1


def test_evolution_under_vmap_has_a_sample_of_its_own_per_task():
    torch.manual_seed(3)
    solver = Evolution(SGD(0.1), 2, population=300, sigma=0.1)
    start = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    shifts = torch.randn(3, 2, dtype=torch.float64)
    adapt = lambda shift: solver(quadratic, {"w": start}, [shift] * 2)["w"]  # noqa: E731
    many = torch.vmap(adapt, randomness="different")(shifts)
    torch.testing.assert_close(many, torch.stack([adapt(shift) for shift in shifts]))
    expected = torch.linalg.matrix_power(I - 0.1 * A, 2)[0]
    grads = [torch.autograd.grad(many[i, 0], start, retain_graph=True)[0] for i in range(3)]
    assert not torch.equal(grads[0], grads[1])
    for grad in grads:
        torch.testing.assert_close(grad, expected, rtol=0.0, atol=0.1)


def test_evolution_is_seeded_costs_one_adaptation_without_gradient_and_keeps_unused_parameters():
    solver, calls = Evolution(SGD(0.1), 2, population=3, sigma=0.1), []
    start = {name: torch.ones(2, dtype=torch.float64, requires_grad=True) for name in ("w", "idle")}

    def counted(params):
        calls.append(1)
        return quadratic({"w": params["w"]})

    def grad_at(seed):
        torch.manual_seed(seed)
        adapted = solver(counted, start)
        (of_idle,) = torch.autograd.grad(adapted["idle"].sum(), start["idle"], retain_graph=True)
        return torch.autograd.grad(adapted["w"].sum(), start["w"])[0], of_idle

    (first, idle), (again, _), (other, _) = grad_at(0), grad_at(0), grad_at(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(idle, torch.ones(2, dtype=torch.float64))
    assert len(calls) == 3 * 2 * (1 + 2 * 3)
    calls.clear()
    with torch.no_grad():
        path = solver.trajectory(counted, start)
    assert len(calls) == 2
    assert path[0] is start
    assert torch.equal(path[2]["idle"], start["idle"])
    assert solver(counted, start, 0) is start


@pytest.mark.parametrize(
    "solver",
    [
        Implicit(Chain(ClipNorm(1.0), SGD(0.1)), 2, proximity=1.0),
        Evolution(Accumulate(Adam(0.1), every=2), 4, population=2, sigma=0.1),
        ImplicitRoot(linear_condition, linear_root),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_solvers_are_copied_and_pickled(solver):
    copies = [copy.deepcopy(solver)]
    if not isinstance(solver, ImplicitRoot):  # its functions are those of this file, which is not a package
        copies.append(pickle.loads(pickle.dumps(solver)))
    for copied in copies:
        assert repr(copied) == repr(solver)


def test_a_trajectory_holds_the_parameters_after_each_step():
    start = {"w": torch.tensor([0.3, 0.7], dtype=torch.float64)}
    solver = Unrolled(Adam(0.1), 3)
    steps = solver.trajectory(quadratic, start)
    assert len(steps) == 4
    assert steps[0] is start
    assert all(torch.equal(steps[k]["w"], solver(quadratic, start, k)["w"]) for k in range(1, 4))
    assert all(torch.equal(a["w"], b["w"]) for a, b in zip(steps, trajectory(quadratic, start, Adam(0.1), 3)))


def test_each_step_may_have_a_batch_of_its_own():
    start, shifts = {"w": torch.zeros(2, dtype=torch.float64)}, [torch.tensor(1.0), torch.tensor(-3.0)]
    expected = start["w"]
    for shift in shifts:
        expected = expected - 0.1 * (A @ expected - B - shift)
    torch.testing.assert_close(unroll(quadratic, start, SGD(0.1), shifts)["w"], expected)


def test_unroll_equals_autograd_written_out():
    start = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    loss = lambda params: (params["w"] @ A @ params["w"]).sin()  # noqa: E731
    w = start
    for _ in range(3):
        (grad,) = torch.autograd.grad(loss({"w": w}), w, create_graph=True)
        w = w - 0.1 * grad
    expected = torch.autograd.grad(w.sum(), start)
    got = torch.autograd.grad(unroll(loss, {"w": start}, SGD(0.1), 3)["w"].sum(), start)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Truncated(SGD(0.1), 3, last=-1), "last must be at least 0"),
        (lambda: Implicit(SGD(0.1), 3, proximity=0.0), "proximity must be above 0"),
        (lambda: Implicit(SGD(0.1), 3, proximity=1.0, damping=-1.0), "damping must be at least 0"),
        (lambda: Implicit(SGD(0.1), 3, proximity=1.0, method="lu"), "method must be one of cg, neumann"),
        (lambda: Implicit(SGD(0.1), 3, proximity=1.0, iterations=0), "iterations must be at least 1"),
        (lambda: Implicit(SGD(0.1), 3, proximity=torch.tensor(-1.0)), "proximity must be above 0, got -1.0"),
        (lambda: Implicit(SGD(0.1), 3, proximity=1.0, damping=torch.tensor(1.0)), "damping must be a number"),
        (lambda: Implicit(SGD(0.1, weight_decay=0.1), 3, proximity=1.0), "ends at a minimum .* this SGD decays"),
        (lambda: Implicit(Chain(ClipNorm(1.0), AdamW(0.1)), 3, proximity=1.0), "this AdamW decays"),
        (lambda: Implicit(ASGD(0.1), 3, proximity=1.0), "this ASGD decays .* lambd=0"),
        (lambda: Implicit(Adam(0.1, maximize=True), 3, proximity=1.0), "maximises"),
        (lambda: ImplicitRoot(linear_condition, linear_root, method="lu"), "method must be one of cg, neumann, gmres"),
        (
            lambda: ImplicitRoot(lambda p: {"a": p["a"].sum()}, lambda p: p)({"a": torch.ones(2)}),
            r"the condition must return residuals like the solution, {'a': \(2,\)}, got {'a': \(\)}",
        ),
        (lambda: Evolution(SGD(0.1), 3, population=0, sigma=0.1), "population must be at least 1"),
        (lambda: Evolution(SGD(0.1), 3, population=1, sigma=0.0), "sigma must be above 0"),
        (lambda: Evolution(GatedRule(0.1), 3, population=1, sigma=0.1), "Evolution differentiates by the initial"),
        (
            lambda: Evolution(SGD(LearnedRate({"w": torch.ones(1)}, 0.1)), 3, population=1, sigma=0.1),
            "this rule has Parameters",
        ),
        (lambda: zero_order(quadratic, {"w": B}, population=0, sigma=1.0), "population must be at least 1"),
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
