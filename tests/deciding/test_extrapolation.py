"""Policies as pure functions: `rules` with actions, `extrapolation`, and what it knows of experience."""

import json

import numpy as np
import pytest

from kshot.deciding import Budget, Change, Continue, Outcome, Past, Rollback, Round, Stop, extrapolation, rules
from kshot.deciding.curves import EXPONENTS
from kshot.deciding.decisions import decision_to_json
from kshot.deciding.experience import Cost, Figure, Trial
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target

TARGET = Target.parse("accuracy >= 0.9")
START = {"outer_lr": 1e-3, "learner.steps": 1, "learner.order": 1, "source.shots": 5}
ORDER, STEPS = {"learner.order": 2}, {"learner.steps": 5}


def rounds(means, *, settings=None, ci=0.01, metric="accuracy", seconds=10.0):
    settings = settings or [START] * len(means)
    return [
        Round(n, 100 * n, 0.5, {metric: Interval(mean, ci, 100)}, of, seconds * n, f"round-{n}")
        for n, (mean, of) in enumerate(zip(means, settings), 1)
    ]


def power_law(count, asymptote, drop=0.5, c=1.0):
    return [asymptote - drop * n**-c for n in range(1, count + 1)]


# rules with actions


def test_a_stall_takes_the_actions_in_their_order_then_lowers_the_rate_then_stops():
    policy = rules(TARGET, Budget(rounds=99), patience=2, changes=1, actions=[ORDER, STEPS])
    history, of = [0.8], [START]
    seen = []
    for _ in range(20):
        decision = policy(rounds(history, settings=of))
        if isinstance(decision, Change):
            seen.append((len(history), decision.settings))
        elif isinstance(decision, Stop):
            break
        history.append(0.799)
        of.append(of[-1] | (decision.settings if isinstance(decision, Change) else {}))
    assert seen == [(3, ORDER), (5, STEPS), (7, {"outer_lr": pytest.approx(3e-4)})]
    assert decision.outcome is Outcome.NO_PROGRESS
    assert len(history) == 9
    first = policy(rounds([0.8, 0.79, 0.79]))
    assert first.reason == "no new best for 2 rounds: learner.order from 1 to 2"


def test_an_action_that_was_rolled_back_is_not_taken_again():
    policy = rules(TARGET, Budget(rounds=99), patience=1, actions=[ORDER, STEPS])
    worse = rounds([0.8, 0.79, 0.5], settings=[START, START, START | ORDER])
    assert isinstance(policy(worse), Rollback)
    after = rounds([0.8, 0.79, 0.5, 0.79], settings=[START, START, START | ORDER, START | {"outer_lr": 3e-4}])
    assert policy(after).settings == STEPS


def test_settings_from_python_equal_those_that_a_checkpoint_holds():
    policy = rules(TARGET, Budget(rounds=99), patience=1, actions=[{"source.shots": (1, 5)}])
    stalled = policy(rounds([0.8, 0.79]))
    assert stalled.settings == {"source.shots": [1, 5]}
    done = json.loads(json.dumps([START, START, START | dict(stalled.settings), START | dict(stalled.settings)]))
    assert policy(rounds([0.8, 0.79, 0.79, 0.79], settings=done)).settings == {"outer_lr": pytest.approx(3e-4)}


# the rounds that the budget leaves


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"rounds": 6}, [500, 600]),
        ({"rounds": None, "steps": 550}, [500, 550]),
        ({"rounds": 9, "steps": 600}, [500, 600]),
        ({"rounds": None, "minutes": 1.0}, [500, 600]),  # 40 of 60 seconds are spent on four rounds
        ({"rounds": None, "minutes": 1.05}, [500, 600, 700]),
        ({"rounds": None}, [500, 600, 700, 800]),
        ({"rounds": 4}, []),
    ],
)
def test_the_rounds_that_are_left(budget, steps):
    assert Budget(**budget).coming(rounds([0.5] * 4)) == steps


# extrapolation


def decide(history, *, past=None, rounds_in_all=20, target=TARGET, **options):
    return extrapolation(target, Budget(rounds=rounds_in_all), past or Past(), **options)(history)


