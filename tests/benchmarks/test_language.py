"""What benchmarks/language.py makes of figures, and that its cells are of the tasks that they say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from kshot.app.spec import load_spec

PATH = Path(__file__).parents[2] / "benchmarks" / "language.py"


@pytest.fixture
def language(monkeypatch):
    spec = importlib.util.spec_from_file_location("language", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "language", module)
    spec.loader.exec_module(module)
    return module


def figure(mean):
    return {"mean": mean, "ci95": 0.0012, "num_tasks": 20}


def test_figures_become_tables_between_the_marks(language, tmp_path, monkeypatch):
    reject = {"auroc": figure(0.98), "fpr95": figure(0.07)}
    cell = {"ours": figure(0.97), "centroid": figure(0.95), "difference": figure(0.02), "rejection": reject}
    made = {"cells": {cell_.name: cell for cell_ in language.CELLS}, "classes": {"test": 50}}
    folder = tmp_path / "clinc-5w1s" / "seed-1"
    folder.mkdir(parents=True)
    (folder / language.SCORES).write_text(json.dumps(made))
    table = {"none": {"a_b": figure(0.9), "c": figure(0.8)}, "a_b": {"c": figure(0.85)}, "c": {"a_b": figure(0.95)}}
    (tmp_path / language.TRANSFER).write_text(json.dumps({"table": table, "tasks": 20}))
    cells = dict.fromkeys(("5-way 1-shot", "5-way 5-shot"), cell)
    found = {"cells": cells, "training_seconds": 31.4, "seconds": 99.9}
    (tmp_path / language.LEARNERS).write_text(json.dumps({"maml": found}))
    results = tmp_path / "RESULTS.md"
    results.write_text(f"before\n{language.BEGIN}\nold\n{language.END}\nafter\n")
    monkeypatch.setattr(language, "RESULTS", results)
    language.main(["--out", str(tmp_path), "--write"])
    text = results.read_text()
    name = "| intents | all 50 at once, 5-shot | tuned, seed 1 |"
    assert f"{name} 97.00 ± 0.12 | 95.00 ± 0.12 | 2.00 ± 0.12 | 0.980 | 0.070 |" in text
    assert "| a b | – | 85.0 | +5.0 |" in text
    assert "| none | 90.0 | 80.0 | +0.0 |" in text
    assert "| none: nearest class mean, frozen | 95.00 ± 0.12 | – | 95.00 ± 0.12 | – | – | – |" in text
    assert "| MAML | 97.00 ± 0.12 | 2.00 ± 0.12 | 97.00 ± 0.12 | 2.00 ± 0.12 | 31 | 100 |" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text


@pytest.mark.parametrize("recipe", ["clinc-5w1s", "clinc-domain"])
def test_cells_change_the_sizes_alone_and_split_as_the_recipe_does(language, recipe, shared_data, monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(shared_data))
    spec = load_spec(recipe, ["source.features=words", "source.encoder=null", "source.width=16"])
    counts = {"clinc-5w1s": (50, 50, 50), "clinc-domain": (60, 45, 45)}[recipe]
    classes = dict(zip(("train", "val", "test"), counts))
    source = language.source_for(spec, language.CELLS[2], classes)
    about = source.describe()
    assert about["classes"] == classes
    assert (about["ways"], about["shots"], about["out_of_scope"]) == (counts[2], 5, {"val": 200, "test": 1000})
    assert source.task("val", 0).query.targets.shape == (15 * counts[2], counts[2])
    assert not set(source.class_names["train"]) & set(source.class_names["test"])


def test_learners_train_lora_alone_and_are_tuned_without_a_look_at_the_test_split(language, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    from models.test_encoders import WORDS, make_folder

    folder, path = make_folder(tmp_path / "encoder"), tmp_path / "intents.json"
    pairs = [[f"{WORDS[k % 8]} {' '.join(f'{k:02}{n:02}')}", f"intent {k}"] for k in range(15) for n in range(21)]
    path.write_text(json.dumps([*pairs, ["it", "oos"], ["please it", "oos"]]))
    spec = load_spec(
        "clinc-5w1s",
        [f"source.path={path}", f"source.encoder={folder}", "source.domain=domain", "source.out_of_scope_label=oos"],
    )
    monkeypatch.setattr(language, "ENCODER", str(folder))
    monkeypatch.setattr(language, "load_spec", lambda recipe: spec)
    read, evaluate = set(), language.evaluate
    monkeypatch.setattr(
        language, "evaluate", lambda *args, split, **options: read.add(split) or evaluate(*args, split=split, **options)
    )
    options = ["--out", str(tmp_path), "--split", "val", "--tasks", "2", "--steps", "1"]
    language.main(["learners", *options, "--only", "anil", "r2d2"])
    made = json.loads((tmp_path / language.LEARNERS).read_text())
    assert read == {"val"}
    assert {name: list(found["cells"]) for name, found in made.items()} == {
        name: ["5-way 1-shot", "5-way 5-shot"] for name in ("anil", "r2d2")
    }
    for method in language.METHODS.values():
        before, after = (dict(language.tuned(method, spec, steps, 0)[0].named_parameters()) for steps in (0, 1))
        moved = {name for name, parameter in after.items() if not parameter.equal(before[name])}
        assert any("lora_B" in name for name in moved), method
        assert all("lora_" in name or name.startswith(("head.", "model.head.")) for name in moved), method
