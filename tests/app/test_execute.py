"""`kshot.run` in Python: data in memory, a report that shows itself, and a learner for new data."""

import numpy as np
import polars as pl
import pytest

import kshot
from kshot.app.execute import execute
from kshot.app.in_memory import as_text
from kshot.app.spec import load_spec


def shops(count=40, rows=12, seed=0):
    random = np.random.default_rng(seed)
    shop = np.repeat(np.arange(count), rows)
    visitors = random.uniform(0, 10, count * rows)
    slope = random.normal(2, 1, count)[shop]
    sales = 5 + slope * visitors + random.normal(0, 0.1, count * rows)
    return {"shop": shop, "visitors": visitors, "sales": sales}


RUN = {
    "learner": {"kind": "partial_pooling"},
    "target": "mse <= 100",
    "budget": {"rounds": 1},
    "evaluate": {"num_val_tasks": 5, "num_test_tasks": 5, "shots": []},
    "baselines": {"names": []},
}


def test_a_frame_is_meta_trained_on_and_predicts_for_a_new_group(tmp_path, monkeypatch):
    source = {
        "kind": "table",
        "path": pl.DataFrame(shops()),
        "group": "shop",
        "target": "sales",
        "shots": 4,
        "queries": 6,
    }
    report = kshot.run({"source": source, **RUN}, tmp_path / "run")
    assert report["outcome"] == "TARGET_MET"
    assert report.folder == tmp_path / "run"
    assert "report.html" in str(report)
    assert f"{report['test']['mse']['mean']:.3g}"[:3] in str(report)
    in_terminal = str(report)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(report) == in_terminal  # and not an output of the cell
    shown = report._repr_html_()
    assert shown.count("<table>") == 1
    assert "partial_pooling" in shown
    new = {"visitors": np.array([1.0, 4.0, 6.0, 9.0]), "sales": 5 + 3.5 * np.array([1.0, 4.0, 6.0, 9.0])}
    run = report.trained
    adapted = run.adapt(pl.DataFrame(new))
    predicted = run.predict(adapted, {"visitors": [2.0, 8.0]})
    assert predicted["sales"] == pytest.approx([12.0, 33.0], abs=0.5)
    pl.DataFrame({"visitors": [2.0, 8.0]}).write_csv(tmp_path / "next.csv")
    assert run.predict(adapted, tmp_path / "next.csv") == predicted
    assert run.predict(adapted, [tmp_path / "next.csv"]) == predicted


def test_a_run_file_of_values_names_what_is_in_memory_and_refuses_other_objects():
    source = kshot.sources.sinusoids()
    assert "given" in as_text({"source": source})
    text = as_text({"source": {"kind": "table", "path": shops()}, "seed": np.int64(3), "evaluate": {"folds": None}})
    assert "path: memory:" in text
    assert "seed: 3" in text
    assert as_text({"source": {"kind": "mixture", "sources": {"a": {"path": shops()}}}}).count("memory:") == 1
    with pytest.raises(ValueError, match="this one has a Sinusoids"):
        as_text({"learner": source})


def test_seeds_and_folds_are_not_combined(tmp_path):
    spec = load_spec("sinusoid", ["evaluate.folds=3"])
    with pytest.raises(ValueError, match="not combined"):
        execute(spec, tmp_path / "run", seeds=[0, 1])
    with pytest.raises(ValueError, match="for one run"):
        execute(load_spec("sinusoid"), tmp_path / "run", seeds=[0, 1], init_from=tmp_path)
    with pytest.raises(ValueError, match="the folder of the run"):
        kshot.run("sinusoid", resume=True)
