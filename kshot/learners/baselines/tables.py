"""What a practitioner would use on tables whose rows come in groups, such as the pupils of schools.

Each method is fitted to the training groups; the support set of a new group then moves its predictions. Sources are
those of groups whose inputs are rows of numbers (n, F), with targets that are numbers or classes shared by all groups.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import Learner
from kshot.learners.baselines.boosting import (
    BoostedStatistics,
    Boosting,
    EncodedBoosting,
    Form,
    out_of_fold,
    training_tasks,
)
from kshot.learners.baselines.group_effects import Basis, GroupEffects, Predictor
from kshot.learners.baselines.mixed_model import MixedModel, fit_logits, fit_mixed_logits, fit_mixed_model
from kshot.learners.baselines.pool import TrainingRows, float_rows, training_rows, unwatched
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Tree

NUM_SLOPES, NUM_SLOPES_OF_CLASSES = (0, 1, 3, 8), (0, 1, 4)
"""Numbers of features whose slopes vary by group in a mixed model: those of the largest pooled coefficients."""
MOST_INPUTS = 64
"""Of ridge and logistic regression of a group; of more inputs, their principal components within groups."""
PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Of ridge regression and logistic regression on standardised inputs."""
POOLED_PENALTIES = (1.0, 30.0, 1000.0)
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the residual of the latest support row in the predictions that follow it."""
ITERATIONS = (40, 160)
"""Number of trees of boosting, at a learning rate of 0.1."""


@check_arguments
def baselines(source: TaskSource, *, max_rows: PositiveInt = 20_000) -> dict[str, Callable[[], list[Learner]]]:
    r"""The baselines that suit tasks of grouped tables, by name; {} if the tasks of the source are of another kind.

    | name | prediction for a row of a new group |
    | --- | --- |
    | shrunken_mean | mean of the training rows, moved to that of the support by the ratio of the variances |
    | pooled_ridge, pooled_logistic | linear model of all training rows; ignores the support |
    | group_ridge, group_logistic | linear model of the support alone |
    | shrunken_ridge, shrunken_logistic | the same, shrunken to the pooled coefficients |
    | mixed_model | mixed model: shared coefficients, intercepts and slopes of the group |
    | mixed_model_ar1 | the same, plus a share of the residual of the latest support row: for numbers in order of time |
    | pooled_boosting | boosting of inputs and statistics of the support |
    | pooled_boosting_residual | boosting of inputs alone, plus the support's residuals by a mixed model |
    | target_encoded_boosting | the same, with target encoding of categories that the source encodes by random codes |

    Args:
        source: of groups; only its training split is read.
        max_rows: number of rows that the methods are fitted to, whole groups.

    Returns:
        For each name a function that fits the method and returns its candidates, one for each setting of its
        hyperparameters, among which validation tasks choose.

    Example:
        >>> import numpy as np
        >>> from kshot import objectives
        >>> from kshot.data.dataset import ArrayDataset
        >>> from kshot.tasks.group_tasks import GroupTasks
        >>> random = np.random.default_rng(0)
        >>> x, effect = random.normal(size=(80, 2)), random.normal(size=8).repeat(10)
        >>> examples = ArrayDataset((x, (x[:, 0] + effect)[:, None]))
        >>> groups = {"train": {f"school {g}": range(10 * g, 10 * g + 10) for g in range(8)}}
        >>> source = GroupTasks(examples, groups, objective=objectives.mse, shots=3, queries=2)
        >>> learner = baselines(source)["mixed_model"]()[0]
        >>> task = source.task("train", 0)
        >>> float(learner(task).detach()) < 0.1
        True

    References:
        Gelman, Hill: Data Analysis Using Regression and Multilevel/Hierarchical Models, Cambridge University Press,
        2007, for partial pooling; Sigrist: Gaussian Process Boosting, JMLR 23, 2022, arXiv:2004.02653, for boosting
        with effects of the group, which are estimated once here, not in turns with the trees.
    """
    inner, objective = unwatched(source), source.objective
    suits = objective.predicts in ("values", "distribution", "classes") and not objective.task_specific_classes
    if inner.member != "group" or inner.forecasts or not suits or not float_rows(inner):
        return {}
    methods = _Methods(inner, max_rows)
    kind = "logistic" if objective.classifies else "ridge"
    found: dict[str, Callable[[], list[Learner]]] = {
        "shrunken_mean": methods.shrunken_mean,
        f"pooled_{kind}": methods.pooled_linear,
        f"group_{kind}": methods.group_linear,
        f"shrunken_{kind}": methods.shrunken_linear,
        "mixed_model": methods.mixed_model,
        "pooled_boosting": methods.pooled_boosting,
        "pooled_boosting_residual": methods.boosting_residual,
    }
    if not objective.classifies and getattr(inner, "order", None) == "given":
        found["mixed_model_ar1"] = methods.mixed_model_ar1
    if methods.codes:
        found["target_encoded_boosting"] = methods.encoded_residual
    return found


class CarriedForward(Learner):
    r"""A learner's prediction plus a share of its residual at the latest support row, as residuals in time are alike.

    $$ \hat y(x) + \rho \, (y_N - \hat y(x_N)) $$

    The rows of a support set are in the order of time. The state is `{"learner": its state, "residual": (1, D)}`.

    Args:
        learner: of numbers or of a distribution of them.
        share: $\rho$; the residual of an AR(1) process decays by it at each step, here at the first one alone.

    References:
        Chi, Reinsel: Models for longitudinal data with random effects and AR(1) errors, JASA 84, 1989.
    """

    ordered = True

    def __init__(self, learner: Learner, share: float) -> None:
        super().__init__(learner.objective)
        self.learner, self.share = learner, share

    def _adapt(self, support: Batch) -> Tree:
        state = self.learner.adapt(support)
        known = (support.weight > 0).nonzero()
        last = slice(int(known.max()), int(known.max()) + 1) if len(known) else slice(0, 0)
        mean = self._mean(self.learner.predict(state, support.inputs[last]))
        return {"learner": state, "residual": support.targets[last] - mean}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        prediction = self.learner.predict(state["learner"], inputs)
        moved = self._mean(prediction) + self.share * state["residual"].sum(0)  # 0 without a support row
        return prediction | {"mean": moved} if isinstance(prediction, dict) else moved

    def _mean(self, prediction: Tree) -> Tensor:
        mean: Tensor = prediction["mean"] if isinstance(prediction, dict) else prediction
        return mean


class _Methods:
    """The methods of `baselines`, fitted to the training rows of a source, which are read once."""

    def __init__(self, source: TaskSource, max_rows: int) -> None:
        self.source, self.objective, self.max_rows = source, source.objective, max_rows
        self.classifies = self.objective.classifies
        self.num_slopes = NUM_SLOPES_OF_CLASSES if self.classifies else NUM_SLOPES

    @cached_property
    def rows(self) -> TrainingRows:
        rows = training_rows(self.source, max_rows=self.max_rows)
        return rows._replace(inputs=rows.inputs.double(), targets=rows.targets.double())

    @cached_property
    def targets(self) -> Tensor:
        return self.rows.targets.flatten(1)

    @cached_property
    def codes(self) -> list[list[int]]:
        """The places of the features of each column that the source encodes by random codes."""
        columns = getattr(getattr(self.source, "preprocessor", None), "input_columns", None)
        places: dict[str, list[int]] = {}
        for place, feature in enumerate(getattr(columns, "features", [])):
            name, separator, number = feature.rpartition(" code ")
            if separator and number.isdigit():
                places.setdefault(name, []).append(place)
        return list(places.values())

    def shrunken_mean(self) -> list[Learner]:
        return [self._mixed(self._basis(), pooled=self._nothing, held_out=torch.zeros_like(self.targets))]

    def pooled_linear(self) -> list[Learner]:
        basis = self._basis()
        return [self._penalised(basis, self._linear(basis, ridge), 0.0, 0.0) for ridge in POOLED_PENALTIES]

    def group_linear(self) -> list[Learner]:
        basis, free = self._basis(1, MOST_INPUTS), 3.0 if self.classifies else 1e3
        return [self._penalised(basis, self._nothing, 1 / ridge**0.5, free) for ridge in PENALTIES]

    def shrunken_linear(self) -> list[Learner]:
        basis = self._basis(1, MOST_INPUTS)
        pooled = self._linear(basis, 1.0)
        return [self._penalised(basis, pooled, 1 / ridge**0.5, 1.0) for ridge in PENALTIES]

    def mixed_model(self) -> list[Learner]:
        return self._mixed_models

    def mixed_model_ar1(self) -> list[Learner]:
        return [CarriedForward(model, share) for model, share in product(self._mixed_models, SHARES)]

    @cached_property
    def _mixed_models(self) -> list[Learner]:
        learners = [self._mixed(self._varying(*each)) for each in product((1, 2), self.num_slopes)]
        return (
            learners if self.classifies else [*learners, self._mixed(self._varying(1, NUM_SLOPES[-1]), diagonal=True)]
        )

    def pooled_boosting(self) -> list[Learner]:
        forms: tuple[Form, ...] = ("levels",) if self.classifies else ("levels", "deviations")
        fit = partial(BoostedStatistics, self.source, training_tasks(self.source))
        return [fit(form=form, max_iter=count) for form, count in product(forms, ITERATIONS)]

    def boosting_residual(self) -> list[Learner]:
        return self._residual(partial(Boosting, classifies=self.classifies))

    def encoded_residual(self) -> list[Learner]:
        return self._residual(partial(EncodedBoosting, codes=self.codes, classifies=self.classifies))

    def _residual(self, boosting: Callable[..., Predictor]) -> list[Learner]:
        """Boosting of the inputs, plus a mixed model of what it leaves in groups that it was not fitted to."""
        rows, learners = self.rows, list[Learner]()
        for count in ITERATIONS:
            fit = partial(boosting, max_iter=count)
            held_out, pooled = out_of_fold(fit, rows.inputs, self.targets, rows.group), fit(rows.inputs, self.targets)
            bases = [self._varying(1, slopes) for slopes in self.num_slopes[:3:2]]
            learners += [self._mixed(basis, pooled=pooled, held_out=held_out) for basis in bases]
        return learners

    def _basis(self, degree: int = 1, slopes: int = 0) -> Basis:
        return Basis(self.rows.inputs, self.rows.group, degree=degree, slopes=slopes)

    def _varying(self, degree: int, slopes: int) -> Basis:
        """A basis whose features of the largest pooled coefficients have slopes that vary by group."""
        if not slopes:
            return self._basis(degree)
        basis = self._basis(degree)
        size_p = self._coefficients(basis, 1.0)[1:].square().sum(1)
        ranked = size_p.argsort(descending=True).tolist()
        return Basis(self.rows.inputs, self.rows.group, degree=degree, slopes=slopes, ranked=ranked)

    def _nothing(self, inputs: Tensor) -> Tensor:
        """The prediction 0, (n, D) or (n, C)."""
        return torch.zeros(len(inputs), self.targets.shape[1]).double()

    def _linear(self, basis: Basis, ridge: float) -> Predictor:
        return linear(basis, self._coefficients(basis, ridge))

    def _coefficients(self, basis: Basis, ridge: float) -> Tensor:
        """The coefficients (p, D) of the pooled linear model of all training rows."""
        fixed = basis.fixed(self.rows.inputs)
        if self.classifies:
            return fit_logits(fixed, self.targets, self._nothing(fixed), ridge=ridge)
        penalty = torch.tensor([0.0] + [ridge] * (fixed.shape[1] - 1)).double()
        return torch.linalg.solve(fixed.mT @ fixed + penalty.diag(), fixed.mT @ self.targets)

    def _mixed(
        self, basis: Basis, *, pooled: Predictor | None = None, held_out: Tensor | None = None, diagonal: bool = False
    ) -> Learner:
        """A mixed model whose shared part is linear, or a constant and a predictor with its held-out predictions."""
        rows, group = self.rows.inputs, self.rows.group
        fixed, random = basis.fixed(rows), basis.random(rows)
        fixed = fixed if pooled is None else fixed[:, :1]
        if self.classifies:
            models = [fit_mixed_logits(fixed, random, self.targets, group, offset_NC=held_out)]
        else:
            residuals = self.targets if held_out is None else self.targets - held_out
            models = [fit_mixed_model(fixed, random, column, group, diagonal=diagonal) for column in residuals.T]
        coefficients = torch.stack([model.coefficients for model in models], -1).flatten(1)
        shared = linear(basis, coefficients) if pooled is None else shifted(pooled, coefficients)
        return GroupEffects(self.objective, shared, basis, models, self.rows.targets.shape[1:])

    def _penalised(self, basis: Basis, pooled: Predictor, slope: float, intercept: float) -> Learner:
        """Effects of given standard deviations, in units of the noise."""
        size = basis.random(self.rows.inputs[:1]).shape[1]
        factor = torch.tensor([intercept] + [slope] * (size - 1)).double().diag()
        one = torch.ones(()).double()
        models = [MixedModel(torch.zeros(0), factor, one)] * (1 if self.classifies else self.targets.shape[1])
        learner = GroupEffects(self.objective, pooled, basis, models, self.rows.targets.shape[1:])
        if self.objective.predicts == "distribution":
            noises = self._noise(learner)
            learner.models = tuple(model._replace(noise=noise) for model, noise in zip(models, noises))
        return learner

    def _noise(self, learner: GroupEffects) -> Tensor:
        """The noise (D,) by which standard deviations are right: each half of a group is predicted from the other."""
        ratios = []
        for number in range(min(self.rows.num_groups, 100)):
            of_group = np.flatnonzero(self.rows.group == number)
            for first, second in ((of_group[::2], of_group[1::2]), (of_group[1::2], of_group[::2])):
                if len(first) and len(second):
                    support = Batch.of(self.rows.inputs[first], self.rows.targets[first])
                    prediction = learner.predict(learner.adapt(support), self.rows.inputs[second])
                    ratios.append(((prediction["mean"] - self.rows.targets[second]) / prediction["std"]).flatten(1))
        return torch.cat(ratios).square().mean(0) if ratios else self.targets.var(0, correction=0)


def linear(basis: Basis, coefficients: Tensor) -> Predictor:
    """The linear predictor of a basis, with coefficients (p, D)."""
    return lambda inputs: basis.fixed(inputs) @ coefficients


def shifted(pooled: Predictor, shift: Tensor) -> Predictor:
    """A predictor plus a constant (1, D)."""
    return lambda inputs: pooled(inputs) + shift
