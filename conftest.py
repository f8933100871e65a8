"""What the examples in docstrings may use without saying so: torch and kshot."""

import pytest
import torch

import kshot


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update(torch=torch, kshot=kshot)
