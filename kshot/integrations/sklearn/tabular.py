"""Estimators of one small table: a trained network reads its rows in context, and the user trains nothing.

Shape legend: n rows, m queries, F features, C classes, S groups of classes, Y targets of the network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isqrt, log
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PowerTransformer, StandardScaler
from sklearn.utils import assert_all_finite, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn.functional import pad

from kshot.integrations.sklearn.encoder import Encoder, Numbers, words
from kshot.integrations.sklearn.rows import Classifying, Columns, Regressing, Rows, taken
from kshot.integrations.sklearn.weights import packaged
from kshot.learner import evaluation_mode
from kshot.learners.amortised.prior_fitted import PriorFitted
from kshot.types import Batch, Tree

MOST_FEATURES = 100
"""The most features that a member reads."""
MOST_CELLS = 30_000_000
"""The largest product of a member's features and the square of its rows, which bounds its memory to about 1 GB."""
CHUNK = 64
"""Queries that are predicted together; fewer are padded, so that a prediction does not depend on their number."""
FARTHEST = 100.0
"""Features are clipped to this many standard deviations, where the network has long been saturated."""
MANY_CLASSES_POWER = 4.0
"""Power of the geometric mean of groups' probabilities, for tables of more classes than the network has."""


def _clipped(*steps: Any) -> Any:
    return make_pipeline(*steps, FunctionTransformer(np.clip, kw_args={"a_min": -FARTHEST, "a_max": FARTHEST}))


def _standardized() -> Any:
    return _clipped(StandardScaler())


def _symmetric() -> Any:
    return _clipped(_standardized(), PowerTransformer())


TRANSFORMS: tuple[Callable[[], Any], ...] = (_standardized, _symmetric)
"""Transformers of features; the members of an ensemble have them by turns."""


@dataclass(frozen=True)
class Member:
    """What one member of the ensemble reads of a table.

    Attributes:
        features: the places of the features that it reads, (F,).
        transform: their fitted transformer.
        code: (C,), the group of each class; or (1,), the sign of a number to predict.
        inputs, targets, weight: the rows that it reads, (n, F), (n, Y), (n,).
    """

    features: NDArray[np.intp]
    transform: Any
    code: NDArray[np.intp]
    inputs: Numbers
    targets: Numbers
    weight: Numbers


