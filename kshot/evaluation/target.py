"""What a run shall reach, and what follows from it: whether a figure meets it, and which of two is better."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kshot.evaluation.intervals import Interval


@dataclass(frozen=True)
class Target:
    """A bound on a validation metric, such as "accuracy >= 0.95" or "mse <= 0.8".

    Example:
        >>> Target.parse("accuracy >= 0.95")
        Target(metric='accuracy', at_least=True, value=0.95)
    """

    metric: str
    at_least: bool
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "METRIC >= NUMBER" or "METRIC <= NUMBER"; `ValueError` for anything else."""
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
        try:
            return cls(match[1], match[2] == ">=", float(match[3]))  # type: ignore[index]
        except (TypeError, ValueError):
            raise ValueError(
                f"a target reads 'METRIC >= NUMBER' or 'METRIC <= NUMBER', as in 'accuracy >= 0.95'; got {text!r}"
            ) from None

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.value:g}"

    def of(self, val: dict[str, Interval]) -> Interval:
        """The target's metric among a round's figures; `ValueError` if there is none of that name."""
        if self.metric not in val:
            raise ValueError(f"the target asks for {self.metric!r}, but these tasks report {', '.join(val)}")
        return val[self.metric]

    def met(self, found: Interval) -> bool:
        """Whether the whole interval, not just the mean, is on the right side."""
        return found.mean - found.ci95 >= self.value if self.at_least else found.mean + found.ci95 <= self.value

    def clearly_worse(self, found: Interval, best: Interval) -> bool:
        """Whether `found` is worse than `best` by so much that their intervals are apart."""
        gap = best.mean - found.mean if self.at_least else found.mean - best.mean
        return gap > found.ci95 + best.ci95
