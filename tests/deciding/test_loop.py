import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kshot
from kshot import objectives
from kshot.deciding.decisions import Change, Continue, EventLog, Outcome, Rollback, Round, Stop
from kshot.deciding.loop import Observer, back_to_last_round, run_until
from kshot.deciding.policies import Budget, rules
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target
from kshot.sources import sinusoids
from kshot.tasks import watched
from kshot.training.step import MetaGradient


def rounds(*means, ci=0.01, lrs=None, **last):
    lrs = lrs or [1e-3] * len(means)
    made = [
        Round(i, 100 * i, 0.5, {"accuracy": Interval(mean, ci, 100)}, {"outer_lr": lr}, 10.0 * i, f"round-{i}")
        for i, (mean, lr) in enumerate(zip(means, lrs), 1)
    ]
    if last:
        made[-1] = Round(**vars(made[-1]) | last)
    return made


def decide(history, target="accuracy >= 0.9", **budget):
    return rules(Target.parse(target), Budget(**({"rounds": 99} | budget)))(history)


def test_the_whole_interval_must_meet_the_target():
    assert isinstance(decide(rounds(0.905)), Continue)
    stop = decide(rounds(0.92))
    assert stop.outcome is Outcome.TARGET_MET
    assert "0.9200 ± 0.0100 (100 tasks) meets accuracy >= 0.9" in stop.reason


def test_a_target_may_be_an_upper_bound():
    history = [Round(1, 1, 0.5, {"mse": Interval(0.7, 0.05, 10)}, {"outer_lr": 1.0}, 1.0, "a")]
    assert decide(history, "mse <= 0.8").outcome is Outcome.TARGET_MET
    assert isinstance(decide(history, "mse <= 0.7"), Continue)


@pytest.mark.parametrize(
    ("budget", "phrase"),
    [({"rounds": 2}, "2 of 2 rounds"), ({"steps": 200}, "200 of 200 steps"), ({"minutes": 0.3}, "0.3 of 0.3 minutes")],
)
def test_a_spent_budget_stops_and_names_the_best(budget, phrase):
    stop = decide(rounds(0.8, 0.7999), **budget)
    assert stop.outcome is Outcome.BUDGET_SPENT
    assert phrase in stop.reason
    assert "0.8000 ± 0.0100 (100 tasks) in round 1" in stop.reason


def test_a_clear_fall_rolls_back_to_the_best_round_and_slows_down():
    decision = decide(rounds(0.7, 0.8, 0.75))
    assert isinstance(decision, Rollback)
    assert decision.to_round == 2
    assert decision.settings == {"outer_lr": pytest.approx(3e-4)}
    assert isinstance(decide(rounds(0.7, 0.8, 0.785)), Continue)  # intervals overlap: noise


def test_a_stall_slows_down_twice_and_then_stops():
    stalled = [0.8, 0.795, 0.796, 0.797, 0.798]
    change = decide(rounds(*stalled))
    assert change == Change({"outer_lr": pytest.approx(3e-4)}, change.reason)
    just_changed = rounds(*stalled, 0.797, lrs=[1e-3] * 5 + [3e-4])
    assert isinstance(decide(just_changed), Continue)
    twice = rounds(*stalled, *[0.79] * 8, lrs=[1e-3] * 5 + [3e-4] * 4 + [9e-5] * 4)
    assert decide(twice).outcome is Outcome.NO_PROGRESS


def test_divergence_stops_and_keeps_its_sentence():
    stop = decide(rounds(0.5, 0.6, val={}, diverged="step 7: the loss is nan"))
    assert stop == Stop(Outcome.DIVERGED, "step 7: the loss is nan")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 0.1))
def test_the_policy_is_pure_and_always_decides(means, ci):
    history = rounds(*means, ci=ci)
    first, second = decide(history), decide(history)
    assert first == second
    assert first.reason


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy > 0.9", "accuracy >= much", ">= 0.9", "accuracy >= 0.9 mse <= 1", ""]
)
def test_targets_that_are_none(text):
    with pytest.raises(ValueError, match="a target reads 'METRIC >= NUMBER'"):
        Target.parse(text)


