"""Texts whose classes have telling names: every second text holds the words of its class, the others one of them."""

import json
from pathlib import Path

import numpy as np

NAMES = [f"{first}_{second}" for first in ("open", "close", "find") for second in ("account", "card", "bill", "loan")]
FILLER = ["please", "could", "you", "now", "would", "like", "to", "my", "the", "a", "today", "quickly"]


def write_named_texts(folder: Path) -> Path:
    """Write 12 texts of each class into a JSON file of pairs."""
    random = np.random.default_rng(0)
    rows = []
    for name in NAMES:
        for number in range(12):
            words = name.split("_") if number % 2 else [random.choice(name.split("_"))]
            rows.append([" ".join(random.permutation([*words, *random.choice(FILLER, 3)])) + f" {number}", name])
    path = folder / "texts.json"
    path.write_text(json.dumps(rows))
    return path