class Tabular(Rows):
    """An estimator of one table."""

    kind: ClassVar[Literal["classifier", "regressor"]]
    learner_: PriorFitted
    _members: list[Member]

    def __init__(
        self, *, ensemble: int = 4, max_rows: int = 1000, learner: PriorFitted | None = None, random_state: Any = 0
    ) -> None:
        self.ensemble = ensemble
        self.max_rows = max_rows
        self.learner = learner
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Read the rows of a table.

        Args:
            X: DataFrame or array (n, features), of numbers, words, booleans and dates, any of them missing.
            y: (n,), the targets.
            sample_weight: (n,), relative weights of rows; rows of weight 0 are left out.

        Raises:
            ValueError: data or arguments that cannot be used.
        """
        columns, y = self._checked(X, y, reset=True)
        for name in ("ensemble", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.learner_ = packaged(self.kind) if self.learner is None else self.learner
        if not isinstance(self.learner_, PriorFitted) or self.learner_.classifies != (self.kind == "classifier"):
            raise ValueError(f"the learner of a {type(self).__name__} must be a prior_fitted that is a {self.kind}")
        weight = _weight(sample_weight, len(y))
        rows = np.flatnonzero(weight)
        columns, targets, weight = taken(columns, rows), self._encoded(y[rows]), weight[rows] / weight[rows].mean()
        self._encoder = Encoder(columns)
        x, random = self._encoder(columns), check_random_state(self.random_state)
        strata = targets if self.kind == "classifier" else np.zeros_like(rows)
        fitted: dict[Any, Any] = {}  # transformers, which members share that read the same
        self._members = []
        for number, code in enumerate(self._codes(random)):
            features = _features(x.shape[1], random)
            read = _rows(strata, min(self.max_rows, isqrt(MOST_CELLS // len(features))), random)
            key = number % len(TRANSFORMS), features.tobytes(), read.tobytes()
            if key not in fitted:
                fitted[key] = TRANSFORMS[key[0]]().fit(x[np.ix_(read, features)])
            inputs = fitted[key].transform(x[np.ix_(read, features)])
            self._members.append(
                Member(features, fitted[key], code, inputs, self._coded(targets[read], code), weight[read])
            )
        return self._adapt()

    @abstractmethod
    def _codes(self, random: Any) -> list[NDArray[np.intp]]:
        """The code of each member."""

    @abstractmethod
    def _coded(self, targets: NDArray[Any], code: NDArray[np.intp]) -> NDArray[Any]:
        """Targets (n, Y) of the network."""

    def _adapt(self) -> Self:
        with evaluation_mode(self.learner_):
            batches = [
                Batch(*map(torch.from_numpy, (each.inputs, each.targets, each.weight))) for each in self._members
            ]
            self._states: list[Tree] = [self.learner_.adapt(batch) for batch in batches]
        return self

    def _predicted(self, X: Any) -> list[tuple[Member, Numbers]]:
        """Each member, and its predictions: logits of groups (m, S), or mean and standard deviation (m, 2)."""
        check_is_fitted(self)
        x = self._encoder(self._columns(X))
        predicted = []
        with evaluation_mode(self.learner_):
            for member, state in zip(self._members, self._states):
                inputs = torch.from_numpy(member.transform.transform(x[:, member.features]))
                parts = [self._predict_chunk(state, chunk) for chunk in inputs.split(CHUNK)]
                predicted.append((member, torch.cat(parts).double().numpy()))
        return predicted

    def _predict_chunk(self, state: Tree, inputs: Tensor) -> Tensor:
        prediction = self.learner_.predict(state, pad(inputs, (0, 0, 0, CHUNK - len(inputs))))
        if isinstance(prediction, dict):
            prediction = torch.cat([prediction["mean"], prediction["std"]], 1)
        return prediction[: len(inputs)]

    def _columns(self, X: Any, *, reset: bool = False) -> Columns:
        """The columns of X; categories of a DataFrame are words, and those columns of an array that are no numbers."""
        if hasattr(X, "columns"):
            columns = super()._columns(X, reset=reset)
            if not columns:
                raise ValueError(f"X has 0 feature(s), while {type(self).__name__} needs at least 1")
            for number, (name, dtype) in enumerate(zip(columns, X.dtypes)):
                if str(dtype) == "category":
                    columns[name] = words(X.iloc[:, number].astype(object))
            return columns
        X = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan")
        return {f"x{number}": _as_numbers(column) for number, column in enumerate(X.T)}

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in super().__getstate__().items() if name != "_states"}
        if self.learner is None:
            state.pop("learner_", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_members"):
            self.__dict__.setdefault("learner_", packaged(self.kind))
            self._adapt()


class TabularClassifier(Classifying, Tabular):
    """A classifier of one small table, whose network was trained on other tables; `fit` only reads the rows.

    The network, `learners.prior_fitted`, was trained on synthetic tables and on those of R's packages, each with a
    random column as the target. It predicts a row from all rows that it reads, in one pass. The members of an
    ensemble read them with other transforms of the features (as they are, or by a power transform that makes them
    symmetric) and with another order of the classes; the probabilities are the geometric mean of theirs, normalised.
    Of a table of more classes than the network has, 10, each member reads random groups of classes instead; a class
    then has a power of the geometric mean of the probabilities of its groups, and there are more members.

    A missing number is the median of its column, with a feature that says so; words are one-hot, and where there are
    more than 16 levels, how often they occur is a feature too.

    Args:
        ensemble: number of members, to which the time is proportional. There are twice as many for more than 10
            classes, three times as many for more than 100.
        max_rows: the most rows that a member reads, as its time grows with their cube. Of more rows, it reads a sample
            of its own, stratified by class. Where there are more than 30 features it reads fewer rows, 547 of 100
            features, and of more than 100 features a random 100.
        learner: a `prior_fitted` of your own, such as `kshot.load("runs/tabular").learner`; by default that of the
            package.
        random_state: seed of the samples and groups.

    Attributes:
        classes_: the classes, sorted.
        learner_: the network.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> TabularClassifier().fit(X[::5], y[::5]).predict(X[3::50])
        array([0, 1, 2])

    References:
        Hollmann et al.: TabPFN, ICLR 2023, arXiv:2207.01848, and Accurate predictions on small data with a tabular
        foundation model, Nature 637, 2025, also for the ensemble. Groups of classes are error-correcting output codes
        (Dietterich and Bakiri 1995) with an alphabet of the network's classes, as in the extension ManyClassClassifier
        of TabPFN.
    """

    kind = "classifier"

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each row, (m,)."""
        probability = self.predict_proba(X)
        return self.classes_[probability.argmax(1)]

    def predict_proba(self, X: Any) -> Numbers:
        """The probability of each class, (m, C)."""
        predicted = [log_softmax(logits, 1).clip(-30)[:, member.code] for member, logits in self._predicted(X)]
        power = 1.0 if len(self.classes_) <= self.learner_.targets else MANY_CLASSES_POWER
        return cast(Numbers, softmax(power * np.mean(predicted, 0), 1))

    def _encoded(self, y: NDArray[Any]) -> NDArray[np.intp]:
        check_classification_targets(y)
        self.classes_, classes = np.unique(y, return_inverse=True)
        return classes

    def _codes(self, random: Any) -> list[NDArray[np.intp]]:
        count, most = len(self.classes_), self.learner_.targets
        classes = np.arange(count)
        if count <= most:
            return [(classes + number // len(TRANSFORMS)) % count for number in range(self.ensemble)]
        return [random.permutation(count) % most for _ in range(self.ensemble * ceil(log(count, most)))]

    def _coded(self, targets: NDArray[Any], code: NDArray[np.intp]) -> NDArray[Any]:
        return np.eye(code.max() + 1)[code[targets]]


class TabularRegressor(Regressing, Tabular):
    """A regressor of one small table, whose network was trained on other tables; `fit` only reads the rows.

    It predicts a mean and a standard deviation. The members of the ensemble read the rows with other transforms of the
    features, and with the targets or their negative; the prediction is that of the mixture of their distributions.

    Args:
        ensemble: number of members. Where all of them read all rows and features, more than 4 are of no use.
        max_rows, learner, random_state: as of `TabularClassifier`.

    Attributes:
        learner_: the network.

    Example:
        >>> X = np.linspace(0, 6, 25)[:, None]
        >>> regressor = TabularRegressor().fit(X, 3 * X[:, 0] + 1)
        >>> mean, std = regressor.predict([[2.0], [4.0]], return_std=True)
        >>> mean.round()
        array([ 7., 13.])
    """

    kind = "regressor"

    def predict(self, X: Any, return_std: bool = False) -> Numbers | tuple[Numbers, Numbers]:
        """The mean for each row, (m,); with `return_std` also the standard deviation, (m,)."""
        predicted = np.array([prediction * [member.code[0], 1] for member, prediction in self._predicted(X)])
        mean, std = predicted[..., 0], predicted[..., 1]  # (members, m)
        mixture = self._center + self._scale * mean.mean(0)
        if not return_std:
            return mixture
        return mixture, self._scale * np.sqrt(np.square(std).mean(0) + mean.var(0))

    def _encoded(self, y: NDArray[Any]) -> Numbers:
        y = super()._encoded(y)
        self._center, self._scale = y.mean(), y.std() or 1.0
        return (y - self._center) / self._scale

    def _codes(self, random: Any) -> list[NDArray[np.intp]]:
        return [np.array([1 - 2 * (number // len(TRANSFORMS) % 2)]) for number in range(self.ensemble)]

    def _coded(self, targets: NDArray[Any], code: NDArray[np.intp]) -> NDArray[Any]:
        return targets[:, None] * code


def _weight(sample_weight: ArrayLike | None, count: int) -> Numbers:
    """Weights of rows (n,), with checks."""
    if sample_weight is None:
        return np.ones(count)
    weight = column_or_1d(sample_weight, dtype=np.float64)
    assert_all_finite(weight, input_name="sample_weight")
    if len(weight) != count:
        raise ValueError(f"sample_weight must have one weight for each of the {count} rows, got {len(weight)}")
    if (weight < 0).any():
        raise ValueError(f"sample_weight must be at least 0, got {weight.min()}")
    if not weight.any():
        raise ValueError("sample_weight is zero for all rows")
    return weight


def _features(count: int, random: Any) -> NDArray[np.intp]:
    """The places of all features, or of some at random."""
    return np.arange(count) if count <= MOST_FEATURES else random.choice(count, MOST_FEATURES, replace=False)


def _rows(strata: NDArray[np.intp], most: int, random: Any) -> NDArray[np.intp]:
    """The places of all rows, or of some at random: as many of each stratum as in proportion, but at least one."""
    if len(strata) <= most:
        return np.arange(len(strata))
    order = random.permutation(len(strata))
    _, stratum, counts = np.unique(strata[order], return_inverse=True, return_counts=True)
    rank = np.empty(len(order))  # within the stratum
    rank[np.argsort(stratum, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
    quantile = np.where(rank == 0, -1, (rank + random.random_sample(len(order))) / counts[stratum])
    return np.sort(order[np.argsort(quantile, kind="stable")[:most]])


def _as_numbers(column: NDArray[Any]) -> NDArray[Any]:
    """A column of an array as numbers if it can be read so."""
    try:
        return column.astype(np.float64) if column.dtype.kind in "OUS" else column
    except (TypeError, ValueError):
        return column
