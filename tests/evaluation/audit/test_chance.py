"""Whether a learner knows labels beforehand: dealt labels, numbers of classes, and luck."""

import itertools
import re
import warnings

import numpy as np
import pytest
from evaluation.audit.bugs import Centroid, SortedLabels, audited, failed, maml, pictures, pool
from hypothesis import given
from hypothesis import strategies as st

import kshot
from kshot.evaluation.audit.chance import Guessing
from kshot.evaluation.audit.findings import Result
from kshot.evaluation.audit.run import UntrustedFigure


def test_shares_are_shares():
    source = SortedLabels()
    found = audited(Centroid(), source, num_tasks=40)
    for audit in found.audits:
        shares = [float(share) for share in re.findall(r"([0-9.]+) ?%", audit.finding)]
        assert all(0 <= share <= 100 for share in shares), audit.finding
    (audit,) = [audit for audit in found.audits if audit.name == "label order"]
    assert audit.tolerance < audit.figure <= 1


def test_a_learner_that_uses_the_order_of_classes_is_caught_and_the_same_learner_on_dealt_labels_is_not():
    bright = pool(pictures(step=7))
    for source, expected in ((SortedLabels(bright), {"label order", "class order", "chance"}), (bright, set())):
        learner = maml()
        kshot.fit(learner, source, steps=60, tasks_per_step=8, outer_lr=6e-3, mode="vmap")
        found = audited(learner, source)
        assert failed(found) == expected
        accuracy = found.metrics["accuracy"]
        assert accuracy.mean - accuracy.ci95 > 0.25  # it learns: chance is 0.25


def test_a_fixed_head_is_no_bug():
    of = {audit.name: audit for audit in kshot.evaluate(maml(), pool(), num_tasks=40).audits}
    assert of["class order"].result is Result.PASSED
    assert "need not" in of["class order"].finding
    assert 0 < of["class order"].figure < 1


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_guessing_knows_mean_and_variance_of_every_dealing_of_labels(classes, seed):
    table = np.random.default_rng(seed).random((classes, classes)) ** 3
    guessing = Guessing()
    guessing.add(table)
    all_ = [table[list(dealt), range(classes)].sum() for dealt in itertools.permutations(range(classes))]
    assert guessing.expected == pytest.approx(np.mean(all_))
    assert guessing.variance == pytest.approx(np.var(all_))
    assert guessing.hits == pytest.approx(all_[0])


@pytest.mark.parametrize("tasks", [5, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("answers", ["one", "all", "noise"])
def test_luck_fails_no_more_often_than_is_said(tasks, answers):
    random = np.random.default_rng(tasks)
    p_values = []
    for _ in range(400):
        guessing = Guessing()
        for _ in range(tasks):
            table = {"one": np.eye(5)[[0] * 5], "all": np.eye(5), "noise": random.random((5, 5))}[answers]
            guessing.add(table[:, random.permutation(5)])
        p_values.append(guessing.p_value())
    for level in (0.5, 0.1, 0.01):
        assert np.mean(np.array(p_values) <= level) <= level


def test_what_guessing_may_reach_is_where_it_fails():
    guessing = Guessing()
    for number in range(40):
        guessing.add(np.roll(np.eye(4), number % 3, 0))
    limit = guessing.limit()
    assert guessing.expected < limit < guessing.total
    for hits, fails in ((limit + 1e-6, True), (limit - 1e-6, False)):
        guessing.hits = hits
        assert (guessing.p_value() < 1e-5) == fails


def test_tasks_with_inputs_of_other_shapes_are_no_evidence_and_no_error():
    """Synthetic tables have other numbers of columns and classes in each task: a state fits few of the other tasks."""
    from kshot import learners, sources

    source = sources.tabular_priors(rows=[10, 20], features=[2, 9], classes=[2, 3], queries=8)
    learner = learners.prior_fitted(
        objective=source.objective, classes=3, cell_width=8, width=16, heads=2, cell_layers=1, layers=1
    )
    widths = {source.task("test", index).support.inputs.shape[1] for index in range(40)}
    assert len(widths) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedFigure)  # small synthetic tables can repeat a row
        evaluation = kshot.evaluate(learner, source, num_tasks=40)
    assert {audit.name for audit in evaluation.audits} >= {"chance"}
