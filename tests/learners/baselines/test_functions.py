"""The Gaussian process beside scikit-learn's, and what its hyperparameters are fitted to."""

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel

import kshot
from kshot import Batch, objectives
from kshot.learners.baselines.functions import GaussianProcess, baselines, gaussian_process


@pytest.mark.parametrize("kernel", ["rbf", "matern52"])
def test_predictions_are_those_of_scikit_learn(kernel):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 2, generator=generator), torch.randn(12, 1, generator=generator)
    queries, length = torch.randn(7, 2, generator=generator), torch.tensor([0.7, 1.9])
    radial = RBF(length.numpy()) if kernel == "rbf" else Matern(length.numpy(), nu=2.5)
    theirs = GaussianProcessRegressor(ConstantKernel(2.5) * radial + WhiteKernel(0.3), optimizer=None).fit(x, y[:, 0])
    mean, std = theirs.predict(queries, return_std=True)
    ours = GaussianProcess(objectives.gaussian, length, torch.tensor(2.5), torch.tensor(0.3), kernel=kernel)
    prediction = ours.predict(ours.adapt(Batch.of(x, y)), queries)
    torch.testing.assert_close(prediction["mean"][:, 0], torch.from_numpy(mean).float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prediction["std"][:, 0], torch.from_numpy(std).float(), atol=1e-5, rtol=1e-4)


def test_rows_of_weight_zero_have_no_effect_and_weight_two_is_a_row_twice():
    learner = GaussianProcess(objectives.mse, torch.ones(1), torch.tensor(1.0), torch.tensor(0.1))
    x, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.0], [2.0], [-9.0]])
    weighted = learner.adapt(Batch(x, y, torch.tensor([1.0, 2.0, 0.0])))
    repeated = learner.adapt(Batch.of(x[[0, 1, 1]], y[[0, 1, 1]]))
    queries = torch.linspace(-1, 6, 9)[:, None]
    torch.testing.assert_close(learner.predict(weighted, queries), learner.predict(repeated, queries))


def test_hyperparameters_are_recovered_from_tasks_of_a_gaussian_process():
    source = kshot.sources.gaussian_processes(kernel="rbf", length_scale=(0.7, 0.7), noise=0.1, shots=10, queries=20)
    learner = gaussian_process(source.objective, [source.task("train", index).query for index in range(60)])
    assert float(learner.length) == pytest.approx(0.7, rel=0.1)
    assert float(learner.amplitude) == pytest.approx(1.0, rel=0.35)
    assert float(learner.noise) == pytest.approx(0.01, rel=0.2)


def test_padding_does_not_move_the_hyperparameters():
    source = kshot.sources.sinusoids(noise=0.3)
    tasks = [source.task("train", index).query for index in range(10)]
    padded = [
        Batch(torch.cat([x, x[:3] + 1]), torch.cat([y, 9 * y[:3]]), torch.cat([w, torch.zeros(3)])) for x, y, w in tasks
    ]
    plain, other = (gaussian_process(source.objective, each) for each in (tasks, padded))
    for name in ("length", "amplitude", "noise"):
        torch.testing.assert_close(getattr(plain, name), getattr(other, name), rtol=0.05, atol=1e-6)


def test_it_suits_functions_of_few_numbers_and_nothing_else():
    assert set(baselines(kshot.sources.sinusoids())) == {"gaussian_process"}
    assert set(baselines(kshot.sources.gaussian_processes())) == {"gaussian_process"}
    assert baselines(kshot.sources.glyphs(ways=2)) == {}
