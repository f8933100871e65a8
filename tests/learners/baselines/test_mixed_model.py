"""Variance components, against published figures, statsmodels, closed forms and simulation."""

import numpy as np
import pytest
import torch

from kshot.learners.baselines.mixed_model import best_effects, best_logit_effects, fit_mixed_logits, fit_mixed_model

ORTHODONT = [
    [26.0, 25.0, 29.0, 31.0], [21.5, 22.5, 23.0, 26.5], [23.0, 22.5, 24.0, 27.5], [25.5, 27.5, 26.5, 27.0],
    [20.0, 23.5, 22.5, 26.0], [24.5, 25.5, 27.0, 28.5], [22.0, 22.0, 24.5, 26.5], [24.0, 21.5, 24.5, 25.5],
    [23.0, 20.5, 31.0, 26.0], [27.5, 28.0, 31.0, 31.5], [23.0, 23.0, 23.5, 25.0], [21.5, 23.5, 24.0, 28.0],
    [17.0, 24.5, 26.0, 29.5], [22.5, 25.5, 25.5, 26.0], [23.0, 24.5, 26.0, 30.0], [22.0, 21.5, 23.5, 25.0],
    [21.0, 20.0, 21.5, 23.0], [21.0, 21.5, 24.0, 25.5], [20.5, 24.0, 24.5, 26.0], [23.5, 24.5, 25.0, 26.5],
    [21.5, 23.0, 22.5, 23.5], [20.0, 21.0, 21.0, 22.5], [21.5, 22.5, 23.0, 25.0], [23.0, 23.0, 23.5, 24.0],
    [20.0, 21.0, 22.0, 21.5], [16.5, 19.0, 19.0, 19.5], [24.5, 25.0, 28.0, 28.0],
]  # fmt: skip
"""Distance from the pituitary to the pterygomaxillary fissure at the ages 8, 10, 12 and 14 of 27 children."""


def test_growth_of_teeth_as_published():
    """Pinheiro, Bates: Mixed-Effects Models in S and S-PLUS, Springer 2000, section 1.4: `distance ~ age`."""
    age = torch.tensor([8.0, 10.0, 12.0, 14.0]).double().repeat(27)
    design = torch.stack([torch.ones_like(age), age], 1)
    target = torch.tensor(ORTHODONT).double().flatten()
    model = fit_mixed_model(design, design, target, np.arange(27).repeat(4), ridge=0.0)
    intercept, slope = model.covariance.diagonal().sqrt().tolist()
    assert model.coefficients.tolist() == pytest.approx([16.7611, 0.6602], abs=1e-4)
    assert [intercept, slope] == pytest.approx([2.327, 0.2264], abs=2e-3)
    assert float(model.covariance[0, 1]) / (intercept * slope) == pytest.approx(-0.609, abs=2e-3)
    assert float(model.noise.sqrt()) == pytest.approx(1.310, abs=1e-3)


def simulated():
    random = np.random.default_rng(0)
    group, x = np.repeat(np.arange(30), 6), random.normal(size=180)
    effect = random.normal(size=(30, 2)) @ np.array([[1, 0.3], [0, 0.5]])
    target = 1 + 2 * x + effect[group, 0] + effect[group, 1] * x + random.normal(size=180) * 0.7
    return torch.from_numpy(np.stack([np.ones(180), x], 1)), torch.from_numpy(target), group


@pytest.mark.parametrize(
    ("reml", "fixed", "covariance", "noise", "effects"),
    [
        (True, [0.55297, 1.90015], [0.84301, 0.50548, 0.51519], 0.54519, [0.46098, 0.01436]),
        (False, [0.55547, 1.90022], [0.81059, 0.48821, 0.48562], 0.54776, [0.45365, 0.03292]),
    ],
)
def test_random_slopes_as_in_statsmodels(reml, fixed, covariance, noise, effects):
    """statsmodels 0.14.5: mixedlm("y~x", frame, groups="g", re_formula="~x").fit(reml=reml), gtol 1e-10."""
    design, target, group = simulated()
    model = fit_mixed_model(design, design, target, group, ridge=0.0, reml=reml)
    assert model.coefficients.tolist() == pytest.approx(fixed, abs=2e-4)
    assert model.covariance[[0, 0, 1], [0, 1, 1]].tolist() == pytest.approx(covariance, abs=1e-3)
    assert float(model.noise) == pytest.approx(noise, abs=5e-4)
    first = torch.from_numpy(group == 0)
    residual = target[first] - design[first] @ model.coefficients
    found, _ = best_effects(design[first], residual, torch.ones(6).double(), model)
    assert found.tolist() == pytest.approx(effects, abs=1e-3)


