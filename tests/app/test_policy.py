"""Policies of run files: what they change, what is refused, and a resumed run after the experience has changed."""

import io
import json

import pytest
from rich.console import Console

import kshot
from kshot.app.build import build_source
from kshot.app.progress import Display
from kshot.app.run import run, train
from kshot.app.spec import parse_spec
from kshot.deciding.decisions import Outcome, decision_to_json
from kshot.deciding.experience import Cost, Experience, Figure, Trial
from kshot.files import owned
from kshot.training.checkpoint import load_file

pytestmark = pytest.mark.usefixtures("without_charts")

SINE = """\
name: sine
source: {kind: sinusoids, shots: 5}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01, steps: 1, order: 1}
train: {steps_per_round: 2, tasks_per_step: 2}
target: mse <= 0.0001
budget: {rounds: 30}
evaluate: {num_val_tasks: 10, num_test_tasks: 4, shots: []}
baselines: {names: []}
policy:
  kind: extrapolation
  patience: 9
  actions: [{learner.order: 2}, {learner.steps: 2, source.shots: 8}, {outer_lr: 0.01}]
"""


def go(out, text=SINE, *, resume=False):
    """The rounds with their decisions, and the final weights, of a run without its final evaluation."""
    spec = parse_spec(text, "test")
    with owned(out), Display(Console(file=io.StringIO()), "mse") as display:
        trained = train(spec, out, build_source(spec), display, resume=resume)
    rounds = [
        entry.to_json() | {"seconds": 0, "decision": decision_to_json(decision)}
        for entry, decision in zip(trained.result.rounds, trained.result.decisions)
    ]
    return trained.result, rounds, trained.learner.state_dict()


def changes(rounds):
    return [entry["decision"]["settings"] for entry in rounds if entry["decision"]["action"] == "change"]


def tried(value, data_set, **learner):
    descriptors = {"kind": "numbers", "metric": "mse", "higher_is_better": 0}
    return Trial(
        descriptors, {"learner": {"kind": "maml"} | learner}, [Figure(1.0, value)], None, Cost(1.0), data_set=data_set
    )


def events(out, kind):
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event for event in lines if event["kind"] == kind]


class Kill(BaseException):
    pass


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Trials of which two steps are better than one; after `turn`, the order 2 is."""
    file = tmp_path_factory.mktemp("experience") / "known.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSHOT_EXPERIENCE", str(file))
        experience = Experience()
        experience.merge([tried(0.9, "a", steps=1), tried(0.5, "a", steps=2)])
        yield experience


def turn(experience):
    experience.forget(everything=True)
    experience.merge(
        [tried(value, data_set, order=order) for data_set in "abcdef" for order, value in ((1, 0.9), (2, 0.1))]
    )


def test_a_policy_decides_the_same_after_a_kill_and_another_experience(tmp_path, database, monkeypatch):
    text = SINE.replace("{learner.steps: 2, source.shots: 8}", "{learner.steps: 2}")
    result, rounds, weights = go(tmp_path / "whole", text)
    assert result.outcome is Outcome.NOT_REACHABLE
    assert changes(rounds) == [{"learner.steps": 2}, {"learner.order": 2}, {"outer_lr": 0.01}]
    assert rounds[-1]["decision"]["predicted"][-1][0] == 60

    def killed(display, round, decision):
        if round.number == 2:
            raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(Display, "decided", killed)
        with pytest.raises(Kill):
            go(tmp_path / "cut", text)
    turn(database)
    _, again, found = go(tmp_path / "cut", text, resume=True)
    assert again == rounds
    assert all((found[name] == tensor).all() for name, tensor in weights.items())
    assert len(events(tmp_path / "cut", "experience")) == 1
    _, other, _ = go(tmp_path / "other", text)
    assert changes(other)[0] == {"learner.order": 2}


def test_a_trained_run_is_opened_with_the_settings_of_its_best_round_and_its_report_has_the_prediction(tmp_path):
    report = run(parse_spec(SINE, "test"), tmp_path / "run", console=Console(file=io.StringIO()))
    best, last = report["rounds"][report["best_round"] - 1], report["rounds"][-1]["decision"]
    opened = kshot.load(tmp_path / "run")
    assert opened.learner.inner_settings == {"steps": 2, "order": 2}
    expected = load_file(tmp_path / "run" / "checkpoints" / "train" / best["checkpoint"] / "weights.safetensors")
    found = opened.learner.state_dict()
    assert all((found[name] == tensor).all() for name, tensor in expected.items())
    scored = kshot.evaluate(opened.learner, kshot.sources.sinusoids(shots=5), split="val", num_tasks=10, audit=False)
    assert scored.metrics["mse"].mean == pytest.approx(best["val"]["mse"]["mean"], rel=1e-5)
    assert report["outcome"] == "NOT_REACHABLE"
    assert last["predicted"][-1][0] == 60
    assert "is predicted to be" in last["reason"]
    assert "predicted to be missed within the budget" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ("{learner.inner_lr: 0.1}", "cannot set learner.inner_lr: 0.1: for this learner it is fixed"),
        ("{learner.steps: -2}", "cannot set learner.steps: -2: "),
        ("{source.ways: 3}", "cannot set source.ways: 3: for this source it is fixed"),
        ("{outer_rate: 3}", "cannot set outer_rate: 3: there is no such setting; what may change is outer_lr, clip"),
    ],
)
def test_what_is_not_permitted_is_refused_before_the_run_has_a_folder(tmp_path, action, why):
    text = SINE.replace("{learner.order: 2}", action)
    with pytest.raises(ValueError, match=f"a policy of this run {why}"):
        run(parse_spec(text, "test"), tmp_path / "run", console=Console(file=io.StringIO()))
    assert not (tmp_path / "run" / "spec.yaml").exists()
