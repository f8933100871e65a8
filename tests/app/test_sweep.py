"""`kshot sweep`: what is refused, what is tried, what is kept, and what an interruption or a killed worker costs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import torch
import yaml
from optuna.trial import TrialState

import kshot as package
from kshot.app.spec import load_spec
from kshot.app.sweep import command, study, worker
from kshot.app.sweep.space import Space
from kshot.deciding.experience import Cost, Experience, Figure, Trial
from kshot.evaluation.target import Target
from kshot.files import read_lines
from kshot.objectives import Objective

pytestmark = pytest.mark.usefixtures("without_charts")

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "name": "tiny",
    "source": {"kind": "sinusoids"},
    "model": {"kind": "mlp", "hidden": [4]},
    "learner": {"kind": "maml", "inner_lr": 0.01, "steps": 1},
    "train": {"steps_per_round": 2, "tasks_per_step": 2, "mode": "vmap", "outer_lr": 0.01},
    "target": "mse <= 0.0001",
    "budget": {"rounds": 2},
    "evaluate": {"num_val_tasks": 4, "num_test_tasks": 6, "shots": []},
    "baselines": {"names": ["support_mean"], "num_val_tasks": 2},
}
SPACE = {"train.outer_lr": {"low": "1e-4", "high": 0.1, "log": True}, "learner.steps": {"low": 1, "high": 3}}


@pytest.fixture
def waves(tmp_path):
    (tmp_path / "waves.yaml").write_text(yaml.safe_dump(TINY | {"search": SPACE}))
    return tmp_path / "waves.yaml"


def known(*trials):
    """Experience of these trials alone."""
    experience = Experience("sqlite://")
    experience.trials = lambda **options: list(trials)
    return experience


def search(out, *, data=None, trials=4, **options):
    options = {"workers": 1, "experience": known()} | options
    return package.sweep(data or TINY | {"search": SPACE}, out, trials=trials, **options)


def settings(report):
    return [each["settings"] for each in report["sweep"]["trials"]]


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (None, "kshot sweep needs a section 'search'"),
        ({}, "kshot sweep needs a section 'search'"),
        ({"source.shots": [5, 10]}, "'source.shots' is no setting that can be searched"),
        ({"trian.outer_lr": [1, 2]}, "did you mean 'train'"),
        ({"train..outer_lr": [1, 2]}, "'train..outer_lr' is no setting"),
        ({"learner": [{"kind": "anil"}, {"kind": "maml"}], "learner.steps": [1, 2]}, "learner.steps is a part of"),
        ({"learner.steps": [2]}, "a list of two or more choices"),
        ({"learner.steps": [2, 2]}, "no two of them the same"),
        ({"learner.steps": {"low": 1}}, "{low: 1, high: 5}"),
        ({"learner.steps": {"low": 3, "high": 1}}, "low must be below high"),
        ({"train.outer_lr": {"low": 0, "high": 1, "log": True}}, "a logarithmic scale is for low above 0"),
        ({"train.outer_lr": {"low": "small", "high": 1}}, "got {'high': 1, 'low': 'small'}"),
        ({"train.outer_lr": {"low": -1, "high": 3}}, "train.outer_lr -1: train.outer_lr: input should be greater"),
        ({"learner.stepz": [1, 2]}, "unknown key 'learner.stepz'"),
        ({"learner.kind": ["maml", "mamml"]}, "did you mean 'maml'"),
        ({"learner": [{"kind": "maml", "inner_lr": 0.1}, {"kind": "protonet"}]}, 'with learner {"kind": "protonet"}: '),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched_is_a_sentence_before_any_training(section, sentence, kshot, tmp_path):
    (tmp_path / "waves.yaml").write_text(yaml.safe_dump(TINY | ({} if section is None else {"search": section})))
    done = kshot("sweep", "waves.yaml", "--out", "found")
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "found").exists()


def test_folds_are_refused(waves, kshot):
    assert "evaluate.folds are for kshot run" in kshot("sweep", waves, "--set", "evaluate.folds=3").err


def test_other_commands_say_whose_the_section_is(waves, kshot):
    assert "the section 'search' is for `kshot sweep`" in kshot("run", waves).err
    with pytest.raises(ValueError, match="is for `kshot sweep`"):
        load_spec(str(waves))


@pytest.mark.parametrize("url", ["nothing", "sqlite:////nowhere/at/all.db", "oracle://me:secret@host/name"])
def test_a_database_that_cannot_be_used_is_a_sentence_without_its_password(url, waves, kshot, tmp_path):
    done = kshot("sweep", waves, "--storage", url, "--out", "found")
    assert done.code == 2
    assert "cannot be opened" in done.err
    assert "secret" not in done.err + done.out
    assert "Traceback" not in done.err


def test_values_of_settings_reach_the_run_file_as_they_are():
    choices = [None, True, 1e-5, "a: b", {"kind": "mlp", "hidden": [8]}]
    space = Space.parse({"model": choices, "train.outer_lr": {"low": 1e-5, "high": 1e-4}}, "x")
    for choice, held in zip(choices, space.distributions["model"].choices):
        (override,) = space.overrides({"model": held})
        assert package.app.spec.parse_values("a: 1", "x", [override]).values["model"] == choice
    (override,) = space.overrides({"train.outer_lr": 1e-5})
    assert package.app.spec.parse_values("a: 1", "x", [override]).values == {"a": 1, "train": {"outer_lr": 1e-5}}


def test_the_ends_of_ranges_and_all_choices_are_corners():
    space = Space.parse({"learner.kind": ["maml", "anil"], "learner.steps": {"low": 1, "high": 6, "step": 2}}, "x")
    assert list(space.corners()) == [
        {"learner.kind": kind, "learner.steps": steps} for kind in ("maml", "anil") for steps in (1, 5)
    ]


def test_the_best_on_validation_tasks_is_tested_once(waves, kshot, tmp_path):
    done = kshot("sweep", waves, "--trials", 5, "--workers", 1, "--out", "found")
    assert done.code == 1, done.err  # the target is out of reach
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    trials = report["sweep"]["trials"]
    assert len(trials) == 5
    assert trials[0]["settings"] == {"train.outer_lr": 0.01, "learner.steps": 1}  # of the run file
    best = min(trials, key=lambda each: each["figure"]["mean"])
    assert best["kept"]
    assert report["val"]["mse"]["mean"] == best["figure"]["mean"]
    assert "How these settings were found" in (tmp_path / "found" / "report.html").read_text()
    opened = package.load(tmp_path / "found")
    assert opened.spec.learner.steps == best["settings"]["learner.steps"]
    assert opened.spec.train.outer_lr == best["settings"]["train.outer_lr"]
    assert opened.report["test"]["mse"]["num_tasks"] == 6
    for each in trials:
        events = read_lines(tmp_path / "found" / "trials" / f"{each['number']:04d}" / "events.jsonl").values
        assert "val" in {event.get("split") for event in events}
        assert "test" not in {event.get("split") for event in events}
    again = kshot("sweep", waves, "--trials", 5, "--workers", 1, "--out", "found", "--resume")
    assert "trial" not in again.out.split("is kept")[0].replace(f"trial {best['number']}", "").replace("5 trials", "")
    assert json.loads((tmp_path / "found" / "report.json").read_text()) == report


def test_a_sweep_of_one_worker_depends_on_its_seed_alone(tmp_path):
    first, second, other = (
        search(tmp_path / name, trials=3, overrides=[f"seed={seed}"]) for name, seed in zip("abc", (1, 1, 2))
    )
    assert settings(first) == settings(second) != settings(other)
    figures = [[each["figure"] for each in report["sweep"]["trials"]] for report in (first, second)]
    assert figures[0] == figures[1]


def test_random_numbers_depend_on_the_number_of_the_trial_and_not_on_who_asks():
    def proposed(split):
        made = optuna.create_study(sampler=study.SeededByTrial(3))
        for number in range(14):
            if number == split:
                made.sampler = study.SeededByTrial(3)  # as in another process
            trial = made.ask()
            made.tell(trial, trial.suggest_float("a", 0, 1) + trial.suggest_float("b", 0, 1) ** 2)
        return [each.params for each in made.trials]

    with study.quiet():
        assert proposed(5) == proposed(13)
        assert len({each["a"] for each in proposed(5)} | {each["b"] for each in proposed(5)}) == 28


def tried(steps, value, *, kind="maml", data_set="one", outer_lr=0.001):
    plan = {"learner": {"kind": kind, "steps": steps}, "train": {"outer_lr": outer_lr}}
    descriptors = {"kind": "numbers", "metric": "mse", "higher_is_better": 0}
    return Trial(descriptors, plan, [Figure(1.0, 9.0), Figure(2.0, value)], None, Cost(2.0), data_set=data_set)


def test_what_experience_has_within_the_space_is_tried_first_the_best_of_its_data_set_before_others(tmp_path):
    trials = [
        tried(2, 0.5), tried(1, 0.4), tried(3, 0.1, data_set="two"), tried(2, 0.2, data_set="two"),
        tried(5, 0.01), tried(3, 0.01, kind="protonet"), tried(3, 0.01, outer_lr=1.0),
    ]  # fmt: skip
    report = search(tmp_path / "found", trials=4, experience=known(*trials))
    queued = [3, 1, 2]  # log errors above the best: 0; log 40, as 5 steps had 0.01; log 50, or log 2 on the other data
    assert [each["learner.steps"] for each in settings(report)] == [1, *sorted(queued, key=[3, 2, 1].index)]


def test_finished_trials_become_experience(tmp_path):
    experience = Experience("sqlite://")
    report = search(tmp_path / "found", trials=3, experience=experience)
    kept = experience.trials(shipped=False)
    assert len(kept) == 3
    steps = {trial.plan["learner"]["steps"] for trial in kept}
    assert steps == {each["learner.steps"] for each in settings(report)}
    figures = {each["figure"]["mean"] for each in report["sweep"]["trials"]}
    assert {trial.figures[-1].value for trial in kept} == figures


def test_trials_go_on_while_they_are_among_the_best_third(tmp_path):
    """Of learners whose figure is the same in all rounds: three of three if among the best third so far, else one."""
    data = TINY | {"model": None, "learner": {"kind": f"{__name__}:constant", "value": 0.0}, "budget": {"rounds": 3},
                   "search": {"learner.value": {"low": 0.0, "high": 9.0}}}  # fmt: skip
    report = search(tmp_path / "found", data=data, trials=9)
    trials, so_far = report["sweep"]["trials"], []
    for each in trials:
        so_far.append(each["figure"]["mean"])
        goes_on = each["figure"]["mean"] in sorted(so_far)[: max(len(so_far) // 3, 1)]
        assert (each["state"], each["rounds"]) == (("COMPLETE", 3) if goes_on else ("PRUNED", 1))
    assert {each["state"] for each in trials} == {"COMPLETE", "PRUNED"}


class Constant(package.Learner):
    """Predicts a value, beside a parameter that is trained for nothing."""

    def __init__(self, value, objective):
        super().__init__(objective)
        self.value, self.idle = value, torch.nn.Parameter(torch.zeros(()))

    def _adapt(self, support):
        return {}

    def predict(self, state, inputs):
        return torch.full((len(inputs), 1), self.value) + 0 * self.idle


def constant(value: float, objective: Objective) -> package.Learner:
    if value == 13:
        raise RuntimeError("not this one\nat all")
    return Constant(value, objective)


def test_a_trial_that_fails_costs_itself_alone(tmp_path):
    data = TINY | {"model": None, "learner": {"kind": f"{__name__}:constant", "value": 1},
                   "search": {"learner.value": {"low": 12, "high": 14}}}  # fmt: skip
    report = search(tmp_path / "found", data=data, trials=8)
    failed = [each for each in report["sweep"]["trials"] if each["failure"]]
    assert {each["settings"]["learner.value"] for each in failed} == {13}
    assert {each["failure"] for each in failed} == {"not this one"}
    assert len(report["sweep"]["trials"]) == 8


def test_a_trial_that_meets_the_target_ends_the_search(tmp_path):
    report = search(tmp_path / "found", trials=9, overrides=["target=mse <= 1000"])
    assert len(report["sweep"]["trials"]) == 1
    assert report["outcome"] == "TARGET_MET"


def test_the_time_ends_the_search_with_what_it_has(tmp_path, monkeypatch):
    clock = [time.time()]

    class Clock:
        monotonic, sleep = time.monotonic, time.sleep

        def time(self=None):
            clock[0] += 1
            return clock[0]

    monkeypatch.setattr(worker, "time", Clock)
    monkeypatch.setattr(command, "time", Clock)
    report = search(tmp_path / "found", trials=50, minutes=0.1)
    assert 0 < len(report["sweep"]["trials"]) < 6
    assert report["test"]["mse"]["num_tasks"] == 6


def test_an_interrupted_search_goes_on_and_repeats_the_trial_that_was_lost(tmp_path, monkeypatch):
    train = worker.train

    def cut(spec, folder, *args, **options):
        if folder.name == "0002":
            raise KeyboardInterrupt
        return train(spec, folder, *args, **options)

    monkeypatch.setattr(worker, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "found", trials=4)
    monkeypatch.setattr(worker, "train", train)
    with pytest.raises(ValueError, match="not empty"):
        search(tmp_path / "found", trials=4)
    with pytest.raises(ValueError, match="a sweep of another run file"):
        search(tmp_path / "found", trials=4, overrides=["seed=9"], resume=True)
    report = search(tmp_path / "found", trials=4, resume=True)
    assert [each["number"] for each in report["sweep"]["trials"]] == [0, 1, 3, 4]
    made = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'found' / 'study.sqlite'}")
    assert made.trials[2].state is TrialState.FAIL
    assert made.trials[3].params == made.trials[2].params
    assert made.trials[3].user_attrs["again"] == 2


def test_settings_are_tried_again_also_if_their_process_was_lost_before_it_noted_them():
    with study.quiet():
        made = optuna.create_study()
        study.queue(made, {"a": 0.5})
        made.tell(made.ask(), state=TrialState.FAIL)
        study.try_again(made)
        study.try_again(made)
        assert [each.user_attrs["queued"] for each in made.trials] == [{"a": 0.5}] * 2
        assert made.ask().suggest_float("a", 0, 1) == 0.5


def test_settings_that_kill_their_process_are_not_tried_for_ever():
    with study.quiet():
        made = optuna.create_study(sampler=study.SeededByTrial(0))
        for _ in range(9):
            study.try_again(made)
            trial = made.ask()
            trial.suggest_float("a", 0, 1)
            made.tell(trial, state=TrialState.FAIL)
    times = [round(each.params["a"], 6) for each in made.trials]
    assert [times.count(each) for each in dict.fromkeys(times)] == [study.ATTEMPTS] * 3
    assert study.taken(made.trials) == 0


def test_calls_that_share_a_database_share_a_study_and_the_one_with_the_best_tests_it(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    first = search(tmp_path / "a", trials=3, storage=storage)
    second = search(tmp_path / "b", trials=5, storage=storage)
    assert len(first["sweep"]["trials"]) == 3
    assert len(second["sweep"]["trials"]) == 5
    assert second["sweep"]["trials"][:3] == [each | {"kept": new["kept"]} for each, new in zip(
        first["sweep"]["trials"], second["sweep"]["trials"])]  # fmt: skip
    assert len(list((tmp_path / "b" / "trials").iterdir())) == 2
    assert ("test" in second) == (next(each["number"] for each in second["sweep"]["trials"] if each["kept"]) >= 3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_trial_of_a_killed_worker_is_tried_again_by_another(waves, tmp_path):
    """Two processes; one is killed while it trains."""
    words = ["sweep", str(waves), "--trials", "4", "--workers", "2", "--out", str(tmp_path / "found")]
    words += ["--set", "train.steps_per_round=60", "--set", "learner.steps=3"]
    options = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "kshot.app", *words], env=os.environ | options, stdout=subprocess.PIPE, text=True
    )
    url = f"sqlite:///{tmp_path / 'found' / 'study.sqlite'}"
    killed = None
    while killed is None and started.poll() is None:
        time.sleep(0.05)
        if (tmp_path / "found" / "trials").exists():
            for each in optuna.load_study(study_name=None, storage=url).get_trials(states=(TrialState.RUNNING,)):
                if "process" in each.user_attrs and (tmp_path / "found" / "trials" / f"{each.number:04d}").exists():
                    killed = each
                    os.kill(each.user_attrs["process"], signal.SIGKILL)
                    break
    out, _ = started.communicate(timeout=120)
    assert killed is not None
    assert "lost with its process" in out
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    assert len(report["sweep"]["trials"]) == 4
    trials = optuna.load_study(study_name=None, storage=url).trials
    assert trials[killed.number].state is TrialState.FAIL
    (repeated,) = [each for each in trials if each.user_attrs.get("again") == killed.number]
    assert repeated.params == killed.params
    assert repeated.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert {each.user_attrs["process"] for each in trials} > {killed.user_attrs["process"]}


@pytest.mark.slow
def test_a_signal_ends_a_search_with_its_workers(waves, tmp_path):
    words = ["sweep", str(waves), "--trials", "9", "--workers", "2", "--out", str(tmp_path / "found")]
    options = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "kshot.app", *words, "--set", "train.steps_per_round=2000"],
        env=os.environ | options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while started.poll() is None and not list(tmp_path.glob("found/trials/*/events.jsonl")):
        time.sleep(0.05)
    workers = psutil.Process(started.pid).children(recursive=True)
    started.terminate()
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 143
    assert said.endswith(
        f"Ended by SIGTERM. Resume by: kshot {' '.join(words)} --set train.steps_per_round=2000 --resume\n"
    )
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_the_best_is_the_first_of_equal_ones():
    def finished(number, mean):
        made = optuna.trial.create_trial(value=mean, user_attrs={"figure": {"mean": mean, "ci95": 0.1, "num_tasks": 4}})
        made.number = number
        return made

    trials = [finished(0, 0.5), finished(1, 0.7), finished(2, 0.7)]
    assert study.best_of(trials, Target.parse("accuracy >= 1")).number == 1
    assert study.best_of(trials, Target.parse("mse <= 1")).number == 0
    assert study.best_of([], Target.parse("mse <= 1")) is None
