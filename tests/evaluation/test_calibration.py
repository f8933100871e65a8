"""Calibration against scikit-learn, torch and what is true by construction."""

import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from kshot import Batch, objectives
from kshot.evaluation.calibration import BINS, LEVELS, CalibrationMeter


def gathered(objective, *pairs):
    found = CalibrationMeter(objective)
    for prediction, batch in pairs:
        found.add(prediction, batch)
    return found.result()


def classes(count: int, sharpness: float, ways: int = 2):
    """Logits, and labels drawn from the probabilities that the logits times `sharpness` give."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(count, ways, generator=random, dtype=torch.float64)
    labels = torch.multinomial((sharpness * logits).softmax(1), 1, generator=random).flatten()
    return logits, Batch.of(torch.zeros(count, 1), labels, ways=ways)


def test_points_and_scores_are_those_of_scikit_learn():
    logits, batch = classes(500, 0.5)
    halves = [(logits[part], batch.rows(part)) for part in (slice(0, 250), slice(250, None))]
    found = gathered(objectives.classification, *halves)
    chance, chosen = logits.softmax(1).max(1)
    hit = chosen == batch.targets.argmax(1)
    observed, expected = calibration_curve(hit, chance, n_bins=BINS)
    assert [point.observed for point in found.points] == pytest.approx(observed)
    assert [point.expected for point in found.points] == pytest.approx(expected)
    assert sum(point.share for point in found.points) == pytest.approx(1)
    error = sum(p.share * abs(o - e) for p, o, e in zip(found.points, observed, expected))
    assert found.error == pytest.approx(error)
    labels, second = batch.targets.argmax(1), logits.softmax(1)[:, 1]
    assert found.brier.mean == pytest.approx(2 * brier_score_loss(labels, second))
    assert found.nll.mean == pytest.approx(log_loss(labels, second))
    assert (found.kind, found.num_examples, found.nll.num_tasks) == ("classes", 500, 2)


def test_true_probabilities_are_calibrated_and_sharper_ones_are_not():
    sure, unsure = (gathered(objectives.classification, classes(20_000, sharpness, 4)) for sharpness in (1.0, 0.3))
    assert sure.error < 0.015
    assert unsure.error > 0.15
    assert all(point.observed < point.expected for point in unsure.points if point.expected > 0.5)


def test_a_row_of_weight_0_does_not_count():
    logits, batch = classes(40, 1.0)
    weight = (torch.arange(40) < 30).float()
    padded = gathered(objectives.classification, (logits, batch._replace(weight=weight)))
    expected = gathered(objectives.classification, (logits[:30], batch.rows(slice(30))))
    assert padded.num_examples == expected.num_examples == 30
    assert padded.error == pytest.approx(expected.error)
    for name in ("nll", "brier"):
        assert getattr(padded, name).mean == pytest.approx(getattr(expected, name).mean)
    torch.testing.assert_close(torch.tensor(padded.points), torch.tensor(expected.points))


def test_shared_classes_count_as_classes_and_plain_numbers_say_nothing():
    assert gathered(objectives.shared_classification, classes(10, 1.0)).kind == "classes"
    numbers = Batch.of(torch.zeros(3, 1), torch.tensor([[0.2, 0.8]] * 3))
    assert gathered(objectives.mse, (torch.ones(3, 2), numbers)) is None


@pytest.mark.parametrize(("spread", "low", "high"), [(1.0, 0.0, 0.012), (0.5, 0.15, 0.35)])
def test_bands_cover_what_they_say_where_the_deviation_is_true(spread, low, high):
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(10_000, 2, generator=random)
    batch = Batch.of(torch.zeros(10_000, 1), mean + torch.randn(10_000, 2, generator=random))
    std = torch.full_like(mean, spread)
    found = gathered(objectives.mse, ({"mean": mean, "std": std}, batch))
    assert found.kind == "bands"
    assert tuple(point.expected for point in found.points) == pytest.approx(LEVELS)
    assert low <= found.error <= high
    law = torch.nn.GaussianNLLLoss(full=True)
    assert found.nll.mean == pytest.approx(float(law(mean, batch.targets, std**2)), rel=1e-5)
    assert found.brier is None
    exact = torch.special.ndtri(torch.tensor(0.975)) * spread
    inside = float(((batch.targets - mean).abs() <= exact).double().mean())
    assert found.points[-1].observed == pytest.approx(inside, abs=1e-4)
