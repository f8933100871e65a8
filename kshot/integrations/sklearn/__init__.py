"""Estimators of scikit-learn: meta-train over groups of rows and adapt to a new group, or read one small table.

`MetaRegressor` and `MetaClassifier` are fitted to the rows of many groups. Their method `adapt` takes a few rows of a
new group and returns an ordinary fitted estimator, a `KShotRegressor` or `KShotClassifier`, which open run folders too.
`TabularRegressor` and `TabularClassifier` need no groups: their network was trained before, on other tables.
"""

from kshot.integrations.sklearn.adapted import KShotClassifier, KShotRegressor
from kshot.integrations.sklearn.meta import MetaClassifier, MetaRegressor
from kshot.integrations.sklearn.tabular import TabularClassifier, TabularRegressor

__all__ = [
    "KShotClassifier",
    "KShotRegressor",
    "MetaClassifier",
    "MetaRegressor",
    "TabularClassifier",
    "TabularRegressor",
]
