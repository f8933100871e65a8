"""Random modules: kshot equals plain training of a copy and its derivatives, in every mode, or says why not."""

from __future__ import annotations

import collections
import itertools
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from fuzz import oracle, productions, shaped
from fuzz.checks import Outcome, Refused, check, check_mode, names_a_layer
from fuzz.grammar import Case, draw

SEEDS = 40
SLOW_SEEDS, SLOW_SHARD = 20_000, 200
RECORDED = [0, 12, 16, 22, 34, 40, 42, 52, 56, 66, 72, 74]  # with one inner step: tracing takes seconds
MAX_REFUSED = 0.02  # of the modules, those left out that no learner can adapt: refusing all is no answer
MAX_UNBATCHED = 0.08  # of the modules, those that vmap refuses for another reason than checkpointing; 0.023 on average
REPEATS = "repeats its forward in the backward pass"  # checkpointing is for little memory, which a batch does not use

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecated functions that models still use


def check_seeds(seeds: range) -> None:
    """Assert that nothing fails, and that few are refused."""
    outcomes = [check(draw(seed), ("vmap",)) for seed in seeds]
    failed = [outcome for outcome in outcomes if outcome.failures]
    kinds = collections.Counter(kind for outcome in failed for kind, _ in outcome.failures)
    first = "\n\n".join(str(outcome) for outcome in failed[:3])
    assert not failed, f"seeds {[outcome.case.seed for outcome in failed]}: {dict(kinds)}\n\n{first}"
    refused = [text for each in outcomes for what, text in each.refusals if what != "vmap" and not each.case.may_refuse]
    assert len(refused) <= MAX_REFUSED * len(outcomes), "\n".join(refused)
    unbatched = [text for each in outcomes for what, text in each.refusals if what == "vmap" and REPEATS not in text]
    assert len(unbatched) <= MAX_UNBATCHED * len(outcomes), "\n".join(unbatched)


def test_random_modules():
    check_seeds(range(SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize("first", [SEEDS, *range(1_000_000, 1_000_000 + SLOW_SEEDS, SLOW_SHARD)])
def test_many_random_modules(first):
    check_seeds(range(first, first + SLOW_SHARD))


def check_recorded(case: Case, mode: str) -> None:
    """Assert that steps of a recording mode equal the loop, or that the mode fell back with a sentence."""
    outcome = Outcome(case)
    with suppress(Refused):
        check_mode(case, outcome, mode)
    assert not outcome.failures, str(outcome)
    assert all(" since " in sentence for sentence in outcome.fallbacks)


@pytest.mark.parametrize(
    "seed", [*RECORDED[:3], *(pytest.param(seed, marks=pytest.mark.slow) for seed in RECORDED[3:])]
)
def test_recorded_steps(seed):
    check_recorded(replace(draw(seed), steps=1), "traced")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(2_000_000, 2_000_400, 20))
def test_many_recorded_steps(first):
    for seed in range(first, first + 20):
        check_recorded(draw(seed), "traced")


@pytest.mark.slow
@pytest.mark.parametrize("seed", RECORDED[:4])
def test_compiled_steps(seed):
    check_recorded(replace(draw(seed), steps=1), "compiled")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("the layer 'body.0' (Linear) branches on a value", True),
        ("a BatchNorm1d of this model keeps no statistics", True),
        ("vmap: we do not yet support aten::rrelu_with_noise", False),
        ("a LinearAlgebra error of 'body'", True),
        ("a LinearAlgebra error", False),
    ],
)
def test_a_refusal_names_a_layer(message, named):
    model = torch.nn.ModuleDict({"body": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))})
    assert names_a_layer(message, model) == named


def test_a_seed_is_a_module():
    for seed in range(5):
        first, second = draw(seed), draw(seed)
        assert first.source == second.source
        weights = zip(first.build().state_dict().values(), second.build().state_dict().values())
        assert all(torch.equal(one, other) for one, other in weights)


def test_every_production_is_drawn():
    drawn = collections.Counter(tag for seed in range(250) for tag in draw(seed).tags)
    every = {production.__name__ for production in [*productions.ANY, *shaped.VECTOR]}
    every |= {production.__name__ for production in [*shaped.SEQUENCE, *shaped.IMAGE]}
    assert {name: drawn[name] for name in every if drawn[name] < 3} == {}


def test_the_two_oracles_agree():
    """Central differences of `torch.optim` and double backward of written-out steps are independent of each other."""
    generator, compared = torch.Generator().manual_seed(0), 0
    for case in itertools.islice(map(draw, itertools.count(500)), 60):
        if case.may_refuse or {"detached", "held_parameters"} & case.tags:
            continue
        grads, direction = oracle.gradient(case), oracle.random_direction(case, generator)
        claim = sum(float((grads[name] * value).sum()) for name, value in direction.items())
        tolerance = 1e-6 * max(float(torch.stack([grad.norm() for grad in grads.values()]).norm()), 0.01)
        found, error = oracle.directional(case, direction, 1e-5, claim, tolerance)
        if error <= tolerance:  # else there is a kink
            assert abs(found - claim) <= tolerance, case
            compared += 1
    assert compared >= 25
