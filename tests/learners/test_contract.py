"""What every learner promises, one row of the zoo at a time; `kshot.testing` holds the checks."""

import pytest
from zoo import ZOO

from kshot.testing import learner_checks

CHECKS = {
    f"{row_name}, {check_name}": check
    for row_name, row in ZOO.items()
    for check_name, check in learner_checks(row.make, exact=row.exact, steps=row.steps)
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_contract(check):
    check()
