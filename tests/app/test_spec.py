"""Run files: their keys and bounds, and parts of people's own."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import kshot
from kshot.app.run import run
from kshot.app.schema import check_part, kinds
from kshot.app.spec import Spec, load_spec, parse_spec, recipes

RUN = """\
name: mine
source: {kind: sinusoids, shots: 5, queries: 5}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01}
train: {steps_per_round: 2, tasks_per_step: 2}
target: mse <= 1000
budget: {rounds: 1}
evaluate: {num_val_tasks: 2, num_test_tasks: 3, shots: []}
baselines: {names: [support_mean], num_test_tasks: 2}
"""
PARTS = """\
import torch
from torch import nn

from kshot import Learner, Objective, learners, objectives
from kshot.annotations import PositiveFloat, PositiveInt
from kshot.deciding.decisions import Outcome, Stop
from kshot.deciding.policies import Budget
from kshot.evaluation.target import Target
from kshot.supplied import BaseModel, Embedding, FeatureCount, InputShape, NumOutputs, Seed
from kshot.sources import sinusoids
from kshot.tasks import TaskSource


def waves(*, noise: PositiveFloat = 0.1, seed: Seed = 0):
    return sinusoids(shots=5, queries=5, noise=noise, seed=seed)


def noisy(source: TaskSource, *, note: str = ""):
    return source


def linear(shape: InputShape, outputs: NumOutputs | None, *, width: PositiveInt = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], width), nn.Tanh(), *([nn.Linear(width, outputs)] if outputs else []))


class Ridge(Learner):
    def __init__(self, embedding: Embedding, *, features: FeatureCount, objective: Objective, l2: float = 1.0):
        super().__init__(objective)
        self.embedding, self.features, self.l2 = embedding, features, l2
        self.log_scale = nn.Parameter(torch.zeros(()))

    def _adapt(self, support):
        features = self.embedding(support.inputs)
        gram = features.T @ features + self.l2 * self.log_scale.exp() * torch.eye(self.features)
        return {"weight": torch.linalg.solve(gram, features.T @ support.targets)}

    def predict(self, state, inputs):
        return self.embedding(inputs) @ state["weight"]


absolute = objectives.mse._replace(loss=lambda prediction, batch: (prediction - batch.targets).abs().mean())


def scaled(by: PositiveFloat = 1.0) -> Objective:
    return objectives.mse._replace(loss=lambda prediction, batch: by * objectives.mse.loss(prediction, batch))


def stop_at_once(target: Target, budget: Budget, *, why: str = "enough"):
    return lambda rounds: Stop(Outcome.NO_PROGRESS, why)


def silent(backbone: nn.Module, *, objective: Objective):
    return kshot.protonet(backbone)


def bare(backbone, inner_lr=0.1):
    return backbone


def undecided(model: BaseModel, *, inner_lr: PositiveFloat):
    return model[: len(inner_lr)]


def wrong(model: BaseModel):
    return {"model": model}


def of_classes(embedding: Embedding):
    return learners.protonet(embedding)


def with_slash(model: BaseModel, /):
    return model


def with_kind(model: BaseModel, kind: str = "a"):
    return model


def a_set(model: BaseModel, things: set):
    return model


def unreadable(model: "Missing"):
    return model
