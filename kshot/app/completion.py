"""Values that the shell offers for arguments. Nothing heavy is imported, since the shell waits."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path


def recipe_names(incomplete: str) -> list[str]:
    """Names of recipes.

    Example:
        >>> recipe_names("sin")
        ['sinusoid']
    """
    files = (resources.files("kshot") / "app" / "recipes").iterdir()
    return sorted(name for file in files if (name := file.name.removesuffix(".yaml")).startswith(incomplete))


def run_files(incomplete: str) -> list[str]:
    """Names of recipes, and run files in the working directory. Where none fits, the shell offers paths."""
    here = [path.name for pattern in ("*.yaml", "*.yml") for path in Path().glob(pattern)]
    return [*recipe_names(incomplete), *sorted(name for name in here if name.startswith(incomplete))]


def data_sets(incomplete: str) -> list[str]:
    """Names of known data sets.

    Example:
        >>> data_sets("omni")
        ['omniglot']
    """
    catalogue = resources.files("kshot") / "data" / "library" / "catalogue.yaml"
    names = re.findall(r"^(\w[\w-]*):", catalogue.read_text(encoding="utf-8"), re.MULTILINE)
    return sorted(name for name in names if name.startswith(incomplete))


def run_files_and_data_sets(incomplete: str) -> list[str]:
    """What `run_files` and `data_sets` offer."""
    return [*run_files(incomplete), *data_sets(incomplete)]
