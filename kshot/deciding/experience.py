"""Experience: the record of what was tried and what came of it, one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Experience:
    """An append-only log, in memory and, where a path is given, in a file that outlives a killed run.

    Args:
        path: a JSON-lines file, made if need be; what it holds already is read. A last line cut short is dropped.

    Example:
        >>> experience = Experience()
        >>> experience.record("decision", action="Continue")
        >>> experience.events[0]["kind"]
        'decision'
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        if path is not None and path.exists():
            whole = path.read_text().rpartition("\n")[0]
            self.events = [json.loads(line) for line in whole.splitlines()]
            path.write_text(whole + "\n" if whole else "")

    def record(self, kind: str, **fields: Any) -> None:
        """Append an event with its time, seconds since the epoch."""
        event = {"kind": kind, "time": round(time.time(), 3), **fields}
        self.events.append(event)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(event) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]
