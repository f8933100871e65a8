"""The public names: the core at the top, everything else in its package, all importable by attribute."""

import importlib
import importlib.metadata
from types import ModuleType

import pytest

import kshot

PACKAGES = [
    "data",
    "deciding",
    "evaluation",
    "inner",
    "learners",
    "models",
    "objectives",
    "sources",
    "tasks",
    "testing",
    "training",
]
CORE = [
    "Batch",
    "Budget",
    "Learner",
    "Objective",
    "Task",
    "TaskSource",
    "auto",
    "evaluate",
    "fit",
    "load",
    "load_state",
    "maml",
    "one_hot",
    "pretrain",
    "protonet",
]
CORE += ["run", "run_until", "save_state", "sweep"]


def test_the_top_offers_the_core_and_the_packages():
    assert sorted(kshot.__all__) == sorted(CORE + PACKAGES)
    assert all(isinstance(getattr(kshot, name), ModuleType) for name in PACKAGES)
    assert all(callable(getattr(kshot, name)) for name in CORE)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_offers_what_it_says_and_no_module_in_its_place(package):
    module = importlib.import_module(f"kshot.{package}")
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType) or package == "data", name


def test_the_version_is_that_of_the_package():
    assert kshot.__version__ == importlib.metadata.version("kshot")
    with pytest.raises(AttributeError, match="no_such_name"):
        kshot.no_such_name  # noqa: B018
