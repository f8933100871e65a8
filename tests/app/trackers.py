"""Trackers for run files of tests."""

from __future__ import annotations

from typing import ClassVar

from kshot.app.tracking import TrackedRun, Tracker


class InMemory(Tracker):
    """Keeps what it is sent; a resumed run has the same again, by its id."""

    runs: ClassVar[dict[str, InMemory]] = {}

    def __init__(self, name: str) -> None:
        self.id, self.points, self.closed, self.known = name, [], [], []

    def params(self, values):
        self.known.append(dict(values))

    def metrics(self, values, step, time):
        self.points += [(name, step, value) for name, value in values.items()]

    def report(self, folder, figures):
        assert (folder / "report.html").exists()
        self.points.append(("figures", 0, sorted(figures)))

    def close(self, finished):
        self.closed.append(finished)


def in_memory(run: TrackedRun, *, label: str = "memory") -> Tracker:
    name = run.id or f"{label} of {run.name}"
    assert (run.id is None) == (name not in InMemory.runs)
    return InMemory.runs.setdefault(name, InMemory(name))


class Failing(InMemory):
    def __init__(self, at: str) -> None:
        super().__init__("failing")
        self.at = at
        if at == "start":
            raise ConnectionError("the server is away")

    def metrics(self, values, step, time):
        if self.at in values:
            raise OSError(28, "No space left on device")
        super().metrics(values, step, time)

    def report(self, folder, figures):
        if self.at == "report":
            raise RuntimeError("no report today")


def failing(run: TrackedRun, *, at: str) -> Tracker:
    return Failing(at)
