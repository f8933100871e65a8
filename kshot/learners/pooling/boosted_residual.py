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
    r"""Gradient-boosted trees as what groups share, and a Bayesian regression of what they leave in a group.

    $$ y = \beta_1 b(x) + \beta^\top z(x) + u^\top \phi(x) + \epsilon, \qquad u \sim N(0, s \Sigma) $$

    It is `partial_pooling` with the prediction $b(x)$ of scikit-learn's histogram boosting as one more input, whose
    coefficient is not shrunk: a group deviates in its level, in how strongly it follows the trees, and in its slopes.
    The trees are fitted to the training rows without the estimated deviations of their groups; $\beta$ and $\Sigma$ are
    estimated from predictions for each group by trees fitted to other groups, so that trees that fit their own rows too
    closely are trusted as much as they deserve. Trees are stored with the learner's weights, and evaluated by PyTorch.

    Args:
        inputs: size of an input, flattened.
        outputs: size of a target, or number of classes.
        trees: number of trees of each output.
        leaves: largest number of leaves of a tree; trees of 4 leaves are tried too, and the better ones kept.
        depth: largest depth of a tree.
        rate: learning rate of boosting.
        knots, slope_penalty, correlation_penalty, prior, noise, steps, objective: as in `partial_pooling`.

    Returns:
        A learner for any number of shots; $b$ is 0 until `training.fit_closed_form(learner, source)` fits the trees,
        which `training.fit` calls first. Trees see the principal components of more than 256 inputs.

    Raises:
        ValueError: an objective of task-specific classes; fewer than two training groups.

    Example:
        >>> learner = boosted_residual(1, 1, trees=10, knots=0, objective=objectives.mse)
        >>> kshot.training.fit_closed_form(learner, kshot.sources.sinusoids())
        True
        >>> task = kshot.sources.sinusoids().task("test", 0)
        >>> learner.predict(learner.adapt(task.support), task.query.inputs).shape == task.query.targets.shape
        True

    References:
        Ke et al.: LightGBM, NeurIPS 2017 (histogram boosting, as in scikit-learn); Hajjem, Bellavance, Larocque:
        Mixed-effects random forest for clustered data, Journal of Statistical Computation and Simulation 84, 2014
        (trees fitted without the groups' deviations); Sigrist: Gaussian Process Boosting, JMLR 23, 2022,
        arXiv:2004.02653.

    Deviations:
        Deviations are estimated once before boosting, where the papers alternate; slopes, and coefficients from
        predictions for other groups, are new.
    """
    columns = 1 if objective.predicts == "classes" and outputs == 2 else outputs
    boosting = Boosting(columns, trees=trees, leaves=leaves, depth=depth, rate=rate)
    return PartialPooling(
        inputs, outputs, objective, embedding=None, boosting=boosting, knots=knots,
        penalties=Penalties(slope_penalty, correlation_penalty), prior=prior, noise=noise, steps=steps,
    )  # fmt: skip
