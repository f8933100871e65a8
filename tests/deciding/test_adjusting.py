"""Settings that decisions change between rounds: each equals that of a learner or source that always had it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import objectives
from kshot.deciding import Adjustable, Budget, Change, Continue, EventLog, Observer, Outcome, Rollback, Stop, run_until
from kshot.deciding.policies import rules
from kshot.evaluation.target import Target
from kshot.learners import alfa, dynamic_evaluation, imaml, maml_pp, meta_sgd, reptile
from kshot.sources import gaussian_processes, sinusoids
from kshot.tasks import ClassTasks, GroupTasks, mixture, watched
from kshot.training.fit import Settings, meta_training_loop

OPTIONS = {"steps_per_round": 3, "tasks_per_step": 2, "num_val_tasks": 3, "schedule": "constant", "outer_lr": 0.01}
SETTINGS = Settings(0.01, 10.0, "constant", 300, 2)


def learner(*, frozen=True, **options):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    network[0].requires_grad_(not frozen)
    return kshot.maml(network, **({"inner_lr": 0.02, "steps": 2, "objective": objectives.mse} | options))


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def thawed():
    made = learner()
    made.model[0].requires_grad_(True)
    return made


@pytest.mark.parametrize(
    ("settings", "make", "source", "outer", "mode"),
    [
        ({"learner.order": 1}, lambda: learner(order=1), sinusoids(), {}, "loop"),
        ({"learner.order": 1}, lambda: learner(order=1), sinusoids(), {}, "vmap"),
        ({"learner.order": 1}, lambda: learner(order=1), sinusoids(), {}, "traced"),
        ({"learner.steps": 4}, lambda: learner(steps=4), sinusoids(), {}, "loop"),
        ({"learner.steps": 1, "learner.order": 1}, lambda: learner(steps=1, order=1), sinusoids(), {}, "loop"),
        ({"learner.unfrozen": "model.0.*"}, thawed, sinusoids(), {}, "loop"),
        pytest.param({"learner.unfrozen": "model.0.*"}, thawed, sinusoids(), {}, "traced", marks=pytest.mark.slow),
        ({"source.shots": 4}, learner, sinusoids(shots=4), {}, "vmap"),
        ({"source.queries": 3, "outer_lr": 0.1}, learner, sinusoids(queries=3), {"outer_lr": 0.1}, "loop"),
        ({"size": 3}, learner, sinusoids(), {"size": 3}, "loop"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else value if isinstance(value, str) else "",
)
def test_a_change_trains_on_as_if_the_setting_had_always_been_so(tmp_path, settings, make, source, outer, mode):
    ours = learner()
    checkpoints = []

    def policy(rounds):
        checkpoints.append(rounds[-1].checkpoint)
        return Change(settings, "try it") if len(rounds) == 1 else Stop(Outcome.NO_PROGRESS, "enough")

    run = run_until(ours, sinusoids(), "mse <= 0", policy=policy, mode=mode, folder=tmp_path / "run", **OPTIONS)
    assert {name: run.rounds[1].settings[name] for name in settings} == settings

    before = meta_training_loop(learner(), sinusoids(), SETTINGS, mode=mode)
    before.run(3)
    theirs = make()
    loop = meta_training_loop(theirs, source, Settings(**(vars(SETTINGS) | outer)), mode=mode)
    theirs.load_state_dict(before.module.state_dict())
    for name, parameter in before.parameters.items():  # Adam's moments, but of what was frozen
        moments = before.optimizer.state[parameter]
        loop.optimizer.state[loop.parameters[name]] = {key: value.clone() for key, value in moments.items()}
    loop.step = 3
    loop.run(3)
    last = learner()
    last.load_state_dict(
        kshot.training.checkpoint.load_file(tmp_path / "run" / checkpoints[-1] / "weights.safetensors")
    )
    assert equal(weights(last), weights(theirs))
    unchanged = meta_training_loop(learner(), sinusoids(), SETTINGS, mode=mode)
    unchanged.run(6)
    assert not equal(weights(last), weights(unchanged.module)), "the setting makes no difference"


def test_the_learner_ends_with_the_settings_of_its_best_round(tmp_path):
    def policy(rounds):
        return Change({"learner.steps": 60}, "too many") if len(rounds) == 1 else Stop(Outcome.NO_PROGRESS, "enough")

    ours = learner(inner_lr=0.5, steps=1)
    run = run_until(ours, sinusoids(), "mse <= 0", policy=policy, **OPTIONS)
    assert run.best.number == 1
    assert [r.settings["learner.steps"] for r in run.rounds] == [1, 60]
    assert ours.solver.steps == 1
    found = kshot.evaluate(ours, sinusoids(), split="val", num_tasks=3, audit=False).metrics["mse"]
    assert found == run.best.val["mse"]


class Kill(Exception):
    pass


ACTIONS = [{"learner.order": 1}, {"learner.steps": 3}, {"source.shots": 4}, {"learner.unfrozen": ["*"]}]


class Killer(Observer):
    """Kills a run of four actions and a rollback at a place before or after one of its six decisions."""

    def __init__(self, place=None, after_round=0):
        self.place, self.after_round, self.validations = place, after_round, 0

    def step(self, progress, end):
        at = {"last step": 3 * self.after_round, "first step": 3 * self.after_round + 1}
        if progress.step == at.get(self.place):
            raise Kill

    def task(self, done, total):
        self.validations += done == total
        if self.place == "validation" and self.validations == self.after_round:
            raise Kill

    def decided(self, round, decision):
        if self.place == "decided" and round.number == self.after_round:
            raise Kill

    def policy(self, rounds):
        if self.place == "decision" and len(rounds) == self.after_round:
            raise Kill
        number = len(rounds)
        if number <= len(ACTIONS):
            return Change(ACTIONS[number - 1], "the next")
        if number == len(ACTIONS) + 1:
            best = min(rounds, key=lambda r: r.val["mse"].mean)
            return Rollback(best.number, "back", {"outer_lr": 0.003})
        return Stop(Outcome.NO_PROGRESS, "enough")


def go(folder, killer, mode="loop"):
    ours = learner()
    log = EventLog(folder / "events.jsonl")
    run = run_until(
        ours, sinusoids(), "mse <= 0", policy=killer.policy, folder=folder / "c", checkpoint_seconds=1e-9,
        observer=killer, event_log=log, mode=mode, **OPTIONS,
    )  # fmt: skip
    return [json.dumps(r.to_json() | {"seconds": 0}) for r in run.rounds], run.decisions, weights(ours), log


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return go(folder, Killer())


@pytest.mark.parametrize("place", ["last step", "validation", "decision", "decided", "first step"])
@pytest.mark.parametrize("after_round", [1, 3, 5, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 4))])
def test_a_run_killed_before_or_after_each_action_goes_on_bitwise(tmp_path, whole, place, after_round):
    rounds, decisions, expected, _ = whole
    with pytest.raises(Kill):
        go(tmp_path, Killer(place, after_round))
    again, same_decisions, found, _ = go(tmp_path, Killer())
    assert again == rounds
    assert same_decisions == decisions
    assert equal(found, expected)


def test_actions_are_logged_and_a_rollback_restores_the_settings_of_its_round(whole):
    rounds, decisions, _, log = whole
    logged = log.of("decision")
    assert [each["settings"] for each in logged[:4]] == ACTIONS
    settings = [json.loads(each)["settings"] for each in rounds]
    assert settings[3]["source.shots"] == 4
    assert settings[4]["learner.unfrozen"] == ["*"]
    back = settings[decisions[4].to_round - 1]
    assert settings[5] == back | {"outer_lr": 0.003}


# what is refused


def series_reader():
    return dynamic_evaluation(nn.Embedding(5, 5), inner_lr=0.1)


REFUSED = [
    (learner, {"learner.rate": 1}, "for this learner it is fixed; what may change is outer_lr, .*learner.steps"),
    (learner, {"outer_rate": 1}, "there is no such setting"),
    (learner, {"learner.steps": -1}, "steps"),
    (learner, {"learner.order": 3}, "order"),
    (learner, {"outer_lr": -1.0}, "outer_lr"),
    (learner, {"source.ways": 3}, "for this source it is fixed"),
    (learner, {"source.shots": 0}, "shots"),
    (learner, {"learner.unfrozen": "encoder.*"}, "matches none of the frozen parameters model.0.weight, model.0.bias"),
    (learner, {"learner.unfrozen": 3}, "it takes a shell pattern of names of parameters, or a list"),
    (lambda: learner(frozen=False), {"learner.unfrozen": "*"}, "no parameter of this learner is frozen"),
    (lambda: maml_pp(learner().model, inner_lr=0.1, objective=objectives.mse), {"learner.steps": 3}, "it is fixed"),
    (lambda: alfa(learner().model, inner_lr=0.1, objective=objectives.mse), {"learner.steps": 3}, "it is fixed"),
    (lambda: reptile(learner().model, inner_lr=0.1, objective=objectives.mse), {"learner.order": 2}, "it is fixed"),
    (lambda: imaml(learner().model, inner_lr=0.1, objective=objectives.mse), {"learner.order": 1}, "it is fixed"),
    (
        lambda: meta_sgd(learner().model, inner_lr=0.1, objective=objectives.mse),
        {"learner.unfrozen": "*"},
        "",  # it has no rates for the parameters that were frozen
    ),
]


@pytest.mark.parametrize(("make", "action", "why"), REFUSED, ids=range(len(REFUSED)))
def test_actions_that_are_not_permitted_are_refused_before_training(make, action, why):
    target = Target.parse("mse <= 0")
    policy = rules(target, Budget(rounds=2), actions=[action])
    ours = make()
    before = weights(ours), {name: p.requires_grad for name, p in ours.named_parameters()}
    source = watched(sinusoids())
    with pytest.raises(ValueError, match=f"(?s)a policy of this run cannot set {next(iter(action))}: .*{why}"):
        run_until(ours, source, target, policy=policy, **OPTIONS)
    assert ("rounds", "val") not in source.reads
    assert equal(weights(ours), before[0])
    assert {name: p.requires_grad for name, p in ours.named_parameters()} == before[1]


def test_a_setting_that_the_loss_does_not_depend_on_is_refused():
    ours = learner(frozen=False)
    ours.model.register_parameter("unused", nn.Parameter(torch.ones(1), requires_grad=False))
    with pytest.raises(ValueError, match="the loss does not depend on what it unfreezes"):
        Adjustable(ours, sinusoids()).check([{"learner.unfrozen": "model.unused"}])


def test_permitted_settings():
    names = Adjustable(learner(), sinusoids()).values
    assert names == {
        "learner.steps": 2, "learner.order": 2, "learner.unfrozen": [], "source.shots": 10, "source.queries": 10
    }  # fmt: skip
    of = lambda made: set(made.inner_settings)  # noqa: E731
    model = learner(frozen=False).model
    assert of(imaml(model, inner_lr=0.1, objective=objectives.mse)) == {"steps"}
    assert of(reptile(model, inner_lr=0.1, objective=objectives.mse)) == {"steps"}
    assert of(maml_pp(model, inner_lr=0.1, objective=objectives.mse)) == set()
    assert of(meta_sgd(model, inner_lr=0.1, objective=objectives.mse)) == {"steps", "order"}
    assert of(series_reader()) == {"order"}
    assert of(kshot.protonet(nn.Flatten())) == set()


# sources


def class_tasks(**options):
    images = np.random.default_rng(0).integers(0, 255, (80, 1, 6, 6), np.uint8)
    classes = {
        "train": {f"t{c}": range(10 * c, 10 * c + 10) for c in range(5)},
        "val": {f"v{c}": range(10 * c, 10 * c + 10) for c in range(5, 8)},
    }
    return ClassTasks(images, classes, **({"ways": 3, "shots": 1, "queries": 2} | options))


def test_training_tasks_of_classes_have_other_sizes_and_augmentation():
    plain = class_tasks()
    assert plain.training_settings == {"shots": 1, "queries": 2, "ways": 3, "augment": {}}
    changed = plain.with_training(shots=(2, 3), ways=4, augment={"flip": True})
    expected = class_tasks(train_ways=4, shots=(2, 3), augment=kshot.data.images.augment.Augment(flip=True))
    for ours, theirs in zip(changed.task("train", 5), expected.task("train", 5)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert changed.training_settings["shots"] == [2, 3]
    assert changed.training_settings["augment"]["flip"]
    assert plain.task("val", 0).support.targets.shape == (3, 3)
    with pytest.raises(ValueError, match="fewer than the 6 ways"):
        plain.with_training(ways=6)
    with pytest.raises(ValueError, match="lower shots or queries"):
        plain.with_training(shots=9)
    assert plain.with_training(shots=8).shots.high == 8  # validation classes need not suffice


def test_ways_of_training_are_refused_where_the_model_has_a_fixed_number():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    fixed = Adjustable(kshot.maml(model, inner_lr=0.1), class_tasks())
    with pytest.raises(ValueError, match="a policy of this run cannot set source.ways: 4: "):
        fixed.check([{"source.ways": 4}])
    fixed.check([{"source.shots": 4}, {"source.augment": {"flip": True}}])
    assert fixed.changed == {}
    Adjustable(kshot.protonet(nn.Flatten()), class_tasks()).check([{"source.ways": 4}])


def test_training_tasks_of_other_sources():
    rows = kshot.data.dataset.ArrayDataset((np.arange(40.0).reshape(20, 2), np.arange(20.0)[:, None]))
    groups = GroupTasks(rows, {"train": {"a": range(20)}}, objective=objectives.mse, shots=3, queries=2)
    assert groups.training_settings == {"shots": 3, "queries": 2}
    task = groups.with_training(shots=5, queries=4).task("train", 0)
    assert (len(task.support.weight), len(task.query.weight)) == (5, 4)
    processes = gaussian_processes(shots=(3, 5), queries=4)
    assert processes.training_settings == {"shots": [3, 5], "queries": 4}
    assert len(processes.with_training(shots=[2, 7]).task("train", 0).support.weight) == 7
    both = mixture({"a": sinusoids(shots=4), "b": sinusoids(shots=4, seed=1)})
    assert both.training_settings == {"shots": 4, "queries": 10}
    assert len(both.with_training(shots=6).task("train", 0).support.weight) == 6


def test_reads_of_changed_training_tasks_are_logged():
    source = watched(sinusoids())
    changed = source.with_training(shots=3)
    with source.during("x"):
        pass
    changed.task("train", 0)
    assert source.reads["", "train"] == 1


def test_a_policy_without_actions_continues_as_before():
    run = run_until(
        learner(), sinusoids(), "mse <= 0", budget=Budget(rounds=2),
        policy=lambda rounds: Continue("on") if len(rounds) < 2 else Stop(Outcome.BUDGET_SPENT, "end"), **OPTIONS,
    )  # fmt: skip
    assert [type(each) for each in run.decisions] == [Continue, Stop]
