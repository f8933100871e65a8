"""What every learner promises, one row of the zoo at a time; `kshot.testing` holds the checks."""

import pytest
from zoo import REPRESENTATIVES, ZOO

from kshot.testing import learner_checks

ENGINES = {
    "maml", "imaml", "learned optimizer, lstm", "protonet", "r2d2", "cnp", "cnaps", "partial pooling", "fold-in",
}  # fmt: skip
"""Rows, of each means of adaptation, whose engines are compared in every run of the tests; the others are slow."""
FAST = {"engines": ENGINES, "adapting": REPRESENTATIVES}
"""The rows of checks that take long; that adapting helps is also what the tests of each learner show."""

CHECKS = {
    f"{row_name}, {check_name}": pytest.param(
        check, marks=[pytest.mark.slow] * (row_name not in FAST.get(check_name, ZOO))
    )
    for row_name, row in ZOO.items()
    for check_name, check in learner_checks(row.make, exact=row.exact, steps=row.steps)
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_contract(check):
    check()


def test_rows_that_are_compared_in_every_run_exist():
    assert set(ZOO) >= ENGINES
