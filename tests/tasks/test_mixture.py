"""Several sources as one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from kshot import objectives, types
from kshot.app.build import build_source
from kshot.app.spec import load_spec
from kshot.data import ArrayDataset
from kshot.sources import mixture, sinusoids
from kshot.tasks import ClassTasks, GroupTasks
from kshot.types import SPLITS


def classes(number: int, **options) -> ClassTasks:
    """A source whose inputs are all its own number; 4 classes of each split, of 10 examples."""
    examples = ArrayDataset(np.full((120, 1), number, np.float32))
    pool = {
        split: {f"{split} {c}": range(40 * s + 10 * c, 40 * s + 10 * c + 10) for c in range(4)}
        for s, split in enumerate(SPLITS)
    }
    return ClassTasks(examples, pool, **{"ways": 3, "shots": 1, "queries": 2, "name": f"source {number}", **options})


def several(**options):
    return mixture({name: classes(number) for number, name in enumerate("abc")}, **options)


def origins(tasks, split, count) -> list[int]:
    return tasks.stack(split, range(count)).query.inputs[:, 0, 0].long().tolist()


def test_each_task_is_the_same_task_of_its_source():
    tasks = several(seed=3)
    indices = [5, 0, 5, 17, 4]
    for task, index in zip(types.unstack(tasks.stack("val", indices)), indices):
        name = tasks.source_of("val", index)
        for other in (tasks.task("val", index), tasks.sources[name].task("val", index)):
            assert all(map(torch.equal, types.tree_leaves(task), types.tree_leaves(other)))
        assert task.query.inputs[0, 0] == "abc".index(name)


def test_a_task_depends_on_seed_split_and_index_only():
    first, again = several(seed=1), several(seed=1)
    again.stack("train", range(7))
    assert origins(first, "train", 60) == origins(again, "train", 60)
    assert len({tuple(origins(several(seed=seed), split, 60)) for seed in (1, 2) for split in SPLITS}) == 6


def test_sources_are_drawn_by_their_weights():
    seen = Counter(origins(several(weights={"a": 3, "c": 0}), "train", 4000))
    assert set(seen) == {0, 1}
    assert abs(seen[0] / 4000 - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5
    assert max(Counter(origins(several(), "test", 3000)).values()) < 1000 + 5 * 3000**0.5


def test_a_source_that_is_held_out_gives_tasks_there_and_nowhere_else():
    tasks = several(heldout={"test": ["c"]})
    assert [set(origins(tasks, split, 60)) for split in SPLITS] == [{0, 1}, {0, 1}, {2}]
    both = several(heldout={"val": ["a"], "test": ["c"]})
    assert [set(origins(both, split, 60)) for split in SPLITS] == [{1}, {0}, {2}]
    assert both.describe()["share"] == {"train": {"b": 1.0}, "val": {"a": 1.0}, "test": {"c": 1.0}}


def test_pretraining_sees_the_training_sources_side_by_side():
    batch = several(weights={"a": 2}, heldout={"test": ["c"]}).pretraining_batch(0, 90)
    assert batch.targets.shape == (90, 8)
    assert Counter(batch.inputs[:, 0].tolist()) == {0.0: 60, 1.0: 30}
    assert (batch.targets.argmax(1) // 4 == batch.inputs[:, 0]).all()
    assert (batch.targets.sum(1) == 1).all()
    waves = mixture({"a": sinusoids(), "b": sinusoids(seed=1)}).pretraining_batch(0, 80)
    assert waves.targets.shape == (80, 1)


def test_the_description_has_each_source():
    about = several().describe()
    assert about["source"] == "mixture of a, b, c"
    assert (about["ways"], about["shots"], about["queries"]) == (3, 1, 2)
    assert about["sources"]["b"] == classes(1).describe()
    mixed = mixture({"a": classes(0), "b": classes(1, train_queries=2, shots=(1, 1))})
    assert mixed.describe()["ways"] == 3


@pytest.mark.parametrize(
    ("sources", "options", "sentence"),
    [
        ({"a": 0}, {}, "at least two sources, got a"),
        ({"a": 0, "b": 1}, {"weights": {"d": 1}}, "no source 'd'; it has a, b"),
        ({"a": 0, "b": 1}, {"weights": {"a": -1}}, "weight of 'a' must be 0 or more, got -1"),
        ({"a": 0, "b": 1}, {"weights": {"a": float("nan")}}, "weight of 'a' must be 0 or more, got nan"),
        ({"a": 0, "b": 1}, {"weights": {"a": 0, "b": 0}}, "no source of the mixture is left for train"),
        ({"a": 0, "b": 1}, {"heldout": {"test": ["c"]}}, "no source 'c'"),
        ({"a": 0, "b": 1}, {"heldout": {"train": ["a"]}}, "heldout takes val and test"),
        ({"a": 0, "b": 1}, {"heldout": {"test": ["a", "b"]}}, "no source of the mixture is left for train: all are"),
        ({"a": 0, "b": {"ways": 4}}, {}, "the train tasks of 'a' are .*targets .3, 3.*'b' are .*4, 4.*; give both the"),
        ({"a": 0, "b": {"train_queries": 5}}, {}, "the train tasks of 'a' are"),
    ],
)
def test_what_does_not_mix_is_said(sources, options, sentence):
    made = {name: classes(0, **(about or {})) for name, about in sources.items() if not isinstance(about, int)}
    made = {name: made.get(name) or classes(0) for name in sources}
    with pytest.raises(ValueError, match=sentence):
        mixture(made, **options)


def test_sources_that_ask_different_things_do_not_mix():
    groups = GroupTasks(
        ArrayDataset((np.zeros((9, 1)), np.zeros((9, 3)))),
        {"train": {"g": range(9)}},
        objective=objectives.shared_classification,
        shots=3,
        queries=6,
    )
    with pytest.raises(ValueError, match="the objective of 'b' differs from that of 'a'"):
        mixture({"a": classes(0), "b": groups})


def test_a_mixture_from_a_run_file():
    sources = "{x: {kind: sinusoids}, sinusoids: {kind: sinusoids, shots: 10}}"
    spec = load_spec("sinusoid", [f"source={{kind: mixture, sources: {sources}, weights: {{x: 2}}}}"])
    assert build_source(spec).describe()["share"]["val"] == {
        "x": 0.6667,
        "sinusoids": 0.3333,
    }
    for name in ("x", "sinusoids"):  # a name that is a kind too
        wrong = f"{{a: {{kind: sinusoids}}, {name}: {{kind: sinusoids, shot: 3}}}}"
        with pytest.raises(ValueError, match=f"unknown key 'source.sources.{name}.shot': did you mean 'shots'"):
            load_spec("sinusoid", [f"source={{kind: mixture, sources: {wrong}}}"])
