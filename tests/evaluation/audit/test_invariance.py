"""What a prediction may depend on: other queries, the order of rows, random numbers."""

import pytest
import torch
from evaluation.audit.bugs import Centroid, Noisy, SeesOtherQueries, audited, failed, pool, results
from torch import nn

import kshot
from kshot.evaluation.audit.findings import Result
from kshot.evaluation.audit.invariance import Pair, compare_distributions


def test_learners_that_draw_random_numbers_skip_no_audit():
    found = kshot.evaluate(Noisy(), pool(), num_tasks=40)
    assert found.trusted
    assert {name for name, result in results(found).items() if result is not Result.PASSED} == {"test reads"}
    (audit,) = [audit for audit in found.audits if audit.name == "other queries"]
    assert "over 32 seeds each" in audit.finding.lower()
    assert audit.figure <= audit.tolerance
    dropout = kshot.maml(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), inner_lr=0.1)
    dropout.eval()  # no random numbers in evaluation mode
    (audit,) = [audit for audit in kshot.evaluate(dropout, pool(), num_tasks=4).audits if audit.name == "other queries"]
    assert "seeds" not in audit.finding


@pytest.mark.parametrize("seed", range(3))
def test_distributions_that_are_equal_differ_by_no_more_than_chance(seed):
    def draws(shift, which):
        return lambda number: torch.randn(20, generator=torch.Generator().manual_seed(1000 * seed + number)) + shift

    same, shifted = (compare_distributions([Pair(draws(0.0, 0), draws(shift, 1))]) for shift in (0.0, 1.0))
    assert same[0] <= same[1]
    assert shifted[0] > shifted[1]


def test_causal_learners_are_not_inductive():
    class Causal(Centroid):
        """Adds each query to the means of those after it."""

        causal_queries = True

        def predict(self, state, inputs):
            rows = inputs.flatten(1)
            before = torch.cat([torch.zeros_like(rows[:1]), rows.cumsum(0)[:-1]])
            return super().predict(state, inputs) - 1e-3 * before.mean(1, keepdim=True)

    for learner, inference in ((Causal(), "causal"), (Centroid(), "inductive")):
        found = kshot.evaluate(learner, pool(), num_tasks=20)
        assert (found.inference, found.inductive) == (inference, inference == "inductive")
        assert found.trusted
    transductive = SeesOtherQueries()
    transductive.transductive = True
    assert kshot.evaluate(transductive, pool(), num_tasks=4).inference == "transductive"
    lies = SeesOtherQueries()
    lies.causal_queries = True  # it sees all of them
    assert "other queries" in failed(audited(lies, pool()))


def test_a_learner_that_goes_by_the_order_of_rows_is_declared():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    learner = kshot.learners.reptile(model, inner_lr=0.1, minibatch=2)
    assert learner.ordered
    of = results(kshot.evaluate(learner, pool(), num_tasks=30))
    assert of["support order"] is Result.IDLE
    learner.ordered = False
    assert "support order" in failed(audited(learner, pool(), num_tasks=30))


def test_a_learner_without_a_copy_in_double_precision_is_asked_as_it_is():
    class Single(Centroid):
        def _adapt(self, support):
            assert support.inputs.dtype == torch.float32
            return super()._adapt(support)

    (audit,) = [a for a in kshot.evaluate(Single(), pool(), num_tasks=4).audits if a.name == "other queries"]
    assert (audit.result, audit.tolerance) == (Result.PASSED, 1e-3)
