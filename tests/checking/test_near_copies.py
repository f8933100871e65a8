"""The nearest row of each, against all distances."""

import numpy as np
import pytest

from kshot.checking.near_copies import _CROWD, _nearest_rows


def by_all_distances(rows, known, same, radius):
    distance = np.abs(rows[:, None] - known[None]).max(-1)
    crowded = (distance <= 10 * radius).sum(1) >= _CROWD
    if same:
        np.fill_diagonal(distance, np.inf)
    nearest = distance.min(1)
    return np.where(nearest <= 1000 * radius, nearest, np.inf), distance, crowded


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("equal", [0, 1, 40])
def test_the_nearest_row_is_found_with_and_without_equal_rows(same, equal):
    random = np.random.default_rng(equal)
    known = random.normal(size=(120, 2))
    known[random.choice(120, equal, replace=False)] = known[0]
    known[60:70] += known[50:60] - known[60:70] + 1e-3
    rows = known if same else np.concatenate([known[:20], random.normal(size=(30, 2))])
    distance, index, crowded = _nearest_rows(rows, known, same, 1e-3)
    nearest, every, crowd = by_all_distances(rows, known, same, 1e-3)
    assert distance == pytest.approx(nearest)
    found = np.isfinite(distance)
    assert every[found, index[found]] == pytest.approx(distance[found])
    assert (crowded == crowd).all()


def test_many_equal_rows_are_searched_in_time():
    rows = np.repeat([[0.0], [1.0]], 100_000, 0)  # 20 seconds for a k-d tree of all rows
    distance, index, crowded = _nearest_rows(rows, rows, True, 1e-4)
    assert (distance == 0).all()
    assert (index != np.arange(len(rows))).all()
    assert (rows[index] == rows).all()
    assert crowded.all()