def test_a_target_above_the_asymptote_is_not_reachable():
    stop = decide(rounds(power_law(8, asymptote=0.8)))
    assert stop.outcome is Outcome.NOT_REACHABLE
    assert [each.step for each in stop.predicted] == list(range(900, 2001, 100))
    end = stop.predicted[-1]
    assert end.low < 0.8 - 0.5 / 20 < end.high
    assert end.mean == pytest.approx(0.775, abs=0.01)
    assert (
        f"accuracy is predicted to be {end.mean:.4f} ({end.low:.4f} to {end.high:.4f}) after 2000 steps" in stop.reason
    )
    assert "to meet accuracy >= 0.9 by then with a probability of" in stop.reason


def test_a_target_below_it_is_waited_for_with_the_prediction_in_the_reason():
    going_on = decide(rounds(power_law(5, asymptote=0.97)))
    assert isinstance(going_on, Continue)
    assert going_on.predicted[-1].step == 2000
    assert "is the best so far, but does not meet accuracy >= 0.9; accuracy is predicted to be 0.9" in going_on.reason
    assert decide(rounds(power_law(5, asymptote=0.97)), rounds_in_all=6).outcome is Outcome.NOT_REACHABLE  # too late


def test_errors_fall():
    falling = [0.2 + 0.8 / n for n in range(1, 9)]
    history = rounds(falling, metric="mse")
    reachable, not_reachable = Target.parse("mse <= 0.26"), Target.parse("mse <= 0.15")
    assert isinstance(decide(history, target=reachable), Continue)
    assert decide(history, target=not_reachable).outcome is Outcome.NOT_REACHABLE


def test_few_rounds_since_a_change_predict_nothing():
    assert decide(rounds(power_law(3, asymptote=0.8))).predicted == ()
    changed = rounds(power_law(8, asymptote=0.8), settings=[START] * 5 + [START | ORDER] * 3)
    assert decide(changed) == Continue(decide(changed).reason)
    of_four = decide(rounds([0.1] * 4 + power_law(4, asymptote=0.8), settings=[START] * 4 + [START | ORDER] * 4))
    alone = decide(rounds(power_law(4, asymptote=0.8)), rounds_in_all=16)
    assert [each[1:] for each in of_four.predicted] == [each[1:] for each in alone.predicted]  # the steps begin anew


def test_an_unlikely_target_takes_the_actions_first():
    history = rounds(power_law(8, asymptote=0.8))
    change = decide(history, actions=[ORDER, STEPS])
    assert change.settings == ORDER
    assert change.predicted
    assert change.reason.endswith("learner.order from 1 to 2")
    done = rounds(power_law(8, asymptote=0.8), settings=[START | ORDER | STEPS] * 8)
    assert decide(done, actions=[ORDER, STEPS]).outcome is Outcome.NOT_REACHABLE


def test_rules_come_first():
    assert decide(rounds([*power_law(8, asymptote=0.8), 0.95])).outcome is Outcome.TARGET_MET
    assert decide(rounds(power_law(20, asymptote=0.8))).outcome is Outcome.BUDGET_SPENT
    assert isinstance(decide(rounds([0.7, 0.8, 0.8, 0.6])), Rollback)


def test_a_figure_that_is_bounded_is_not_predicted_beyond_its_bounds():
    predicted = decide(rounds([0.3, 0.5, 0.7, 0.85], ci=0.02)).predicted
    assert max(each.high for each in predicted) <= 1.0


def test_the_decision_is_pure_and_its_prediction_plain():
    history = rounds(power_law(8, asymptote=0.8))
    first = decide(history)
    again = decide([Round.from_json(json.loads(json.dumps(each.to_json()))) for each in history])
    assert again == first
    logged = json.loads(json.dumps(decision_to_json(first)))
    assert logged["action"] == "stop"
    assert logged["predicted"][0] == pytest.approx(list(first.predicted[0]))
    assert "predicted" not in decision_to_json(Continue("on"))


def test_seconds_matter_only_where_the_budget_has_minutes():
    slow, fast = (rounds(power_law(8, asymptote=0.8), seconds=each) for each in (50.0, 1.0))
    assert decide(slow) == decide(fast)


