"""What pages of the documentation define, for tests that run it."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "huggingface.md"


@pytest.fixture(scope="session")
def lightning_page():
    """The names that the section on Lightning defines, without the training at its end."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    section = PAGE.read_text().partition("## Lightning")[2]
    code = re.search(r"```python\n(.*?)\nsource = ", section, re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, "huggingface.md", "exec"), names)
    return names
