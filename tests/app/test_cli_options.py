"""Small options of the command line, and paths beside a run file."""

import csv
import io
import json

import pytest
import yaml

from kshot.app.importing import beside
from kshot.app.spec import load_spec, recipes

RUN = """\
name: leaves
source: {kind: table, path: leaves.csv, classes: plant, ways: 3, shots: 2, queries: 3}
model: {kind: mlp, hidden: [8]}
learner: {kind: protonet}
train: {steps_per_round: 2, tasks_per_step: 2}
target: accuracy >= 0.1
budget: {rounds: 1}
evaluate: {num_val_tasks: 3, num_test_tasks: 4, shots: [1]}
baselines: {names: []}
"""


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    rows = [f"plant {n % 30},{n % 30 + n % 3},{n % 7}" for n in range(240)]
    (folder / "leaves.csv").write_text("\n".join(["plant,length,width", *rows]))
    (folder / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    return folder


def test_version_recipe_and_completion(command):
    assert command("--version").startswith("kshot 0.")
    assert command("recipes", "sinusoid") == recipes()["sinusoid"]
    assert yaml.safe_load(command("recipes", "sinusoid"))["name"] == "sinusoid"
    assert "--install-completion" in command("--help")


def test_paths_are_found_beside_the_run_file(leaves, tmp_path):
    spec = load_spec("project/run.yaml")
    assert spec.source.path == "project/leaves.csv"
    (tmp_path / "leaves.csv").write_text("other")
    assert load_spec("project/run.yaml").source.path == "leaves.csv", "the working directory comes first"
    (leaves / "plant").mkdir()
    options = {"path": "leaves.csv", "classes": "plant", "split": {"files": {"train": "plant"}}}
    assert beside(leaves, options)["classes"] == "plant", "a column is no path"
    assert beside(leaves, options)["split"]["files"]["train"] == str(leaves / "plant")


def test_a_run_from_another_folder_is_evaluated_on_other_tasks_and_continued(leaves, command, tmp_path):
    command("run", "project/run.yaml", "--out", "first")
    command("evaluate", "first", "--tasks", "3", "--set", "source.ways=4", "--set", "source.shots=1", "--out", "other")
    protocol = json.loads((tmp_path / "other" / "report.json").read_text())["protocol"]
    assert (protocol["ways"], protocol["shots"]) == (4, 1)
    said = command("run", "project/run.yaml", "--out", "second", "--init-from", "first", "--set", "seed=3")
    assert "starts from 2 weights of first" in said
    (tmp_path / "s.csv").write_text("plant,length,width\na,1,2\nb,3,4\n")
    for name in ("q1", "q2"):
        (tmp_path / f"{name}.csv").write_text("length,width\n1,2\n")
    command("adapt", "first", "--support", "s.csv", "--out", "state")
    several = command("predict", "first", "--state", "state", "--inputs", "q1.csv", "q2.csv")
    assert len(list(csv.DictReader(io.StringIO(several)))) == 2


def test_a_learner_that_cannot_learn_the_tasks_is_refused_before_training(leaves, tmp_path):
    text = RUN.replace("classes: plant, ways: 3", "group: plant, target: width").replace("accuracy >= 0.1", "loss <= 1")
    (leaves / "numbers.yaml").write_text(text)
    from kshot.app.run import run

    with pytest.raises(ValueError, match="learner protonet predicts classes .* and these tasks have numbers"):
        run(load_spec("project/numbers.yaml"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
