"""A source for run files, at one of whose tasks a signal is sent, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from kshot import Batch, Task, objectives
from kshot.sources.functions import Sinusoids
from kshot.supplied import Seed
from kshot.types import Split

PLACE, SENT = "KSHOT_TEST_PLACE", "KSHOT_TEST_SENT"
"""Environment variables: where the signal is sent, as "train 4-5" for a step with these tasks, and a file that
says so."""


class Signalling(Sinusoids):
    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        send_at(f"{split} {'-'.join(map(str, indices))}")
        return super().stack(split, indices)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        send_at(f"pretrain {step}")
        return super().pretraining_batch(step, size)


def send_at(place: str) -> None:
    """Send SIGTERM to this process if this is the place, for the first time."""
    wanted, sent = os.environ.get(PLACE, ""), Path(os.environ.get(SENT, "/"))
    if wanted == place and not sent.exists():
        sent.write_text(place)
        os.kill(os.getpid(), getattr(signal, os.environ.get("KSHOT_TEST_SIGNAL", "SIGTERM")))


def sinusoids(*, seed: Seed = 0) -> Signalling:
    return Signalling(10, 10, 0.0, objectives.mse, seed)
