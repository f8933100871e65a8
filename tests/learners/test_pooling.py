"""Partial pooling and boosted residuals against mixed-model software, scikit-learn, closed forms and simulation."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import kshot
from kshot import Batch, objectives
from kshot.data.dataset import ArrayDataset
from kshot.learners.pooling.boosting import Boosting
from kshot.learners.pooling.empirical_bayes import student_scales
from kshot.learners.pooling.posterior import logistic_posterior, posterior
from kshot.learners.pooling.principal_components import COMPONENTS, TABLE, PrincipalComponents
from kshot.learners.pooling.variance_components import Compressed, GroupedRows, Search, fit_components, log_marginal
from kshot.tasks.group_tasks import GroupTasks
from kshot.training.checkpoint import load_checkpoint, save_checkpoint


def slopes(groups=30, rows=6, seed=7):
    """Groups with random intercepts and slopes: group, x, y."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rows)
    x = rng.normal(size=groups * rows)
    u = rng.normal(size=(groups, 2)) @ np.array([[1.0, 0.4], [0.0, 0.6]])
    return group, x, 2 + 0.5 * x + u[group, 0] + u[group, 1] * x + 0.7 * rng.normal(size=len(x))


def source(group, x, y, *, objective=objectives.mse, held_out=0, shots=5):
    """Tasks of groups; the last `held_out` are in the test split."""
    groups = {f"group {g}": np.flatnonzero(group == g) for g in range(group.max() + 1)}
    names = list(groups)
    split = {"train": names[: len(names) - held_out], "test": names[len(names) - held_out :]}
    parts = {name: {g: groups[g] for g in members} for name, members in split.items() if members}
    arrays = np.asarray(x, np.float32).reshape(len(group), -1), np.asarray(y, np.float32).reshape(len(group), -1)
    return GroupTasks(ArrayDataset(arrays), parts, objective=objective, shots=shots, queries=1)


def test_without_priors_variance_components_are_those_of_reml():
    group, x, y = (torch.from_numpy(each) for each in slopes())
    features = torch.stack([torch.ones_like(x), x], 1)
    rows = GroupedRows(features, features, y, torch.ones_like(y), group, torch.zeros(2, dtype=torch.int64))
    fit = fit_components(rows, slope_penalty=0.0, correlation_penalty=0.0, tolerance=1e-14, steps=500)
    # statsmodels 0.15, MixedLM(y, [1, x], group, exog_re=[1, x]).fit(reml=True): fe_params, bse_fe, cov_re, scale
    near = {"rtol": 2e-3, "atol": 2e-4}
    assert fit.coefficients_P.numpy() == pytest.approx([1.98281785, 0.40967718], rel=1e-4)
    assert fit.uncertainty_P.numpy() == pytest.approx([0.17895049, 0.15914004], rel=2e-3)
    covariance = np.array([[0.8783281, 0.46737131], [0.46737131, 0.61853989]])
    np.testing.assert_allclose(fit.root_DD @ fit.root_DD.mT, covariance, **near)
    assert float(fit.noise) == pytest.approx(0.39538481, rel=1e-3)


def test_the_marginal_density_is_that_of_one_normal_distribution_and_its_derivatives_are_differences():
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1, 2], [1, 2, 7])  # fewer rows than features of the deviations, and more
    mean, slope, y = rng.normal(size=(10, 2)), rng.normal(size=(10, 3)), rng.normal(size=10)
    weight = rng.uniform(0.5, 2, 10)
    arrays = (torch.from_numpy(each) for each in (mean, slope, y, weight, group, np.arange(2)))
    rows = Compressed.of(GroupedRows(*arrays))
    search = Search.first(3, 2, None)
    vector = search.vector() + 0.3 * rng.normal(size=len(search.vector()))

    def dense(vector):
        at = search.at(vector)
        root, spread = at.root().numpy(), at.log_spread_B.exp().numpy()
        within = (group[:, None] == group) * (slope @ root @ root.T @ slope.T)
        covariance = within + np.diag(float(at.log_noise.exp()) / weight) + mean @ np.diag(spread**2) @ mean.T
        return multivariate_normal(cov=covariance).logpdf(y)

    at = search.at(vector)
    found = log_marginal(rows, at.root(), at.log_noise.exp(), at.log_spread_B.exp())
    assert found.value == pytest.approx(dense(vector), rel=1e-10)
    by = found.gradients
    by_scale, by_mixing = at.chained(by.root_DD)
    below = torch.tril_indices(3, 3, -1)
    derivatives = torch.cat([by_scale, by_mixing[below[0], below[1]], by.log_noise[None], by.log_spread_P])
    np.testing.assert_allclose(derivatives, approx_fprime(vector, dense, 1e-7), atol=1e-5)


