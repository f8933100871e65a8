"""Baselines that read class names: closed forms, the learner's contract, and names that are odd or not known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from named_texts import write_named_texts
from torch import nn

import kshot
from kshot import Batch, objectives
from kshot.data.text.labelled import phrase
from kshot.evaluation.baselines import baselines
from kshot.learners.baselines import label_names
from kshot.learners.baselines.feature_heads import ClassMeans, Opponent, Prepared
from kshot.testing import learner_checks


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = write_named_texts(tmp_path_factory.mktemp("texts"))
    split = {"ratio": [0.34, 0.33, 0.33], "exact": True}
    return kshot.sources.text(path, width=512, ngrams=[1, 1], ways=3, shots=2, queries=6, split=split)


def learner_of(source, strength):
    names = label_names.ClassNames(source)
    inputs = source.preprocessor.examples([phrase(name) for name in names.names])
    head = Prepared(ClassMeans(), 512, "unit")
    features = F.normalize(inputs.take(np.arange(len(inputs))), dim=1)
    return label_names.NamedMeans(nn.Flatten(), head, names, features, strength, objectives.classification)


def names_of(source, batch):
    """The names of the classes of a batch, from the source's own lists."""
    row_of = {source.examples.take(np.array([row]))[0].numpy().tobytes(): row for row in range(len(source.texts))}
    class_of = {
        row: name for part in ("train", "val", "test") for name, own in source.classes(part).items() for row in own
    }
    found = {}
    for inputs, target in zip(batch.inputs, batch.targets):
        found[int(target.argmax())] = class_of[row_of[inputs.numpy().tobytes()]]
    return [found[number] for number in range(batch.targets.shape[1])]


def test_zero_shot_is_the_cosine_with_the_name(texts):
    for index in range(3):
        task = texts.task("test", index)
        phrases = [name.replace("_", " ") for name in names_of(texts, task.support)]
        expected = F.cosine_similarity(
            task.query.inputs[:, None], texts.preprocessor.examples(phrases).take(np.arange(3))[None], dim=2
        )
        learner = learner_of(texts, math.inf)
        torch.testing.assert_close(learner.predict(learner.adapt(task.support), task.query.inputs), expected)


def test_a_name_counts_as_so_many_support_rows(texts):
    """With strength 2, the name is as two more rows of its class."""
    task, learner = texts.task("test", 1), learner_of(texts, 2.0)
    phrases = [name.replace("_", " ") for name in names_of(texts, task.support)]
    rows = texts.preprocessor.examples(phrases).take(np.arange(3))
    weight = torch.cat([torch.ones(6), torch.full((3,), 2.0)])
    joined = Batch(torch.cat([task.support.inputs, rows]), torch.cat([task.support.targets, torch.eye(3)]), weight)
    plain = Opponent(nn.Flatten(), Prepared(ClassMeans(), 512, "unit"), objectives.classification)
    torch.testing.assert_close(
        learner.predict(learner.adapt(task.support), task.query.inputs),
        plain.predict(plain.adapt(joined), task.query.inputs),
    )


def test_the_names_follow_the_labels_and_no_query_is_looked_up(texts):
    task, learner = texts.task("test", 2), learner_of(texts, math.inf)
    order = torch.tensor([2, 0, 1])
    state = learner.adapt(task.support)
    relabelled = learner.adapt(task.support._replace(targets=task.support.targets[:, order]))
    prediction = learner.predict(state, task.query.inputs)
    torch.testing.assert_close(learner.predict(relabelled, task.query.inputs), prediction[:, order])
    learner.names.shares = None  # predicting reads no name
    torch.testing.assert_close(learner.predict(state, task.query.inputs), prediction)


def test_rows_that_are_not_known_leave_the_class_mean(texts):
    task = texts.task("test", 0)
    moved = task.support._replace(inputs=task.support.inputs + 0.5)
    plain = Opponent(nn.Flatten(), Prepared(ClassMeans(), 512, "unit"), objectives.classification)
    for strength in (1.0, math.inf):
        torch.testing.assert_close(learner_of(texts, strength).adapt(moved), plain.adapt(moved))


@pytest.mark.parametrize("strength", [1.0, math.inf])
def test_contract(texts, strength):
    for _, check in learner_checks(lambda ways: learner_of(texts, strength), inputs=(512,)):
        check()


@pytest.mark.slow
def test_they_are_among_the_baselines_of_texts_and_trusted(texts):
    watched = kshot.tasks.watched(texts)
    made = label_names.baselines(watched)
    candidates = {name: make() for name, make in made.items()}
    assert {split for _, split in watched.reads} == {"train"}
    assert {len(each) for each in candidates.values()} == {2, 8}
    found = baselines(texts)
    assert {"zero_shot", "class_mean_and_name", "class_mean_cosine"} <= set(found)
    scores = {name: kshot.evaluate(found[name], texts, num_tasks=100) for name in (*made, "class_mean_cosine")}
    assert all(score.trusted for score in scores.values())
    accuracy = {name: score.metrics["accuracy"].mean for name, score in scores.items()}
    assert accuracy["zero_shot"] > 0.6
    assert accuracy["class_mean_and_name"] > accuracy["class_mean_cosine"] + 0.03


def test_other_sources_have_none_of_them(texts):
    assert label_names.baselines(kshot.sources.glyphs()) == {}
    assert label_names.baselines(kshot.sources.sinusoids()) == {}
    assert label_names.baselines(kshot.tasks.mixture({"a": texts, "b": texts})) == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("accountBlocked", "account Blocked"),
        ("a  b", "a b"),
        ("___", "___"),
        ("r/askScience", "r ask Science"),
        ("Ünïcode_ß", "Ünïcode ß"),
    ],
)
def test_names_become_words(name, words):
    assert phrase(name) == words
