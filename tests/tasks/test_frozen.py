"""Tasks frozen to files and read back."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import kshot
from kshot import objectives, types
from kshot.data import ArrayDataset
from kshot.sources import episodes, sinusoids
from kshot.tasks import GroupTasks, freeze
from kshot.tasks.frozen import FORMAT


def groups(**options) -> GroupTasks:
    """Groups whose inputs and targets are trees, and whose sizes vary."""
    rows = np.arange(40.0)[:, None]
    inputs = {"a": rows, "more": (np.arange(40), [rows > 20, rows + 1])}
    pool = {split: {f"{split} {g}": range(20 * g, 20 * g + 20) for g in range(2)} for split in ("train",)}
    return GroupTasks(
        ArrayDataset((inputs, rows)), pool, objective=objectives.mse, shots=(2, 4), queries=3, seed=5, **options
    )


def equal(a, b) -> bool:
    leaves, others = types.tree_leaves(a), types.tree_leaves(b)
    return len(leaves) == len(others) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(leaves, others))


def test_frozen_tasks_are_the_tasks_bit_by_bit_and_score_the_same(tmp_path):
    waves, path = sinusoids(shots=5, seed=3), tmp_path / "waves.safetensors"
    sha256 = freeze(waves, path, split="val", tasks=20)
    frozen = episodes(path)
    for index in (0, 7, 19):
        assert equal(frozen.task("val", index), waves.task("val", index))
    assert equal(frozen.stack("val", [19, 2, 2]), waves.stack("val", [19, 2, 2]))
    learner = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.01, objective=frozen.objective)
    ours, theirs = (kshot.evaluate(learner, source, split="val", tasks=20) for source in (frozen, waves))
    assert ours.per_task == theirs.per_task
    assert ours.episodes_sha256 == theirs.episodes_sha256 == sha256
    about = frozen.describe()
    assert about["seed"] == 3
    assert about["shots"] == 5
    assert about["frozen"] == {"val": {"file": "waves.safetensors", "tasks": 20, "sha256": sha256}}


def test_trees_and_padding_survive(tmp_path):
    path = tmp_path / "groups.safetensors"
    freeze(groups(), path, split="train", tasks=18)
    frozen = episodes(path)
    task = frozen.task("train", 4)
    assert equal(task, groups().task("train", 4))
    assert isinstance(task.support.inputs["more"], tuple)
    assert isinstance(task.support.inputs["more"][1], list)
    assert task.support.inputs["more"][1][0].dtype == torch.bool
    assert equal(frozen.task("train", 18 + 4), task), "training goes round"


def test_splits_come_from_a_file_each(tmp_path):
    paths = [tmp_path / f"{split}.safetensors" for split in types.SPLITS]
    for path, split in zip(paths, types.SPLITS):
        freeze(sinusoids(), path, split=split, tasks=3)
    frozen = episodes(paths)
    assert all(equal(frozen.task(split, 2), sinusoids().task(split, 2)) for split in types.SPLITS)
    with pytest.raises(ValueError, match=r"test.safetensors holds 3 test tasks, 0 … 2; task 3 was asked for"):
        frozen.stack("test", [0, 3])
    with pytest.raises(ValueError, match="no frozen val tasks, only train, test; give a file of them"):
        episodes(paths[::2]).task("val", 0)
    with pytest.raises(ValueError, match=r"holds train tasks, and so does .*train.safetensors"):
        episodes([paths[0], paths[0]])
    with pytest.raises(ValueError, match="give at least one file"):
        episodes([])


def rewritten(path, **changes):
    """The file with other tensors or another header."""
    tensors = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    about = json.loads(header["__metadata__"]["kshot"])
    about.update({key: value for key, value in changes.items() if key not in tensors})
    tensors.update({key: value for key, value in changes.items() if key in tensors})
    save_file(tensors, path, {"kshot": json.dumps(about)})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"query.targets": torch.zeros(4, 10, 1)}, "is damaged: its tasks hash to .*; get it again"),
        ({"sha256": "0" * 64}, "is damaged: its tasks hash to .* its header says 0000"),
        ({"query.targets": torch.zeros(3, 10, 1)}, "its tensors are not those that it lists"),
        ({"tasks": 5}, "its tensors are not those that it lists"),
        ({"tasks": "4"}, "its tasks is missing or invalid"),
        ({"format": "kshot episodes 9"}, "its format is 'kshot episodes 9', expected 'kshot episodes 1'"),
        ({"split": "dev"}, "its split is missing or invalid"),
        ({"seed": None}, "its seed is missing or invalid"),
        ({"objective": "torch"}, "there is no objective 'torch'"),
        ({"layout": {"support": {}}}, "its header is wrong"),
        ({"layout": {"support": {"inputs": {"set": []}}}}, "its header is wrong"),
        ({"layout": [1]}, "its header is wrong"),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path, changes, sentence):
    path = tmp_path / "episodes.safetensors"
    freeze(sinusoids(), path, tasks=4)
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=sentence):
        episodes(path)


def test_foreign_files_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "file.safetensors"
    with pytest.raises(ValueError, match=r"there is no file .*file.safetensors"):
        episodes(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no episodes: expected a file that `kshot data freeze` wrote"):
        episodes(path)
    save_file({"weight": torch.zeros(2)}, path, {"kshot": "["})
    with pytest.raises(ValueError, match="holds no episodes that this kshot reads: its header is wrong"):
        episodes(path)
    save_file({"weight": torch.zeros(2)}, path, {"kshot": "[" * 100_000})
    with pytest.raises(ValueError, match="its header is wrong"):
        episodes(path)

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('unpickled')",)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="is cut short, damaged or no safetensors file"):
        episodes(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "episodes.safetensors"
    freeze(sinusoids(), path, tasks=2)
    return path.read_bytes()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_cut_or_damaged_anywhere_it_is_refused_or_right(whole, tmp_path_factory, data):
    content = bytearray(whole)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        content[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("cut") / "episodes.safetensors"
    path.write_bytes(content)
    try:
        found = episodes(path)
    except ValueError as error:
        found, said = None, str(error)
    if found is None:
        assert "episodes.safetensors" in said
    else:  # the damage is in what the header says of the source, and the tasks are untouched
        assert equal(found.task("test", 1), sinusoids().task("test", 1))
        assert len(content) == len(whole)


def test_what_cannot_be_frozen_is_said(tmp_path):
    path = tmp_path / "episodes.safetensors"
    with pytest.raises(ValueError, match="at least one task must be frozen, got 0"):
        freeze(sinusoids(), path, tasks=0)
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        freeze(sinusoids(), path, split="dev")
    with pytest.raises(ValueError, match="cannot be written"):
        freeze(sinusoids(), tmp_path / "missing" / "episodes.safetensors", tasks=1)
    waves = sinusoids()
    waves.objective = objectives.Objective(lambda prediction, batch: prediction.sum(), lambda prediction, batch: {})
    with pytest.raises(ValueError, match="the objective has no name, so no file can refer to it"):
        freeze(waves, path, tasks=1)
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists and is never written over"):
        freeze(sinusoids(), path, tasks=1)
    assert path.read_text() == "mine"


def test_every_objective_goes_by_its_name():
    for name in ("mse", "classification", "shared_classification"):
        assert objectives.name_of(objectives.from_name(name)) == name
    with pytest.raises(ValueError, match="no objective 'Tensor'; expected one of mse, classification"):
        objectives.from_name("Tensor")
    assert FORMAT.startswith("kshot")
