"""What the examples in docstrings may use without saying so: torch, nn and kshot."""

import pytest
import torch

import kshot


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update(torch=torch, nn=torch.nn, kshot=kshot)