@pytest.mark.parametrize("factory", [kshot.learners.partial_pooling, kshot.learners.boosted_residual])
def test_inputs_too_many_for_a_table_are_replaced_by_what_they_have_in_common(factory):
    group, x, y = slopes(groups=60, rows=12)
    rng = np.random.default_rng(4)
    wide = x[:, None] * rng.normal(size=TABLE + 50) + 0.05 * rng.normal(size=(len(x), TABLE + 50))
    narrow_tasks, wide_tasks = (source(group, each, y, held_out=20) for each in (x[:, None], wide))
    errors = []
    for tasks, inputs in ((narrow_tasks, 1), (wide_tasks, TABLE + 50)):
        options = {"trees": 10} if factory is kshot.learners.boosted_residual else {}
        learner = factory(inputs, 1, objective=objectives.mse, knots=0, **options)
        kshot.training.fit_closed_form(learner, tasks)
        assert learner.scale.shape[1] <= 2 + COMPONENTS + 1
        losses = []
        for rows in tasks.members("test").values():
            inputs_nF, targets = tasks.examples.take(rows)
            with torch.no_grad():
                made = learner.predict(learner.adapt(Batch.of(inputs_nF[:6], targets[:6])), inputs_nF[6:])
            losses.append(float((made - targets[6:]).square().mean()))
        errors.append(np.mean(losses))
    assert errors[1] < 1.1 * errors[0]


def test_components_of_few_rows_far_from_the_origin_are_exact_and_no_others_are_made_up():
    rows = torch.randn(20, TABLE + 4) + 1e4
    components = PrincipalComponents(TABLE + 4)
    components.measure(rows.double())
    peer = PCA(19).fit_transform(StandardScaler().fit_transform(rows.double().numpy()))
    found = components(rows)[:, :19].double().numpy()
    found -= found.mean(0)  # the centre is rounded to float32, in fits and in predictions alike
    np.testing.assert_allclose(np.abs(found), np.abs(peer) / peer[:, 0].std(), atol=1e-4)
    assert not components(torch.randn(5, TABLE + 4))[:, 19:].any()


def test_the_prior_of_slopes_removes_those_that_do_not_differ_and_keeps_those_that_do():
    group, x, y = (torch.from_numpy(each) for each in slopes(groups=40, rows=10))
    constant = torch.randn(len(x), 3, dtype=torch.float64)
    features = torch.cat([torch.ones_like(x)[:, None], x[:, None], constant], 1)
    rows = GroupedRows(features, features, y, torch.ones_like(y), group, torch.zeros(5, dtype=torch.int64))
    fit = fit_components(rows, slope_penalty=30.0, correlation_penalty=5.0)
    deviations = fit.root_DD.square().sum(1).sqrt()
    assert deviations[1] > 0.4
    assert (deviations[2:] < 0.1).all()


@pytest.mark.parametrize("rows", [3, 9])
def test_the_posterior_is_the_best_linear_unbiased_prediction(rows):
    feat, target, weight = torch.randn(rows, 4).double(), torch.randn(rows).double(), torch.rand(rows).double() + 0.1
    root, noise = torch.randn(4, 4).double().tril(), torch.tensor(0.3).double()
    prior = root @ root.mT
    total = feat @ prior @ feat.mT + noise * torch.diag(1 / weight)
    mean, covariance = posterior(feat, target, weight, root, noise)
    torch.testing.assert_close(mean, prior @ feat.mT @ torch.linalg.solve(total, target))
    torch.testing.assert_close(covariance, prior - prior @ feat.mT @ torch.linalg.solve(total, feat @ prior))


