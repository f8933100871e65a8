"""Boosting as what groups share, and partial pooling of what it leaves."""

from __future__ import annotations

from kshot import objectives
from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learners.pooling.boosting import Boosting
from kshot.learners.pooling.empirical_bayes import Penalties
from kshot.learners.pooling.partial_pooling import PartialPooling
from kshot.objectives import Objective
from kshot.supplied import FeatureCount, NumOutputs


@check_arguments
def boosted_residual(
    inputs: FeatureCount,
    outputs: NumOutputs,
    *,
    trees: PositiveInt = 150,
    leaves: PositiveInt = 15,
    depth: PositiveInt = 6,
    rate: PositiveFloat = 0.06,
    knots: NonNegativeInt = 5,
    slope_penalty: NonNegativeFloat = 10.0,
    correlation_penalty: NonNegativeFloat = 5.0,
    prior: PositiveFloat = 0.5,
    noise: PositiveFloat = 0.5,
    steps: PositiveInt = 12,
    objective: Objective = objectives.gaussian,
) -> PartialPooling:
    columns = 1 if objective.predicts == "classes" and outputs == 2 else outputs
    boosting = Boosting(columns, trees=trees, leaves=leaves, depth=depth, rate=rate)
    return PartialPooling(
        inputs, outputs, objective, embedding=None, extra=boosting, knots=knots,
        penalties=Penalties(slope_penalty, correlation_penalty), prior=prior, noise=noise, steps=steps,
    )  # fmt: skip
