"""The trackers of a run are sent what its log says, each event once, also where a resumed run logs it again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.app.schema import Part
from kshot.app.spec import Spec
from kshot.app.tracking.tracker import Plain, TrackedRun, Tracker
from kshot.deciding.decisions import EventLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SENT = "trackers.json"
"""File in the run folder: the id of each tracker, and the last step of each kind of event that it was sent."""
BAD = str.maketrans(dict.fromkeys("()[]{}<>|;,'\"=+*?!#&%$@^~`\\", "_"))


class Tracking:
    """The trackers of a run.

    Args:
        make: makes the tracker of a part of the run file.
        say: shows a sentence to the user.
    """

    def __init__(
        self, spec: Spec, folder: Path, make: Callable[[Part, TrackedRun], Tracker], say: Callable[[str], None]
    ) -> None:
        self.spec, self.folder, self.make, self.say = spec, folder, make, say
        self.open: dict[str, Tracker] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.finished = False

    def follow(self, event_log: EventLog) -> None:
        """Open the trackers, and send them what the log says, and what it will say."""
        self.sent = _read(self.folder / SENT)
        steps = self.spec.pretrain.steps if self.spec.pretrain else 0
        name = self.folder.name if self.folder.name.startswith(self.spec.name) else ""
        name = name or f"{self.spec.name} {self.folder.name}"
        for number, part in enumerate(self.spec.track):
            place = part.kind + f" {number + 1}" * (part.kind in self.open)
            known = self.sent.setdefault(place, {"id": None})
            with self._going_on(place):
                self.open[place] = tracker = self.make(part, TrackedRun(name, self.folder, known["id"], steps))
                known["id"] = tracker.id
                self._keep()
        self._send(lambda tracker: tracker.params(dict(_flat(self.spec.model_dump(exclude={"track"})))))
        for event in event_log.events:
            self._event(event)
        event_log.listeners.append(self._event)

    def _event(self, event: Mapping[str, Any]) -> None:
        """Send an event, if it is of a kind that has figures, and a later one than the last of its kind."""
        if (found := _figures(event)) is not None:
            step, values = found
            self._metrics(event["kind"], step, values, event["time"])

    def _metrics(self, kind: str, step: int, values: Mapping[str, float], at: float) -> None:
        for place in list(self.open):
            known = self.sent[place]
            if step <= known.get(kind, -1):
                continue
            with self._going_on(place):
                before = known.get(kind, -1)
                known[kind] = step
                self._keep()  # before it is sent: a point that a killed process did not send is better than two
                try:
                    self.open[place].metrics(values, step, at)
                except BaseException:
                    known[kind] = before  # a resumed run sends it
                    self._keep()
                    raise

    def finish(self, report: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
        """Send the figures of the test and the report of a finished run."""
        step = max((entry["step"] for entry in report["rounds"]), default=0)
        groups = {"test": report["test"] or {}}
        groups |= {f"baselines/{_clean(name)}": each for name, each in report["baselines"].items()}
        values = {f"{group}/{name}": value for group, each in groups.items() for name, value in _means(each).items()}
        if values:
            self._metrics("test", step, values, time.time())
        self._send(lambda tracker: tracker.report(self.folder, figures))
        self.finished = True

    def close(self) -> None:
        """Close all trackers."""
        for place in list(self.open):
            with self._going_on(place):
                self.open.pop(place).close(self.finished)

    def _send(self, call: Callable[[Tracker], None]) -> None:
        for place in list(self.open):
            with self._going_on(place):
                call(self.open[place])

    @contextmanager
    def _going_on(self, place: str) -> Iterator[None]:
        """A context after whose errors the run goes on without a tracker."""
        try:
            yield
        except Exception as error:  # of any library, or of the network
            self.open.pop(place, None)
            said = " ".join(str(error).split())[:200] or type(error).__name__
            self.say(f"{place} failed, and the run goes on without it: {type(error).__name__}: {said}")

    def _keep(self) -> None:
        """Write what was sent; it need not outlive the machine, and is not flushed to the disk."""
        temporary = self.folder / f".{SENT}"
        temporary.write_text(json.dumps(self.sent), encoding="utf-8")
        os.replace(temporary, self.folder / SENT)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What was sent; nothing, where the file is missing or damaged: then all is sent again."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(isinstance(each, dict) and "id" in each for each in found.values()):
            return found
    return {}


def _figures(event: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
    """The step and the figures of an event; None if it has none."""
    if event["kind"] in ("pretrain", "train"):
        return event["step"], {f"{event['kind']}/loss": event["loss"]}
    if event["kind"] != "decision" or "round" not in event:
        return None
    last = event["round"]
    values = {f"val/{name}": value for name, value in _means(last["val"]).items()}
    values |= {"round/number": last["number"], "round/seconds": last["seconds"]}
    return last["step"], values | {"round/outer_lr": last["settings"]["outer_lr"]}


def _means(figures: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each metric, and half the width of its interval, as far as there are any."""
    named = {_clean(name): each for name, each in figures.items()}
    means = {name: each["mean"] for name, each in named.items()}
    means |= {f"{name}_ci95": each["ci95"] for name, each in named.items()}
    return {name: float(value) for name, value in means.items() if value is not None}


def _clean(name: str) -> str:
    """A name without characters that some library takes in no name."""
    return name.translate(BAD)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Nested values by names such as "train.outer_lr"; lists and None as text.

    Example:
        >>> dict(_flat({"seed": 0, "train": {"clip": None, "mode": "vmap"}}))
        {'seed': 0, 'train.clip': 'None', 'train.mode': 'vmap'}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{_clean(str(name))}.")
        else:
            yield prefix + _clean(str(name)), value if isinstance(value, Plain) else str(value)
