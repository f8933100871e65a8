"""Tasks with room for planted faults, and what `kshot data check` finds in them."""

from functools import lru_cache

import numpy as np

from kshot import objectives
from kshot.checking.check import check
from kshot.checking.findings import SEVERITIES
from kshot.data import ArrayDataset
from kshot.tasks import ClassTasks, GroupTasks

CUT = {"train": range(12), "val": range(12, 22), "test": range(22, 32)}  # classes or groups
EACH = 8


def pool(cut=CUT):
    return {s: {f"member {c}": np.arange(EACH * c, EACH * c + EACH) for c in own} for s, own in cut.items()}


def pictures(images=None, cut=CUT, **options):
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (32 * EACH, 1, 6, 6), dtype=np.uint8)
    return ClassTasks(images, pool(cut), **{"ways": 3, "shots": 1, "queries": 4} | options)


def raw(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32 * EACH, 1, 6, 6), dtype=np.uint8)


def numbers(inputs=None, targets=None, **options):
    random = np.random.default_rng(1)
    inputs = random.normal(size=(32 * EACH, 3)) if inputs is None else inputs
    targets = random.normal(size=(32 * EACH, 1)) if targets is None else targets
    asked = {"objective": objectives.mse, "shots": 3, "queries": 3} | options
    return GroupTasks(ArrayDataset((inputs, targets)), pool(), **asked)


check_once = lru_cache(maxsize=1)(check)


def found(source, check_name, **options):
    """The severity of the worst finding of a kind, and all its sentences."""
    own = [finding for finding in check_once(source, **options).findings if finding.check == check_name]
    worst = max((finding.severity for finding in own), key=SEVERITIES.index, default=None)
    return worst, " ".join(finding.sentence for finding in own)
