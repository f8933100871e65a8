"""Correlations of columns with targets."""

import numpy as np
from scipy.stats import rankdata

from kshot.checking.target_leakage import _ranks


def test_ranks_are_those_of_scipy():
    columns = np.random.default_rng(0).integers(0, 9, (50, 7)).astype(np.float32)
    columns[3, 2] = np.nan
    np.testing.assert_array_equal(_ranks(columns), rankdata(columns, axis=0))
    np.testing.assert_array_equal(_ranks(columns[:1]), rankdata(columns[:1], axis=0))
