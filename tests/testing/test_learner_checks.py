"""Each check of a learner catches the defect that it is there for, and says which."""

from functools import partial

import pytest
import torch
from torch import nn

import kshot
from kshot import Learner, objectives
from kshot.query_weight import current_query_weight
from kshot.testing import check_learner, learner_checks, make_task
from kshot.types import Batch

INPUTS = (4,)


class Centroids(Learner):
    """The classes' mean features: a learner that keeps the contract; each subclass below breaks one part of it."""

    def __init__(self, objective=objectives.classification):
        super().__init__(objective)
        self.embedding = nn.Linear(4, 5)
        self.register_buffer("calls", torch.zeros(()))

    def _adapt(self, support):
        weight_nC = support.targets * support.weight[:, None]
        sums_CD = weight_nC.mT @ self.embedding(support.inputs)
        means_CD = sums_CD / weight_nC.sum(0).clamp_min(1e-9)[:, None]
        return {"means": means_CD, "present": objectives.classes_present(support)}

    def predict(self, state, inputs):
        distances = (self.embedding(inputs)[:, None] - state["means"]).square().sum(-1)
        return objectives.only_present(-distances, state["present"])


class CountingCalls(Centroids):
    def _adapt(self, support):
        self.calls += 1
        return super()._adapt(support)


class ScalingInPlace(Centroids):
    def predict(self, state, inputs):
        return super().predict(state, inputs.mul_(1.5))


class IgnoringWeights(Centroids):
    def _adapt(self, support):
        return super()._adapt(support._replace(weight=torch.ones_like(support.weight)))


class CentringQueries(Centroids):
    def predict(self, state, inputs):
        return super().predict(state, inputs - inputs.mean(0))


class CentringPadding(CentringQueries):
    transductive = True


class CentringWeightedQueries(Centroids):
    transductive = True

    def predict(self, state, inputs):
        weight = current_query_weight(len(inputs), like=inputs)
        return super().predict(state, inputs - weight @ inputs / weight.sum())


class FalselyTransductive(Centroids):
    transductive = True


class FalselyOrdered(Centroids):
    ordered = True


class WeighingLaterRows(Centroids):
    def _adapt(self, support):
        return super()._adapt(support._replace(weight=support.weight * (1 + torch.arange(len(support.weight)))))


class NotATensor(Centroids):
    def _adapt(self, support):
        return super()._adapt(support) | {"ways": support.targets.shape[1]}


class ReadingValues(Centroids):
    def predict(self, state, inputs):
        return super().predict(state, inputs) * (1.0 if float(inputs.sum()) > 0 else 2.0)


class Detaching(Centroids):
    def _adapt(self, support):
        state = super()._adapt(support)
        return state | {"means": state["means"].detach()}


class ThreeWays(Centroids):
    def predict(self, state, inputs):
        return super().predict(state, inputs)[:, :3]


class MaskingByInfinity(Centroids):
    def predict(self, state, inputs):
        return super().predict(state, inputs).masked_fill(~state["present"], -torch.inf)


class ScoringAbsentClasses(Centroids):
    def predict(self, state, inputs):
        return super().predict(state | {"present": torch.ones_like(state["present"])}, inputs)


class SharingAmongClasses(Centroids):
    def _adapt(self, support):
        state = super()._adapt(support)
        return state | {"means": state["means"] - state["means"].mean(0)}


class Unadapted(Centroids):
    def _adapt(self, support):
        state = super()._adapt(support)
        return state | {"means": torch.arange(len(state["means"]) * 5.0).view(-1, 5).to(state["means"])}


def test_a_learner_that_keeps_the_contract_passes():
    check_learner(lambda ways: Centroids(), inputs=INPUTS)