def test_a_target_of_an_unknown_metric_names_the_known():
    with pytest.raises(ValueError, match="metric is 'f1', but these tasks report loss, accuracy"):
        Target.parse("f1 >= 1").of({"loss": Interval(1, 1, 1), "accuracy": Interval(1, 1, 1)})


# the loop -----------------------------------------------------------------------------------------------------------


def learner(**options):
    return kshot.maml(kshot.models.mlp(1, 1, [8]), **({"inner_lr": 0.02, "objective": objectives.mse} | options))


OPTIONS = {"steps_per_round": 3, "tasks_per_step": 2, "num_val_tasks": 4}


def test_decisions_never_see_the_test_split():
    source = watched(sinusoids())
    run_until(learner(), source, "mse <= 0", budget=Budget(rounds=2), **OPTIONS)
    assert set(source.reads) == {("rounds", "train"), ("rounds", "val")}


def test_the_learner_ends_with_the_weights_of_its_best_round(tmp_path):
    ours, source = learner(), sinusoids()
    run = run_until(
        ours, source, "mse <= 0", budget=Budget(rounds=5), outer_lr=0.3, clip=None, folder=tmp_path, **OPTIONS
    )
    means = [r.val["mse"].mean for r in run.rounds]
    assert run.outcome is Outcome.BUDGET_SPENT
    assert len(run.decisions) == len(run.rounds) == 5
    assert run.best.val["mse"].mean == min(means)
    assert kshot.evaluate(ours, source, split="val", num_tasks=4, audit=False).metrics["mse"].mean == pytest.approx(
        min(means)
    )


def test_a_policy_of_ones_own_changes_and_rolls_back(tmp_path):
    def policy(history):
        if len(history) == 1:
            return Change({"outer_lr": 0.5}, "louder")
        if len(history) == 2:
            return Rollback(1, "too loud", {"outer_lr": 0.01})
        return Stop(Outcome.NO_PROGRESS, "enough")

    log = EventLog(tmp_path / "events.jsonl")
    run = run_until(learner(), sinusoids(), "mse <= 0", policy=policy, event_log=log, folder=tmp_path / "c", **OPTIONS)
    assert [r.settings["outer_lr"] for r in run.rounds] == [1e-3, 0.5, 0.01]
    assert [r.step for r in run.rounds] == [3, 6, 9]
    assert [e["action"] for e in EventLog(tmp_path / "events.jsonl").of("decision")] == ["change", "rollback", "stop"]
    assert log.of("decision")[1]["reason"] == "too loud"


def test_a_diverging_run_stops_and_keeps_the_last_good_weights(tmp_path):
    ours = learner(inner_lr=1e30)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    run = run_until(ours, sinusoids(), "mse <= 0", folder=tmp_path, **OPTIONS)
    assert run.outcome is Outcome.DIVERGED
    assert run.best is None
    assert all((tensor == before[name]).all() for name, tensor in ours.state_dict().items())
    assert (tmp_path / "round-0001" / "weights.safetensors").exists()


def test_steps_bound_the_run_exactly():
    run = run_until(learner(), sinusoids(), "mse <= 0", budget=Budget(rounds=None, steps=7), **OPTIONS)
    assert [r.step for r in run.rounds] == [3, 6, 7]


class Kill(Exception):
    pass


class Killer(Observer):
    """Dies after a number of steps, or in the middle of a validation."""

    def __init__(self, step=None, at_validation=None):
        self.at_step, self.at_validation, self.validations = step, at_validation, 0

    def step(self, progress, end):
        if progress.step == self.at_step:
            raise Kill

    def task(self, done, total):
        self.validations += done == total
        if self.validations == self.at_validation:
            raise Kill


