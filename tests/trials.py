"""A trial, for tests."""

from kshot.deciding.trial import Cost, Figure, Trial


def a_trial(number=0, *, kind="regression", created="2026-01-02T03:04:05+00:00", **changes):
    values = {
        "descriptors": {"kind": kind, "shots": 5, "rows": 100 + number},
        "plan": {"learner": {"kind": "maml", "steps": 5}, "train": {"outer_lr": 0.001}},
        "figures": [Figure(1.5, 0.5, 0.1), Figure(3, 0.25, 0.05, 0.3)],
        "baseline": 0.4,
        "cost": Cost(3.5, 1761),
        "data_set": "sines",
        "created": created,
    }
    return Trial(**values | changes)