def test_a_transductive_learner_that_weights_its_queries_passes():
    check_learner(lambda ways: CentringWeightedQueries(), inputs=INPUTS)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (CountingCalls, "purity: adapt or predict changes the parameter or buffer 'calls'"),
        (ScalingInPlace, "purity: adapt or predict changes the tensors of the task in place"),
        (IgnoringWeights, "padding: support rows of weight 0 change the predictions"),
        (CentringPadding, "padding: query rows of weight 0 change the predictions for the others; weight the rows"),
        (CentringQueries, "query order: predictions depend on the other queries; declare transductive"),
        (FalselyTransductive, "query order: transductive is declared, and predictions do not depend"),
        (FalselyOrdered, "support order: ordered is declared, and the order .* makes no difference"),
        (WeighingLaterRows, "support order: the order of the support rows changes the predictions; declare ordered"),
        (NotATensor, "state file: raised "),
        (ReadingValues, "engines: "),
        (Detaching, "meta-gradient: the gradient of the outer loss differs from finite differences"),
        (ThreeWays, r"ways and shots: .* must be logits \(queries, ways\) \(15, 5\), got \(15, 3\)"),
        (MaskingByInfinity, "absent classes: the outer loss with absent classes is not finite"),
        (ScoringAbsentClasses, "absent classes: a class without support examples gets a probability above 0"),
        (SharingAmongClasses, "further classes: classes without examples change the logits of the other classes"),
        (Unadapted, "adapting: the mean query loss after adapting is"),
    ],
)
def test_each_defect_is_named(learner, message):
    check = dict(learner_checks(lambda ways: learner(), inputs=INPUTS))[message.partition(":")[0]]
    with pytest.raises(AssertionError, match=f"^{message}"):
        check()


def test_all_failures_are_reported_together():
    class Broken(CentringQueries, CountingCalls):
        pass

    message = (
        "the learner fails .* of 11 checks:\n- purity: adapt or predict changes(?s:.*)\n- query order: predictions"
    )
    with pytest.raises(AssertionError, match=message):
        check_learner(lambda ways: Broken(), inputs=INPUTS)


def test_an_approximation_must_be_declared_and_differ():
    fomaml = partial(kshot.learners.fomaml, inner_lr=0.2, steps=2)
    checks = dict(learner_checks(lambda ways: fomaml(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, ways)))))
    assert set(checks) >= {"meta-gradient", "engines"}
    build = lambda ways: fomaml(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, ways)))  # noqa: E731
    with pytest.raises(AssertionError, match="pass exact=False if it is a declared"):
        dict(learner_checks(build, inputs=INPUTS))["meta-gradient"]()
    with pytest.raises(AssertionError, match="exact=False is declared, and the gradient is the exact"):
        dict(learner_checks(lambda ways: Centroids(), inputs=INPUTS, exact=False))["meta-gradient"]()


def test_a_state_that_does_not_survive_its_file_is_named():
    class Stateful(Centroids):
        def predict(self, state, inputs):
            return super().predict(state, inputs) + getattr(state["means"], "shift", 1)

        def _adapt(self, support):
            state = super()._adapt(support)
            state["means"].shift = 0
            return state

    with pytest.raises(AssertionError, match="state file: a saved and loaded state predicts otherwise"):
        dict(learner_checks(lambda ways: Stateful(), inputs=INPUTS))["state file"]()


def test_tasks_of_ones_own_are_taken():
    def pairs(ways, shots, seed, dtype):
        task = make_task(ways=ways, shots=shots, inputs=(4,), seed=seed, dtype=dtype)
        return kshot.Task(*(Batch({"a": b.inputs[:, :2], "b": b.inputs[:, 2:]}, *b[1:]) for b in task))

    class Joined(Centroids):
        def _adapt(self, support):
            return super()._adapt(support._replace(inputs=torch.cat([support.inputs["a"], support.inputs["b"]], 1)))

        def predict(self, state, inputs):
            return super().predict(state, torch.cat([inputs["a"], inputs["b"]], 1))

    check_learner(lambda ways: Joined(), make_task=pairs)


def test_the_random_numbers_of_the_caller_are_left_alone():
    before = torch.get_rng_state()
    checks = dict(learner_checks(lambda ways: kshot.protonet(nn.Flatten())))
    checks["query order"]()
    assert torch.equal(torch.get_rng_state(), before)
    assert "engines" not in checks  # nothing to train