def test_effects_are_the_conditional_distribution_of_a_joint_normal_one():
    design, target, group = simulated()
    model = fit_mixed_model(design, design, target, group)
    z, residual = design[:6], target[:6] - design[:6] @ model.coefficients
    joint = z @ model.covariance @ z.mT + model.noise * torch.eye(6).double()
    gain = model.covariance @ z.mT @ torch.linalg.inv(joint)
    found, half = best_effects(z, residual, torch.ones(6).double(), model)
    torch.testing.assert_close(found, gain @ residual)
    torch.testing.assert_close(model.noise * half @ half.mT, model.covariance - gain @ z @ model.covariance)
    doubled, _ = best_effects(z, residual, torch.tensor([2.0] + [1.0] * 5).double(), model)
    twice, _ = best_effects(z[[0, *range(6)]], residual[[0, *range(6)]], torch.ones(7).double(), model)
    torch.testing.assert_close(doubled, twice)


def test_independent_effects_have_no_covariance():
    design, target, group = simulated()
    assert float(fit_mixed_model(design, design, target, group, diagonal=True).covariance[0, 1]) == 0


def test_groups_that_do_not_differ_have_no_variance():
    random = np.random.default_rng(3)
    one = torch.ones(400, 1).double()
    target = torch.from_numpy(random.normal(size=400).reshape(40, 10))
    target = (target - target.mean(1, keepdim=True)).flatten()  # group means vary less than by chance
    assert float(fit_mixed_model(one, one, target, np.arange(40).repeat(10)).covariance) < 1e-4


@pytest.mark.parametrize("target", [torch.zeros(12), torch.arange(12.0), 1e9 + torch.arange(12.0)])
def test_exact_and_collinear_data_give_finite_estimates(target):
    design = torch.stack([torch.ones(12), torch.arange(12.0), torch.arange(12.0), torch.zeros(12)], 1)
    model = fit_mixed_model(design, design, target, np.arange(4).repeat(3))
    assert all(torch.isfinite(part).all() for part in model)


def test_one_row_and_one_group_give_finite_estimates():
    one = torch.ones(1, 1)
    assert all(torch.isfinite(part).all() for part in fit_mixed_model(one, one, one[:, 0], np.zeros(1, int)))


def binary_groups(num_groups=200, size=20, seed=0):
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(num_groups), size)
    x = random.normal(size=len(group))
    effect = random.normal(size=(num_groups, 2)) * [1.0, 0.5]
    logit = 0.5 + x + effect[group, 0] + effect[group, 1] * x
    label = (random.random(len(group)) < 1 / (1 + np.exp(-logit))).astype(int)
    return torch.from_numpy(np.stack([np.ones(len(group)), x], 1)), torch.from_numpy(np.eye(2)[label]), group, effect


def test_effects_of_classes_are_recovered():
    design, target, group, _ = binary_groups()
    model = fit_mixed_logits(design, design, target, group)
    shared = (model.coefficients[:, 1] - model.coefficients[:, 0]).tolist()
    variance = (2 * model.covariance.diagonal()).tolist()  # of the difference of two logits
    assert shared == pytest.approx([0.5, 1.0], abs=0.15)
    assert variance[0] == pytest.approx(1.0, abs=0.25)
    assert 0.08 < variance[1] < 0.35  # Laplace's approximation is biased towards 0


def test_the_mode_of_the_posterior_has_gradient_zero():
    design, target, _, _ = binary_groups(1, 8)
    factor = torch.tensor([[1.0, 0.0], [0.4, 0.8]]).double()
    offset = torch.zeros(1, 8, 2).double()
    rows, targets, weight = design[:8], target[:8], torch.linspace(0.5, 1.5, 8).double()
    mode, covariance = best_logit_effects(rows[None], targets[None], weight[None], offset, factor)

    def loss(flat):
        u = flat.reshape(2, 2)
        log_p = (rows @ factor @ u).log_softmax(1)
        return 0.5 * u.square().sum() - (weight[:, None] * targets * log_p).sum()

    flat = mode[0].flatten()
    assert float(torch.autograd.functional.jacobian(loss, flat).abs().max()) < 1e-6
    hessian = torch.autograd.functional.hessian(loss, flat)
    torch.testing.assert_close(torch.linalg.inv(hessian), covariance[0])


def test_separable_classes_have_a_finite_mode():
    rows = torch.tensor([[1.0, -1e3], [1.0, 1e3]]).double()
    targets, offset = torch.eye(2).double(), torch.full((1, 2, 2), 50.0).double()
    mode, _ = best_logit_effects(
        rows[None], targets[None], torch.ones(1, 2).double(), offset, 3 * torch.eye(2).double()
    )
    assert torch.isfinite(mode).all()
    assert ((rows @ mode[0]).argmax(1) == torch.tensor([0, 1])).all()
