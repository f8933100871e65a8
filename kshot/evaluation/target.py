"""The target of a run: a bound on a validation metric, and comparisons of figures by it."""

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
        """Parse "METRIC >= NUMBER" or "METRIC <= NUMBER"; raises ValueError for anything else."""
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
        try:
            return cls(match[1], match[2] == ">=", float(match[3]))  # type: ignore[index]
        except (TypeError, ValueError):
            raise ValueError(
                f"a target reads 'METRIC >= NUMBER' or 'METRIC <= NUMBER', as in 'accuracy >= 0.95'; got {text!r}"
            ) from None

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.value:g}"

    def of(self, metrics: dict[str, Interval]) -> Interval:
        """The target's metric among a round's metrics; raises ValueError if it is missing."""
        if self.metric not in metrics:
            raise ValueError(f"the target's metric is {self.metric!r}, but these tasks report {', '.join(metrics)}")
        return metrics[self.metric]

    def met(self, figure: Interval) -> bool:
        """Whether the whole interval, not only the mean, satisfies the bound; never if it is not known."""
        return figure.low >= self.value if self.at_least else figure.high <= self.value

    def missed(self, figure: Interval) -> bool:
        """Whether no point of the interval satisfies the bound."""
        return figure.high < self.value if self.at_least else figure.low > self.value

    def clearly_worse(self, figure: Interval, best: Interval) -> bool:
        """Whether `figure` is worse than `best` and their intervals do not overlap."""
        return figure.high < best.low if self.at_least else figure.low > best.high