"""


@pytest.fixture
def parts(tmp_path, monkeypatch, request) -> str:
    """The name of a module of parts beside the run file, another one for each test."""
    name = f"parts_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(PARTS)
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    return name


def read(folder: Path, **changes) -> Spec:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(RUN) | changes, sort_keys=False))
    return load_spec(str(file))


def test_parts_of_ones_own_are_run_and_opened_again(parts, tmp_path):
    spec = read(
        tmp_path,
        source={"kind": f"{parts}:noisy", "source": {"kind": f"{parts}:waves", "noise": 0.2}, "note": "x"},
        model={"kind": f"{parts}:linear", "width": 6},
        learner={"kind": f"{parts}:Ridge", "l2": 0.5},
        objective={"kind": f"{parts}:scaled", "by": 2.0},
        policy={"kind": f"{parts}:stop_at_once", "why": "one is plenty"},
        baselines={"names": [f"{parts}:Ridge", {"kind": "r2d2", "l2": 3.0}, {"kind": "r2d2"}, "support_mean"]},
    )
    report = run(spec, tmp_path / "run", console=Console(quiet=True))
    assert report["reason"] == "one is plenty"
    assert set(report["baselines"]) == {f"{parts}:Ridge", "r2d2", "r2d2 #2", "support_mean"}
    assert report["test"]["loss"]["mean"] == pytest.approx(2 * report["test"]["mse"]["mean"], rel=1e-5)
    opened = kshot.load(tmp_path / "run")
    assert (opened.learner.features, opened.learner.l2) == (6, 0.5)
    assert opened.spec == spec
    shapes = json.loads((tmp_path / "run" / "shapes.json").read_text())
    assert shapes["objective"] == f'{parts}:scaled {{"by": 2.0}}'


def test_an_objective_of_ones_own_may_be_an_object(parts, tmp_path):
    spec = read(tmp_path, objective=f"{parts}:absolute")
    assert kshot.app.build.build_source(spec).objective.name == f"{parts}:absolute"
    assert spec.model_dump()["objective"] == {"kind": f"{parts}:absolute"}


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ("silent", r"argument 'backbone' is a network, and .* kshot.supplied.BaseModel, .*kshot.supplied.Embedding"),
        ("bare", r"argument 'backbone' has no annotation"),
        ("with_slash", r"argument 'model' cannot be given by name; remove the /"),
        ("with_kind", r"argument 'kind' has the name of the key"),
        ("a_set", r"argument 'things' is neither supplied by a run .* nor written in YAML"),
        ("unreadable", r"annotations of its arguments cannot be read: name 'Missing' is not defined"),
        ("Rigde", r"module \w+ has no 'Rigde': did you mean 'Ridge'"),
    ],
)
def test_a_factory_that_cannot_be_called_is_named_with_key_and_line(parts, tmp_path, learner, message):
    (tmp_path / "mine.yaml").write_text(RUN.replace("kind: maml, inner_lr: 0.01", f"kind: '{parts}:{learner}'"))
    with pytest.raises(ValueError, match=rf"mine.yaml, line 4: learner cannot take kind '\w+:{learner}': .*{message}"):
        load_spec(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, r"there is no module 'broken_0' in the run file's folder, in the working directory .*, or among"),
        (
            "import nowhere_to_be_seen\n",
            r"importing broken_1 failed: ModuleNotFoundError: .*nowhere.*broken_1.py, line 1",
        ),
        ("x = 1\ny = undefined\n", r"NameError: name 'undefined' is not defined \(.*broken_2.py, line 2\)"),
        ("x = 1\n\ndef f(:\n", r"SyntaxError: .*broken_3.py, line 3\)"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why_and_where(tmp_path, code, message, request):
    number = int(message.split("broken_")[1][0])
    if code:
        (tmp_path / f"broken_{number}.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(RUN.replace("kind: sinusoids", f"kind: 'broken_{number}:f'"))
    with pytest.raises(ValueError, match=rf"mine.yaml, line 2: source cannot take kind 'broken_.:f': .*{message}"):
        load_spec(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (
            {"kind": "undecided", "inner_lr": 0.1},
            r"learner \w+:undecided failed: TypeError: object of type 'float' has no len",
        ),
        ({"kind": "wrong"}, r"learner \w+:wrong makes a dict, and not a Learner"),
        ({"kind": "of_classes"}, r"learner \w+:of_classes has the objective classification, and the run mse: let its"),
    ],
)
def test_a_factory_that_fails_is_named_with_its_error(parts, tmp_path, learner, message):
    spec = read(tmp_path, learner=learner | {"kind": f"{parts}:{learner['kind']}"})
    with pytest.raises(ValueError, match=message):
        run(spec, tmp_path / "run", console=Console(quiet=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("shots: 5", "shots: 0"), r"it, line 2: source.shots: input should be greater than or equal to 1, got 0"),
        (("shots: 5", "shotz: 5"), r"it, line 2: unknown key 'source.shotz': did you mean 'shots'"),
        (("hidden: [8]", "hidden: [8, 0]"), r"it, line 3: model.hidden.1: input should be greater than or equal to 1"),
        (("kind: maml", "kind: mamml"), r"it, line 4: learner has no kind 'mamml': did you mean 'maml'"),
        (("inner_lr: 0.01", "inner_lr: .inf"), r"it, line 4: learner.inner_lr: input should be a finite number"),
        ((", inner_lr: 0.01", ""), r"it, line 4: the key 'learner.inner_lr' is missing"),
        (("kind: maml, ", ""), r"it, line 4: learner needs a 'kind'"),
        (("{kind: maml, inner_lr: 0.01}", "[maml]"), r"it, line 4: learner takes keys and values, 'kind' among them"),
        (("tasks_per_step: 2", "task_per_step: 2"), r"it, line 5: unknown key 'train.task_per_step': did you mean"),
        (("rounds: 1", "rounds: 0"), r"it, line 7: budget.rounds: input should be greater than or equal to 1"),
        (("[support_mean]", "[suport_mean]"), r"it, line 9: baselines.names.0 is no baseline: 'suport_mean': did you"),
        (("model: {kind: mlp, hidden: [8]}\n", ""), r"learner maml adapts a model: the key 'model' is missing"),
    ],
)
def test_what_is_wrong_with_a_key_is_told_with_its_line(change, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(RUN.replace(*change), "it")


def test_a_source_within_another_takes_no_path():
    source = {"kind": "from_hf", "path": "data", "tasks": {"kind": "text", "path": "data"}}
    with pytest.raises(ValueError, match=r"it, line 2: source.tasks takes no path of its own"):
        parse_spec(RUN.replace("{kind: sinusoids, shots: 5, queries: 5}", json.dumps(source)), "it")
    for kind in ("sinusoids", "mixture", "from_hf"):
        source["tasks"] = {"kind": kind}
        with pytest.raises(ValueError, match=rf"source.tasks takes a source .* by a path, which {kind} is not"):
            parse_spec(RUN.replace("{kind: sinusoids, shots: 5, queries: 5}", json.dumps(source)), "it")


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_written_out_reads_as_itself(name):
    spec = load_spec(name)
    assert parse_spec(spec.to_yaml(), name) == spec


def test_a_word_stands_for_a_part_without_options():
    assert check_part("model", "mlp") == check_part("model", {"kind": "mlp"})


def test_the_kinds_are_those_that_kshot_has():
    assert {"sinusoids", "mixture", "from_hf", "episodes"} <= set(kinds("source"))
    assert set(kinds("policy")) == {"extrapolation", "rules"}
    assert not {"SupportMean", "with_warps", "from_scratch"} & set(kinds("learner"))


def test_a_table_in_place_of_a_run_file_is_refused_with_what_takes_it(tmp_path):
    (tmp_path / "shops.csv").write_text("shop,sold\na,1\n")
    with pytest.raises(ValueError, match=r"`kshot auto .*shops\.csv` takes tables; .* path: shops\.csv}"):
        load_spec(str(tmp_path / "shops.csv"))
