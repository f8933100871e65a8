"""How solutions are differentiated, against closed forms and against each other."""

import pytest
import torch

from kshot.inner import SGD, Adam, FirstOrder, Implicit, Truncated, Unrolled, trajectory, unroll

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


def test_a_stepsholds_the_parameters_after_each_step():
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
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
