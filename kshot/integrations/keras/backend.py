"""Keras on its torch backend, which has to be chosen before Keras is imported."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

_REMEDY = (
    "set the environment variable KERAS_BACKEND=torch before Keras is imported for the first time, in Python by "
    "os.environ['KERAS_BACKEND'] = 'torch' above the first `import keras`, or import kshot.integrations.keras first"
)


def import_keras() -> ModuleType:
    """Import Keras on its torch backend, which is set if Keras is not yet imported and no other is.

    Raises:
        ImportError: Keras is not installed, or runs on another backend.
    """
    if "keras" not in sys.modules:
        if importlib.util.find_spec("keras") is None:
            raise ImportError("kshot.integrations.keras needs Keras 3: pip install 'kshot[keras]'")
        if os.environ.setdefault("KERAS_BACKEND", "torch") != "torch":
            raise ImportError(f"KERAS_BACKEND is {os.environ['KERAS_BACKEND']!r}, and kshot needs 'torch': {_REMEDY}")
    import keras

    version = getattr(keras, "__version__", "?")
    if not hasattr(keras, "StatelessScope"):
        raise ImportError(f"kshot.integrations.keras needs Keras 3, and {version} is installed: pip install 'keras>=3'")
    if keras.config.backend() != "torch":
        raise ImportError(f"Keras runs on the backend {keras.config.backend()!r}, and kshot needs 'torch': {_REMEDY}")
    return keras


keras: Any = import_keras()
"""The package `keras`, on its torch backend."""