@pytest.mark.parametrize("killer", [Killer(step=2), Killer(step=5), Killer(step=7), Killer(at_validation=2)])
def test_a_killed_run_goes_on_bitwise(tmp_path, killer):
    def go(folder, observer=None):
        torch.manual_seed(1)
        ours = learner()
        run = run_until(
            ours, sinusoids(), "mse <= 0", budget=Budget(rounds=4), outer_lr=0.05, folder=folder,
            checkpoint_seconds=1e-9, observer=observer, **OPTIONS,
        )  # fmt: skip
        return run, ours.state_dict()

    whole, expected = go(tmp_path / "whole")
    with pytest.raises(Kill):
        go(tmp_path / "cut", killer)
    resumed, found = go(tmp_path / "cut")
    strip = lambda run: [json.dumps(r.to_json() | {"seconds": 0}) for r in run.rounds]  # noqa: E731
    assert strip(resumed) == strip(whole)
    assert [type(d) for d in resumed.decisions] == [type(d) for d in whole.decisions]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_was_trained_after_the_last_round_is_left_out(tmp_path):
    def go(folder, rounds, observer=None):
        torch.manual_seed(1)
        ours = learner()
        run_until(
            ours, sinusoids(), "mse <= 0", budget=Budget(rounds=rounds), outer_lr=0.05, folder=folder,
            checkpoint_seconds=1e-9, schedule="constant", observer=observer, **OPTIONS,
        )  # fmt: skip
        return ours.state_dict()

    expected = go(tmp_path / "whole", 2)
    with pytest.raises(Kill):
        go(tmp_path / "cut", 4, Killer(step=8))
    assert [each.number for each in back_to_last_round(tmp_path / "cut")] == [1, 2]
    assert not list((tmp_path / "cut").glob("step-*")), "of the third round"
    found = go(tmp_path / "cut", 2)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert back_to_last_round(tmp_path / "none") == []


class Clock:
    """A clock by which each engine takes as long as is told."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.seconds, plain = 0.0, seconds, MetaGradient._step
        monkeypatch.setattr("kshot.training.step.time", SimpleNamespace(perf_counter=lambda: self.now))

        def timed(gradient, engine, tasks):
            self.now += self.seconds[engine]
            return plain(gradient, engine, tasks)

        monkeypatch.setattr(MetaGradient, "_step", timed)


def go_with_dropout(folder, every=1e9, observer=None):
    """Weights after 40 steps by the engine that is the fastest on the clock; they depend on it, as dropout does."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(1, 24), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(24, 1)
    )
    ours = kshot.maml(network, inner_lr=0.01, steps=2, objective=kshot.objectives.mse)
    run_until(
        ours, sinusoids(), "mse <= 0", budget=Budget(rounds=2), steps_per_round=20, num_val_tasks=2, folder=folder,
        checkpoint_seconds=every, observer=observer, mode="auto",
        event_log=EventLog(folder.with_suffix(".log")),
    )  # fmt: skip
    return ours.state_dict()


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """The weights that the loop and that vmap lead to."""
    weights = {}
    for engine, slow in (("loop", {"vmap": 2.0}), ("vmap", {"loop": 2.0})):
        with pytest.MonkeyPatch.context() as patch:
            Clock(patch, **{engine: 1.0, "traced": 2.0} | slow)
            folder = tmp_path_factory.mktemp("uncut") / engine
            weights[engine] = go_with_dropout(folder)
            assert [e["engine"] for e in EventLog(folder.with_suffix(".log")).of("engine")] == [engine]
    assert any(not torch.equal(one, other) for one, other in zip(*map(dict.values, weights.values())))
    return weights


@pytest.mark.parametrize(
    ("stop", "every"),
    [(12, 1e-9), (12, 1e9), (4, 1e-9)],
    ids=["after the choice", "without a checkpoint since the choice", "while it measures"],
)
def test_a_killed_run_goes_on_with_the_engine_that_auto_chose(uncut, tmp_path, monkeypatch, stop, every):
    clock = Clock(monkeypatch, loop=1.0, vmap=2.0, traced=2.0)
    with pytest.raises(Kill):
        go_with_dropout(tmp_path / "cut", every, Killer(step=stop))
    if stop > 9:  # measured again, it would be another one
        clock.seconds = {"loop": 2.0, "vmap": 1.0, "traced": 2.0}
    found = go_with_dropout(tmp_path / "cut", every)
    assert all(torch.equal(found[name], expected) for name, expected in uncut["loop"].items())


def test_experience_survives_a_line_cut_short(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).record("a", value=1)
    with path.open("a") as file:
        file.write('{"kind": "b", "val')
    again = EventLog(path)
    again.record("c")
    assert [event["kind"] for event in EventLog(path).events] == ["a", "c"]
