"""Who gets the time, and what an interruption costs."""

import json
import math
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import kshot as package
from kshot.app.auto import command, plans, race
from kshot.app.auto.plans import Plan
from kshot.app.auto.race import Entrant, Race, time_limit
from kshot.app.auto.ranking import Expectation
from kshot.deciding.decisions import EventLog, Round
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target

ACCURACY = Target("accuracy", True, 0.9)


class Clock:
    """Time that passes when a plan is trained."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(race.time, "monotonic", clock)
    return clock


def a_race(tmp_path, clock, quality, seconds, *, stops=(), rises=None):
    """A race whose plans take their whole time, those of `stops` but a second, and reach `quality`·(1 − 1/time).

    Those of `rises` have ten rounds, whose distance from where the curve ends falls with the root of the steps.
    """
    tmp_path.mkdir(exist_ok=True)
    options = [Plan(f"p{number}", {"kind": "protonet"}) for number in range(len(quality))]
    said = []
    made = Race(
        tmp_path / "plans", seconds, package.sources.sinusoids(), ACCURACY, options,
        lambda plan, budget: SimpleNamespace(plan=plan, budget=budget), EventLog(tmp_path / "log"), said.append,
    )  # fmt: skip
    given = []

    def train(spec, folder, entrant):
        until = 60 * spec.budget["minutes"]
        given.append((entrant.plan.name, round(until, 6)))
        clock.now += 1 if entrant.plan.name in stops else until - entrant.seconds
        best = quality[int(entrant.plan.name[1:])]
        if best is None:
            raise ValueError("no such learner\nat all")
        best *= 1 - 1 / until
        rise = (rises or {}).get(entrant.plan.name)
        last = 1 if rise is None else 10
        means = {step: best - (rise or 0.0) * (step**-0.5 - last**-0.5) for step in range(1, last + 1)}
        rounds = [
            Round(step, step, 0.5, {"accuracy": Interval(mean, 0.01, 100)}, {}, float(step), "")
            for step, mean in means.items()
        ]
        outcome = race.Outcome.NO_PROGRESS if entrant.plan.name in stops else race.Outcome.BUDGET_SPENT
        learner = package.protonet(torch.nn.Linear(1, 1))
        return SimpleNamespace(
            learner=learner, result=SimpleNamespace(rounds=rounds, best=rounds[-1], outcome=outcome, reason="")
        )

    made._run = train
    made.given = given
    made.said = said
    return made


@pytest.fixture(autouse=True)
def _suited(monkeypatch, request):
    if "clock" in request.fixturenames:
        monkeypatch.setattr(race, "refuse_unsuited", lambda spec, source: None)


def test_the_better_third_gets_three_times_the_time(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.1, 0.9, 0.3, 0.8, 0.5, 0.7, 0.2, 0.4, 0.6], 2100)
    made.run(made.plans)
    assert made.given[:9] == [(f"p{number}", 100) for number in range(9)]
    assert made.given[9:] == [("p1", 300), ("p3", 300), ("p5", 300), ("p1", 900)]
    assert made.spent == pytest.approx(2100)
    assert made.ranked()[0].plan.name == "p1"
    assert [seconds for seconds, _ in made.ranked()[0].course] == pytest.approx([100, 300, 900])


def test_a_plan_that_still_rises_is_ranked_by_what_its_curve_predicts(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.8, 0.7, 0.1, 0.1], 900, rises={"p1": 0.9, "p2": 0.0})
    made.run(made.plans)
    assert [name for name, _ in made.given[4:]] == ["p1", "p0", "p1"]
    assert made.entrants["p0"].predicted is None  # of too few rounds
    at_first = next(json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"p1"' in line)
    assert at_first["predicted"] == pytest.approx(at_first["figure"]["mean"] + 0.9 * (10**-0.5 - 30**-0.5), abs=0.01)
    assert made.entrants["p2"].predicted == pytest.approx(made.entrants["p2"].figure.mean, abs=1e-3)


def test_plans_that_fail_make_room_and_finished_ones_leave_their_time_to_others(tmp_path, clock):
    made = a_race(tmp_path, clock, [None, 0.9, 0.5, 0.8], 500, stops={"p1"})
    made.run(made.plans, starters=3)
    assert made.given[:4] == [(f"p{number}", 100) for number in range(4)]
    assert made.entrants["p0"].failure == "no such learner"
    assert any("p0: left out: no such learner" in line for line in made.said)
    assert made.given[4] == ("p3", pytest.approx(100 + made.seconds - 301))  # 100 of them for p0
    assert len(made.given) == 5
    assert made.ranked()[0].plan.name == "p1"


def test_time_that_is_left_goes_to_plans_that_had_none(tmp_path, clock):
    names = [f"p{number}" for number in range(12)]
    made = a_race(tmp_path, clock, [0.5] * 11 + [None], 2100, stops=names)
    made.run(made.plans)
    assert made.given == [(name, 100) for name in names]
    short = a_race(tmp_path / "short", clock, [0.5] * 11, 2100, stops=names[:8])  # p8 takes all that is left
    short.run(short.plans)
    assert {name for name, _ in short.given} == set(names[:9])


def entrant(name, mean, ci95, gain=0.0, spread=0.1, *, simple=False):
    plan = plans.baseline_plan(name, ACCURACY) if simple else Plan(name, {"kind": "protonet"})
    found = Entrant(plan, None if simple else Expectation(gain, 5.0, None, spread), 1.0)
    found.course.append((1.0, Interval(mean, ci95, 100, num_units=9, unit="class")))
    return found


@pytest.mark.parametrize(("ci95", "first"), [(0.001, "lucky"), (0.3, "known")])
def test_what_experience_expects_decides_where_figures_are_noisy(tmp_path, clock, ci95, first):
    made = a_race(tmp_path, clock, [], 100)
    of = [
        entrant("simple", 0.80, ci95, simple=True),
        entrant("known", 0.82, ci95, 0.3),
        entrant("lucky", 0.84, ci95, -0.3),
    ]
    made.entrants = {each.plan.name: each for each in of}
    assert made.ranked(of[1:])[0].plan.name == first
    kept, reason = command._choose(made)
    assert kept.plan.name == first
    passed_over = (
        "the figure of lucky, 0.8400 ± 0.3000 (100 tasks of 9 classes), is better, but with what experience knows"
    )
    assert (passed_over in reason) is (first == "known")
    if first == "known":
        less = 1 - math.exp(made.gain(of[2]) - made.gain(of[1]))
        assert f"known is expected to have {less:.0%} less error" in reason


def test_a_plan_that_is_better_by_chance_alone_does_not_replace_a_simple_baseline(tmp_path, clock):
    made = a_race(tmp_path, clock, [], 100)
    made.entrants = {"simple": entrant("simple", 0.80, 0.3, simple=True), "lucky": entrant("lucky", 0.81, 0.3, -0.3)}
    kept, reason = command._choose(made)
    assert kept.plan.name == "simple"
    assert "the best plan, lucky, has 0.8100" in reason
    assert "; the figure of lucky is better, but" in reason


def test_shares_of_errors_that_experience_takes_for_equal_are_ranked_by_their_figures(tmp_path, clock):
    made = a_race(tmp_path, clock, [], 100)
    of = [entrant("a", 0.9991, 0.001), entrant("b", 0.9999, 0.001), entrant("c", 0.9991, 0.001)]
    assert [each.plan.name for each in made.ranked(of)] == ["b", "a", "c"]


def test_no_plan_starts_after_the_time_if_there_is_a_simple_baseline(tmp_path, clock):
    made = a_race(tmp_path, clock, [None] * 9, 100)
    made.entrants["simple"] = Entrant(plans.baseline_plan("simple", ACCURACY), course=[(1.0, Interval(0.3, 0.1, 100))])
    made.run(made.plans, shortest=60.0)  # each fails at the end of its time, as one that is fitted as a whole
    assert made.given == [("p0", 25), ("p1", 25), ("p2", 25), ("p3", 25)]


def test_a_plan_is_interrupted_soon_after_the_time_of_all(tmp_path, clock, monkeypatch):
    limits = []
    monkeypatch.setattr(race, "time_limit", lambda seconds: limits.append(seconds) or nullcontext())
    made = a_race(tmp_path, clock, [0.5, 0.9], 40)
    made.run(made.plans)
    assert [name for name, _ in made.given] == ["p0", "p1", "p1"]
    assert limits == [20, 20, 25]  # twice the time of a first turn; a quarter more than what is left


def test_nothing_is_ranked_where_there_is_nothing(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.5, None], 80)
    made.run(made.plans)
    assert [each.plan.name for each in made.ranked()] == ["p0"]
    assert made.ranked([]) == []
    kept, reason = command._choose(made)
    assert kept.plan.name == "p0"
    assert "simple" not in reason


def test_short_times_start_fewer_plans(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.5] * 9, 80)
    made.run(made.plans)
    assert {name for name, _ in made.given} == {"p0", "p1", "p2"}


def test_a_race_goes_on_where_it_was_interrupted(tmp_path, clock):
    whole = a_race(tmp_path / "whole", clock, [0.1, 0.9, 0.3], 500)
    whole.run(whole.plans)
    first = a_race(tmp_path / "cut", clock, [0.1, 0.9, 0.3], 500)
    train = first._run

    def cut(*args):
        if len(first.given) == 2:
            raise KeyboardInterrupt
        return train(*args)

    first._run = cut
    with pytest.raises(KeyboardInterrupt):
        first.run(first.plans)
    second = a_race(tmp_path / "cut", clock, [0.1, 0.9, 0.3], 500)
    second.restore()
    second.run(second.plans)
    assert first.given + second.given == whole.given
    assert [each.course for each in second.ranked()] == [each.course for each in whole.ranked()]


def test_what_takes_too_long_is_interrupted(tmp_path):
    made = Race(tmp_path, 10, None, ACCURACY, (), None, EventLog(), print)
    entrant = Entrant(Plan("slow", {"kind": "protonet"}))
    started = time.monotonic()
    made.time(entrant, lambda: time.sleep(30), 0.05)
    assert time.monotonic() - started < 10
    assert entrant.failure == "it was not done after 0 s"
    with time_limit(60):
        pass
    time.sleep(0.01)  # the timer is off
