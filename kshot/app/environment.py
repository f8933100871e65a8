"""Versions and the machine, which reports state."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions and machine, for the reproduction of figures."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "pillow", "matplotlib")},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerator": str(torch.accelerator.current_accelerator() or "none"),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that kshot is imported from, if any."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
