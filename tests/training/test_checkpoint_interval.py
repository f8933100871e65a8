"""How often checkpoints are written, and that training goes on while they are."""

from __future__ import annotations

from threading import Event

import pytest
import torch
from torch import nn

from kshot.training import checkpoint
from kshot.training.checkpoint import Checkpoints, Snapshot, load_checkpoint


def slow_snapshot(model):
    """A snapshot, and an event after which it can be written."""
    may_write = Event()

    class Slow(Snapshot):
        def write(self, folder):
            assert may_write.wait(60)
            super().write(folder)

    return Slow.of(model, None, {}), may_write


@pytest.mark.parametrize(
    ("writing", "interval"),
    [(0.1, 30.0), (0.75, 30.0), (2.0, 80.0), (7.5, 300.0), (60.0, 300.0)],
    ids=lambda seconds: f"{seconds} s",
)
@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_checkpoints_that_take_long_are_written_more_rarely(monkeypatch, tmp_path, writing, interval, background):
    now = 1000.0

    class Written(Snapshot):
        def write(self, folder):
            nonlocal now
            now += writing

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, 30.0)
    now += 29.0
    assert not checkpoints.due()
    now += 1.0
    assert checkpoints.due()
    (checkpoints.save_in_background if background else checkpoints.save)("a", Written({}, {}))
    checkpoints.wait()
    now += interval - 0.5
    assert not checkpoints.due()
    now += 0.5
    assert checkpoints.due()


def test_a_checkpoint_in_the_background_has_what_was_there_when_it_was_due(tmp_path):
    model = nn.Linear(2, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoints = Checkpoints(tmp_path, 1e-9)
    snapshot, may_write = slow_snapshot(model)
    checkpoints.save_in_background("a", snapshot)
    with torch.no_grad():
        model.weight.add_(1)
    assert not checkpoints.due()
    assert checkpoints.latest() is None
    may_write.set()
    checkpoints.wait()
    assert checkpoints.due()
    load_checkpoint(tmp_path / "a", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_waits_for_the_one_in_the_background_and_then_follows_it(tmp_path):
    checkpoints, (snapshot, may_write) = Checkpoints(tmp_path), slow_snapshot(nn.Linear(1, 1))
    for name in "abc":
        checkpoints.save(name, Snapshot.of(nn.Linear(1, 1), None, {}))
    checkpoints.save_in_background("d", snapshot, "a")
    may_write.set()
    checkpoints.save("e", Snapshot.of(nn.Linear(1, 1), None, {}))
    assert [folder.name for folder, _ in checkpoints.examine()] == ["e", "d", "c", "a"]


@pytest.mark.parametrize("ask", [Checkpoints.wait, Checkpoints.due], ids=["wait", "due"])
def test_a_checkpoint_that_fails_in_the_background_says_so_and_is_due_again(tmp_path, ask):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "theirs").touch()
    checkpoints, (snapshot, may_write) = Checkpoints(tmp_path, 1e-9), slow_snapshot(nn.Linear(1, 1))
    checkpoints.save_in_background("a", snapshot)
    writing = checkpoints._writing
    may_write.set()
    assert isinstance(writing.exception(60), OSError)
    with pytest.raises(OSError, match="not empty"):
        ask(checkpoints)
    assert checkpoints.due()


def test_a_checkpoint_that_fails_is_due_again(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "theirs").touch()
    checkpoints = Checkpoints(tmp_path, 1e-9)
    with pytest.raises(OSError, match="not empty"):
        checkpoints.save("a", Snapshot.of(nn.Linear(1, 1), None, {}))
    assert checkpoints.due()
