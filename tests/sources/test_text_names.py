"""Texts with the names of their classes, from a run file to new classes that are known by their names alone."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from named_texts import NAMES, write_named_texts

import kshot
from kshot.app.run import run
from kshot.app.spec import parse_spec
from kshot.data.text.labelled import phrase
from kshot.evaluation.shots import FewerShots, over_shots
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.tasks.names import without_names
from kshot.testing import check_source

SPLIT = {"ratio": [0.34, 0.33, 0.33], "exact": True}
OPTIONS = {"width": 256, "ngrams": [1, 1], "ways": 3, "shots": 2, "queries": 6, "split": SPLIT}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_named_texts(tmp_path_factory.mktemp("texts"))


def test_names_are_rows_of_the_same_features_as_texts(path):
    plain, named = kshot.sources.text(path, **OPTIONS), kshot.sources.text(path, names="labels", **OPTIONS)
    check_source(named)
    for index in range(3):
        task, own = named.task("test", index), plain.task("test", index)
        (classes,) = plain.classes_of("test", [index])
        expected = plain.preprocessor.examples([phrase(name) for name in classes]).take(np.arange(3))
        assert torch.equal(task.support.inputs[:6, :-1], own.support.inputs)
        assert torch.equal(task.support.inputs[6:, :-1], expected)
        assert task.support.inputs[:, -1].tolist() == [0] * 6 + [1] * 3
        assert torch.equal(task.query.inputs[:, :-1], own.query.inputs)
    assert torch.equal(without_names(named).task("val", 0).support.inputs, plain.task("val", 0).support.inputs)


def test_a_class_may_have_several_descriptions_and_others_go_by_their_label(path, tmp_path):
    file = tmp_path / "descriptions.json"
    texts = ["money goes in", "a new account"]
    file.write_text(json.dumps({"open_account": texts, "open_card": "plastic"}))
    source = kshot.sources.text(path, names=str(file), **OPTIONS)
    rows = source.preprocessor.names_of(["open_account", "open_card", "find_loan"])
    features = without_names(source).preprocessor.examples([*texts, "plastic", "find loan"]).take(np.arange(4)).numpy()
    np.testing.assert_allclose(rows, [features[:2].mean(0), features[2], features[3]], rtol=1e-6)
    again = preprocessor_from_json(source.preprocessor.to_json())
    assert again == source.preprocessor
    assert again.describe()["names"] == "descriptions"


def test_fewer_shots_keep_the_names(path):
    source = kshot.sources.text(path, names="labels", **OPTIONS)
    learner = kshot.learners.named_means(features=257)
    kshot.training.fit_closed_form(learner, source)
    one, two = over_shots(learner, source, [1, 2], num_tasks=20)
    assert (
        two.metrics["accuracy"].mean
        == kshot.evaluate(learner, source, num_tasks=20, audit=False).metrics["accuracy"].mean
    )
    assert one.metrics["accuracy"].mean < two.metrics["accuracy"].mean
    zero_shot = kshot.tasks.with_names(
        without_names(source),
        dict(zip(NAMES, source.preprocessor.names_of(NAMES))),
        examples=False,
    )
    assert kshot.evaluate(learner, zero_shot, num_tasks=20, audit=False).metrics["accuracy"].mean > 0.5


def test_a_mixture_of_named_texts_keeps_its_names_at_fewer_shots_and_can_be_without(path):
    def mixed(**options):
        own, other = (
            kshot.sources.text(path, **OPTIONS | {"split": split}, **options) for split in (SPLIT, {"only": "test"})
        )
        return kshot.tasks.mixture({"own": own, "other": other}, heldout={"test": ["other"]})

    named, plain = mixed(names="labels"), mixed()
    assert torch.equal(without_names(named).task("test", 1).support.inputs, plain.task("test", 1).support.inputs)
    support, whole = FewerShots(named, 1).task("test", 1).support, named.task("test", 1).support
    assert support.inputs[:, -1].tolist() == [0.0] * 3 + [1.0] * 3
    assert torch.equal(support.inputs[3:], whole.inputs[6:])
    assert sorted(support.targets[:3].argmax(1).tolist()) == [0, 1, 2]
    assert support.weight.tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold the descriptions of classes"),
        ({"open_account": ""}, "class 'open_account' needs a description, or a list of them, got ''"),
        ({"open_account": []}, "needs a description, or a list of them, got"),
        ({"open_account": ["a", 1]}, r"got \['a', 1\]"),
        ({"shut": "to close"}, "the data has no class 'shut'"),
    ],
)
def test_descriptions_that_cannot_be_used_are_refused(path, tmp_path, content, message):
    file = tmp_path / "descriptions.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        kshot.sources.text(path, names=str(file), **OPTIONS)


def test_texts_that_are_no_features_take_no_names(path):
    options = OPTIONS | {"ngrams": None}
    with pytest.raises(ValueError, match="encoder, words or characters, got features: ids"):
        kshot.sources.text(path, names="labels", features="ids", **options)
    with pytest.raises(ValueError, match="names are read as the texts are"):
        kshot.sources.text(path, names="labels", features=lambda texts: None, **options)


RUN = """
name: named
source: {{kind: text, path: {path}, width: 256, ngrams: [1, 1], ways: 3, shots: 1, queries: 6, {names}
          split: {{ratio: [0.34, 0.33, 0.33], exact: true}}}}