def test_a_curve_flattens_where_its_schedule_ends():
    """By a curve that is linear in the sum of the rates: the rates of cosine sum up to 0.505 of those of constant."""
    horizon, count = 1000, 5
    of = {"schedule": "cosine", "horizon": horizon}
    rate = lambda step: 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * min(step / horizon, 1.0)))  # noqa: E731
    summed = np.cumsum([rate(step) for step in range(horizon)])
    means = [float(0.3 + 1e-3 * summed[100 * n - 1]) for n in range(1, 11)]
    history = rounds(means, settings=[START | of] * 10, ci=0.002)
    end = decide(history[:count], rounds_in_all=10).predicted[-1]
    assert end.low < means[-1] < end.high
    assert end.mean == pytest.approx(means[-1], abs=0.02)
    constant = decide(rounds(means, ci=0.002)[:count], rounds_in_all=10).predicted[-1]
    assert constant.mean > means[-1] + 0.1


# experience


def trial(value, data_set, *, figures=(), higher=1, created="2026-01-01T00:00:00+00:00", metric="accuracy", **learner):
    descriptors = {"kind": "own", "metric": metric, "higher_is_better": higher}
    plan = {"learner": {"kind": "maml"} | learner}
    made = figures or [Figure(10.0, value, 0.01)]
    return Trial(descriptors, plan, made, None, Cost(10.0), data_set=data_set, created=created)


def test_the_gain_of_an_action_counts_the_data_sets_where_it_was_better():
    past = Past(
        (
            trial(0.6, "a", order=1), trial(0.5, "a", order=2), trial(0.7, "a", order=2),  # better by its best trial
            trial(0.6, "b", order=1), trial(0.9, "b", order=2),
            trial(0.6, "c", order=1), trial(0.5, "c", order=2),
            trial(0.9, "d", order=2), trial(0.1, "", order=1),  # without anything to compare
        )
    )  # fmt: skip
    assert past.gain(ORDER, START) == pytest.approx((2 - 1) / 4)
    assert past.gain({"learner.order": 1}, START | ORDER) == pytest.approx(-1 / 4)
    assert past.gain(STEPS, START) == 0
    assert past.gain({"source.shots": 10}, START) == 0
    lower = Past((trial(0.6, "a", order=1, higher=0), trial(0.7, "a", order=2, higher=0)))
    assert lower.gain(ORDER, START) == pytest.approx(-1 / 2)


def test_the_action_of_which_experience_expects_most_comes_first():
    history = rounds(power_law(8, asymptote=0.8))
    past = Past((trial(0.6, "a", steps=1), trial(0.9, "a", steps=5)))
    assert decide(history, actions=[ORDER, STEPS], past=past).settings == STEPS
    assert decide(history, actions=[ORDER, STEPS]).settings == ORDER


def test_earlier_curves_of_the_learner_give_the_exponent():
    seconds = np.arange(1.0, 13.0)
    figures = [Figure(s, 0.9 - 0.5 * s**-0.5, 0.002) for s in seconds]
    weights = Past((trial(None, "a", figures=figures), trial(0.5, "b"))).exponents
    near = np.abs(EXPONENTS - 0.5) < 0.2
    assert weights[near].sum() == pytest.approx(0.5 + near.mean() / 2, abs=0.02)


def test_what_is_kept_of_experience_is_of_the_same_learner_tasks_and_metric_and_survives_json():
    same = [trial(0.5, "a", created=f"2026-01-{day:02}T00:00:00+00:00", steps=day) for day in range(1, 29)]
    others = [
        trial(0.5, "a", metric="loss"),
        Trial({"kind": "numbers", "metric": "accuracy"}, {"learner": {"kind": "maml"}}, [], None, Cost(1.0)),
        Trial({"kind": "own", "metric": "accuracy"}, {"learner": {"kind": "protonet"}}, [], None, Cost(1.0)),
        Trial({"kind": "own", "metric": "accuracy"}, {}, [], None, Cost(1.0)),
    ]
    past = Past.of([*others, *same[::-1]], "maml", "own", "accuracy")
    assert list(past.trials) == same
    assert Past.from_json(json.loads(json.dumps(past.to_json()))) == past
