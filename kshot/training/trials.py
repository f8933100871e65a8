"""The trials by which the mode "auto" chooses an engine, and what a checkpoint keeps of them.

A choice depends on the clock. A resumed run must not make it again: it keeps the engine, and the chunks of
tasks, of the process that it continues, so that it ends with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Name = TypeVar("Name", bound=str)

NUM_TRIALS = 3  # steps by each engine before the choice; the first is a warm-up


class Plan(NamedTuple):
    """How a step stays within its memory: tasks in one pass (None: all), and whether inner steps are recomputed."""

    chunk: int | None = None
    recompute: bool = False

    def fits_where(self, other: Plan) -> bool:
        """Whether it needs no more memory than another plan that fits."""
        if other.recompute and not self.recompute:
            return False
        return other.chunk is None or (self.chunk is not None and self.chunk <= other.chunk)

    def smaller(self, num_tasks: int, *, one_by_one: bool) -> Plan | None:
        """The next plan that needs less memory for this number of tasks; None if there is none."""
        if one_by_one:
            return None if self.recompute else Plan(recompute=True)
        chunk = min(self.chunk or num_tasks, num_tasks)
        return Plan(chunk // 2) if chunk > 1 else None


@dataclass
class Trials(Generic[Name]):
    """Seconds of the steps that each engine took, and why some could take none.

    Attributes:
        seconds: engine to the duration of each of its steps.
        failures: of engines that do not run.
        settled: the engine that an earlier process of the same run chose; the choice is then this one.
    """

    seconds: dict[Name, list[float]]
    failures: list[str] = field(default_factory=list)
    settled: Name | None = None

    def next(self) -> Name:
        """The engine with the fewest trials."""
        return min(self.seconds, key=lambda engine: len(self.seconds[engine]))

    def drop(self, engine: Name, reason: str) -> None:
        """Leave out an engine that does not run."""
        del self.seconds[engine]
        self.failures.append(f"{engine} does not run: {reason}")

    def choice(self) -> tuple[Name, str] | None:
        """The engine to use and the reason; None while trials are missing."""
        if any(len(times) < NUM_TRIALS for times in self.seconds.values()):
            return None
        best = {engine: min(times[1:]) for engine, times in self.seconds.items()}
        if self.settled in best:
            return self.settled, "which this run chose before it was interrupted"
        timings = ", ".join(f"{engine} {1e3 * seconds:.0f} ms" for engine, seconds in best.items())
        _, fastest = min((seconds, engine) for engine, seconds in best.items())
        return fastest, f"the fastest by measurement ({timings} per step)"
