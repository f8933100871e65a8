"""Experience: an append-only log of decisions and their results, one JSON object per line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Experience:
    """An append-only log, in memory and optionally in a file, which survives a killed run.

    Args:
        path: a JSON-lines file; existing events are read, and an incomplete last line is dropped.

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
            complete_lines = path.read_text().rpartition("\n")[0]
            self.events = [json.loads(line) for line in complete_lines.splitlines()]
            path.write_text(complete_lines + "\n" if complete_lines else "")

    def record(self, kind: str, **fields: Any) -> None:
        """Append an event with its time in seconds since the epoch."""
        event = {"kind": kind, "time": round(time.time(), 3), **fields}
        self.events.append(event)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(event) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]