def test_the_mode_of_a_logistic_posterior_is_that_of_scikit_learn():
    feat, label = torch.randn(12, 3).double(), (torch.arange(12) % 3 == 0).double()
    peer = LogisticRegression(C=4.0, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(feat, label)
    root = 2.0 * torch.eye(3).double()
    mean, covariance = logistic_posterior(
        feat, label, torch.zeros(12).double(), torch.ones(12).double(), root, steps=500
    )
    np.testing.assert_allclose(mean, peer.coef_[0], rtol=1e-5)
    probability = torch.from_numpy(peer.predict_proba(feat)[:, 1])
    hessian = feat.mT @ (feat * (probability * (1 - probability))[:, None]) + torch.eye(3) / 4
    torch.testing.assert_close(covariance, torch.linalg.inv(hessian), rtol=1e-4, atol=1e-6)


def test_student_scales_tell_heavy_tails_from_normal_groups():
    rng = np.random.default_rng(0)
    count = torch.full((3000,), 6.0).double()
    for freedom, low, high in ((4.0, 3.0, 6.0), (1e6, 48.0, 1000.0)):
        rows = multivariate_t(np.zeros(6), 2.0 * np.eye(6), df=freedom, seed=rng).rvs(3000)
        found, factor = student_scales(torch.from_numpy(np.square(rows).sum(1)), count)
        assert low <= found <= high
        assert factor == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("logistic", [False, True])
def test_trees_in_torch_are_those_of_scikit_learn_and_survive_a_checkpoint(logistic, tmp_path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(600, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = np.nan_to_num(x[:, 0]) * (np.nan_to_num(x[:, 1]) > 0) + 0.1 * rng.normal(size=600)
    y = (y > 0).astype(float) if logistic else y
    kind = HistGradientBoostingClassifier if logistic else HistGradientBoostingRegressor
    peer = kind(max_iter=20, max_leaf_nodes=8, max_depth=4, learning_rate=0.2, l2_regularization=1.0, random_state=0)
    peer.fit(x.astype(float), y)
    make = lambda: Boosting(1, trees=20, leaves=8, depth=4, rate=0.2)  # noqa: E731
    boosting = make()
    boosting._store(0, peer)
    save_checkpoint(tmp_path / "trees", torch.nn.ModuleList([boosting, torch.nn.Linear(1, 1)]), None, {})
    loaded = torch.nn.ModuleList([make(), torch.nn.Linear(1, 1)])
    load_checkpoint(tmp_path / "trees", loaded, None)
    expected = peer.decision_function(x.astype(float)) if logistic else peer.predict(x.astype(float))
    np.testing.assert_allclose(loaded[0](torch.from_numpy(x))[:, 0], expected, atol=2e-6)


def test_predictions_for_a_group_do_not_depend_on_its_targets():
    group, x, y = slopes(groups=10, rows=30)
    arrays = torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None], torch.from_numpy(group)
    boosting = Boosting(1, trees=5, leaves=4, depth=3, rate=0.2)
    before = boosting.fit(*arrays, logistic=False)
    folds = np.random.default_rng(0).permutation(10) % 5
    own = torch.from_numpy(np.isin(group, np.flatnonzero(folds == folds[4])))
    changed = torch.where(own[:, None], arrays[1] + 100 * torch.randn_like(arrays[1]), arrays[1])
    after = boosting.fit(arrays[0], changed, arrays[2], logistic=False)
    torch.testing.assert_close(after[own], before[own])
    assert not torch.allclose(after[~own], before[~own])


@pytest.mark.parametrize("factory", [kshot.learners.partial_pooling, kshot.learners.boosted_residual])
def test_predictive_intervals_cover_and_pooling_beats_either_extreme(factory):
    group, x, y = slopes(groups=160, rows=12)
    tasks = source(group, x, y, objective=objectives.gaussian, held_out=100)
    learner = factory(1, 1)
    kshot.training.fit_closed_form(learner, tasks)
    covered, errors = [], {"learner": [], "shared": [], "own": []}
    for rows in tasks.members("test").values():
        inputs, targets = tasks.examples.take(rows)
        support, query = Batch.of(inputs[:5], targets[:5]), Batch.of(inputs[5:], targets[5:])
        with torch.no_grad():
            made = learner.predict(learner.adapt(support), query.inputs)
        covered.append(((made["mean"] - query.targets).abs() < 1.96 * made["std"]).float().mean())
        line = np.polyfit(support.inputs[:, 0], support.targets[:, 0], 1)
        guesses = {"learner": made["mean"][:, 0], "shared": 2 + 0.5 * inputs[5:, 0]}
        guesses["own"] = torch.from_numpy(np.polyval(line, query.inputs[:, 0]))
        for name, guess in guesses.items():
            errors[name].append(float((guess - query.targets[:, 0]).square().mean()))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    means = {name: np.mean(values) for name, values in errors.items()}
    assert means["learner"] < 0.6 * means["shared"]
    assert means["learner"] < 0.8 * means["own"]


@pytest.mark.parametrize("factory", [kshot.learners.partial_pooling, kshot.learners.boosted_residual])
def test_classes_shared_by_groups_are_pooled(factory):
    rng = np.random.default_rng(1)
    group, x = np.repeat(np.arange(60), 20), rng.normal(size=1200)
    logit = 2.0 * rng.normal(size=60)[group] + x
    label = (rng.random(1200) < 1 / (1 + np.exp(-logit))).astype(int)
    tasks = source(group, x, np.eye(2)[label], objective=objectives.shared_classification, held_out=20)
    learner = factory(1, 2, objective=objectives.shared_classification)
    kshot.training.fit_closed_form(learner, tasks)
    assert 1.0 < float(learner.scale[0, 0]) < 3.5
    losses = {"learner": [], "truth": [], "shared": []}
    for rows in tasks.members("test").values():
        inputs, targets = tasks.examples.take(rows)
        with torch.no_grad():
            made = learner.predict(learner.adapt(Batch.of(inputs[:8], targets[:8])), inputs[8:])
        assert torch.allclose(made.exp().sum(1), torch.ones(12), atol=1e-5)
        query = Batch.of(inputs[8:], targets[8:])
        of_truth = torch.from_numpy(logit[rows][8:, None] * [[-0.5, 0.5]]).float()
        for name, logits in {
            "learner": made,
            "truth": of_truth,
            "shared": inputs[8:] * torch.tensor([-0.4, 0.4]),
        }.items():
            losses[name].append(float(learner.objective.loss(logits, query)))
    means = {name: np.mean(values) for name, values in losses.items()}
    assert means["truth"] < means["learner"] < 0.5 * (means["truth"] + means["shared"])


def test_fit_fits_in_closed_form_once_and_meta_training_stays_near():
    group, x, y = slopes(groups=30, rows=12)
    tasks = source(group, x, y, objective=objectives.gaussian)
    learner = kshot.learners.partial_pooling(1, 1, knots=2)
    kshot.fit(learner, tasks, steps=3)
    assert float(learner.fitted) == 1
    closed = copy.deepcopy(learner.coefficients)
    kshot.fit(learner, source(group, x, y + 100, objective=objectives.gaussian), steps=1)
    torch.testing.assert_close(learner.coefficients, closed)
    assert 0 < float(learner.coefficient_step.detach().abs().max()) < 0.1


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="protonet or plda"):
        kshot.learners.partial_pooling(1, 3, objective=objectives.classification)
    learner = kshot.learners.partial_pooling(2, 1)
    with pytest.raises(ValueError, match="takes 2 inputs"):
        learner.adapt(Batch.of(torch.zeros(3, 1), torch.zeros(3, 1)))
    group, x, y = slopes(groups=1, rows=12)
    with pytest.raises(ValueError, match="two training groups"):
        kshot.training.fit_closed_form(kshot.learners.partial_pooling(1, 1), source(group, x, y))


@pytest.mark.parametrize("constant", ["input", "target", "both"])
def test_constant_inputs_and_targets_give_finite_predictions(constant):
    group, x, y = slopes(groups=12, rows=8)
    x, y = (0 * x + 3 if constant != "target" else x), (0 * y + 5 if constant != "input" else y)
    for factory in (kshot.learners.partial_pooling, kshot.learners.boosted_residual):
        learner = factory(1, 1)
        kshot.training.fit_closed_form(learner, source(group, x, y))
        made = learner.predict(
            learner.adapt(Batch.of(torch.full((1, 1), 3.0), torch.full((1, 1), 5.0))), torch.zeros(4, 1)
        )
        assert all(bool(leaf.isfinite().all()) for leaf in made.values())
