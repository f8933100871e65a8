"""Scores of a learner on a fixed range of tasks, their intervals and comparisons, and audits of the protocol."""

from kshot.evaluation.baselines import baselines
from kshot.evaluation.compare import compare, paired_difference
from kshot.evaluation.cost import cost
from kshot.evaluation.evaluate import Evaluation, evaluate
from kshot.evaluation.intervals import Interval, interval, over_seeds
from kshot.evaluation.shots import over_shots
from kshot.evaluation.target import Target

__all__ = [
    "Evaluation",
    "Interval",
    "Target",
    "baselines",
    "compare",
    "cost",
    "evaluate",
    "interval",
    "over_seeds",
    "over_shots",
    "paired_difference",
]