learner: {{kind: {learner}}}
train: {{steps_per_round: 3, tasks_per_step: 2, outer_lr: 0.02}}
target: accuracy >= 0.2
budget: {{rounds: 1}}
evaluate: {{num_val_tasks: 4, num_test_tasks: 12, shots: [1, 2]}}
baselines: {{num_test_tasks: 12, num_val_tasks: 4}}
"""


def test_a_run_reads_names_and_serves_classes_that_have_no_example(path, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = run(
        parse_spec(RUN.format(path=path, names="names: labels,", learner="named_means"), "run.yaml"), Path("run")
    )
    assert report["failures"] == []
    assert {"zero_shot", "class_mean_and_name", "centroid"} <= set(report["baselines"])

    def labels() -> list[str]:
        told = command("predict", "run", "--state", "state.safetensors", "--inputs", "new.csv")
        return [row["label"] for row in csv.DictReader(io.StringIO(told))]

    Path("mine.csv").write_text("text,label\nfreeze it please,freeze\nmake it warm,heat_up\n,cool_down\n")
    Path("new.csv").write_text("text\ncool it down now\nheat up please\nfreeze now\n")
    command("adapt", "run", "--support", "mine.csv", "--out", "state.safetensors")
    assert labels() == ["cool_down", "heat_up", "freeze"]
    Path("more.csv").write_text("label\nplay_music\n")
    command("adapt", "run", "--support", "more.csv", "--state", "state.safetensors", "--out", "more.safetensors")
    Path("more.safetensors").replace("state.safetensors")
    Path("new.csv").write_text("text\nplay music\ncool it down now\n")
    assert labels() == ["play_music", "cool_down"]


def test_the_state_is_that_of_the_rows_written_out(path, tmp_path):
    source = kshot.sources.text(path, names="labels", **OPTIONS)
    file = tmp_path / "mine.csv"
    file.write_text("text,label\nfreeze it please,freeze\n,cool_down\nfreeze now,freeze\n")
    support = source.preprocessor.support(file)
    assert support.targets == ["freeze", "freeze", "freeze", "cool_down"]
    texts = ["freeze it please", "freeze now", "freeze", "cool down"]
    expected = without_names(source).preprocessor.examples(texts).take(np.arange(4))
    assert torch.equal(support.inputs, torch.cat([expected, torch.tensor([[0.0], [0.0], [1.0], [1.0]])], 1))
    (tmp_path / "new.csv").write_text("text\nfreeze now\n")
    inputs = source.preprocessor.inputs(tmp_path / "new.csv", {})
    assert torch.equal(inputs, F.pad(expected[1:2], (0, 1)))


def test_a_learner_of_names_without_names_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match="learner tip_adapter reads the names of classes, which these tasks lack"):
        run(parse_spec(RUN.format(path=path, names="", learner="tip_adapter"), "run.yaml"), tmp_path / "run")
