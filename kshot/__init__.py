"""kshot: meta-learning for real tasks. `__init__.pyi` lists the public names; each is imported at its first use."""

from typing import Any

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    return _public(name)
