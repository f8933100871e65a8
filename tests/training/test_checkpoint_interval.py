"""How often checkpoints are written."""

from __future__ import annotations

import pytest

from kshot.training import checkpoint
from kshot.training.checkpoint import Checkpoints


@pytest.mark.parametrize(
    ("writing", "interval"),
    [(0.1, 30.0), (0.75, 30.0), (2.0, 80.0), (7.5, 300.0), (60.0, 300.0)],
    ids=lambda seconds: f"{seconds} s",
)
def test_checkpoints_that_take_long_are_written_more_rarely(monkeypatch, tmp_path, writing, interval):
    now = 1000.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, 30.0)
    now += 29.0
    assert not checkpoints.due()
    now += 1.0
    assert checkpoints.due()
    with checkpoints.saving():
        now += writing
    now += interval - 0.5
    assert not checkpoints.due()
    now += 0.5
    assert checkpoints.due()


def test_a_checkpoint_that_fails_is_due_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1e-9)
    with pytest.raises(OSError, match="full"), checkpoints.saving():
        raise OSError("full")
    assert checkpoints.due()
