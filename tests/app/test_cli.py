"""The command line from end to end, on runs of seconds."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from run_files import GLYPHS, SINUSOID

from kshot.app.folder import free_folder, run_folder
from kshot.training.checkpoint import flatten, load_state

SPEAKERS = """\
name: speakers
source: {kind: corpus, path: ., task: passage, pattern: "^(.+?):", length: 9, shots: 1, queries: 2,
         bad_rows: drop, split: {ratio: [0.5, 0.25, 0.25], exact: true}}
model: {kind: language_model, body: gru, width: 4}
learner: {kind: fomaml, inner_lr: 0.1}
train: {steps_per_round: 1, tasks_per_step: 1}
target: loss <= 99
budget: {rounds: 1}
evaluate: {num_val_tasks: 2, num_test_tasks: 2, shots: [1, 2]}
baselines: {names: []}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two finished runs: sine and glyphs."""
    from kshot.app.run import run
    from kshot.app.spec import parse_spec

    folder = tmp_path_factory.mktemp("runs")
    run(parse_spec(SINUSOID, "test"), folder / "sine")
    run(parse_spec(GLYPHS, "test"), folder / "glyphs")
    return folder


def test_a_run_reports_everything_that_it_promises(runs):
    report = json.loads((runs / "glyphs" / "report.json").read_text())
    assert report["outcome"] == "BUDGET_SPENT"
    assert [r["decision"]["action"] for r in report["rounds"]] == ["continue", "stop"]
    assert report["rounds"][1]["decision"]["reason"]
    for split, tasks in (("val", 3), ("test", 4)):
        figure = report[split]["accuracy"]
        assert 0 <= figure["mean"] <= 1
        assert figure["num_tasks"] == tasks
        assert figure["ci95"] is not None
    assert set(report["baselines"]) == {"scratch", "fine_tune", "pretrained_centroid", "centroid"}
    assert all(b["accuracy"]["num_tasks"] == 3 for b in report["baselines"].values())
    protocol = report["protocol"]
    assert protocol["inductive"] is True
    assert (protocol["ways"], protocol["shots"], protocol["queries"], protocol["seed"]) == (3, 1, 2, 0)
    assert len(protocol["episodes_sha256"]) == 64
    assert report["environment"]["torch"]
    assert set(report["paired"]) == set(report["baselines"])
    assert all(each["num_tasks"] == 3 and each["p_holm"] >= each["p"] for each in report["paired"].values())
    assert [each["shots"] for each in report["shots"]] == [1, 2, 5, 10], (
        "a class has 20 drawings, of which 2 are queries"
    )
    assert report["shots"][0]["metrics"]["accuracy"]["num_tasks"] == 4
    assert report["calibration"]["num_examples"] == 4 * 6
    assert report["cost"]["adapt_flops"] > report["cost"]["num_parameters"]
    assert len(report["worst_tasks"]) == 4
    table = list(csv.DictReader((runs / "glyphs" / "tasks.csv").read_text().splitlines()))
    figures = [float(row["accuracy"]) for row in table]
    assert np.mean(figures) == pytest.approx(report["test"]["accuracy"]["mean"])
    assert report["worst_tasks"][0]["accuracy"] == min(figures)
    assert [row["accuracy of centroid"] != "" for row in table] == [True, True, True, False]
    page = (runs / "glyphs" / "report.html").read_text()
    assert page.count("<img") >= 4
    assert 'src="http' not in page
    events = [json.loads(line) for line in (runs / "glyphs" / "events.jsonl").read_text().splitlines()]
    assert {"pretrain", "train", "decision", "finished"} <= {event["kind"] for event in events}
    assert yaml.safe_load((runs / "glyphs" / "spec.yaml").read_text())["train"]["clip"] == 10.0


def test_exit_code_tells_whether_the_target_was_met(kshot, tmp_path):
    (tmp_path / "met.yaml").write_text(SINUSOID)
    met = kshot("run", "met.yaml", "--out", "a")
    assert (met.code, "The target is met" in met.out) == (0, True)
    missed = kshot("run", "met.yaml", "--out", "b", "--set", "target=mse <= 0")
    assert (missed.code, "The budget was spent" in missed.out) == (1, True)
    assert "report: b/report.html" in missed.out


def test_a_run_that_diverges_keeps_its_report_and_checkpoint(kshot, tmp_path):
    (tmp_path / "bad.yaml").write_text(SINUSOID)
    result = kshot("run", "bad.yaml", "--out", "a", "--set", "learner.inner_lr=1e30")
    assert result.code == 1
    report = json.loads(Path("a/report.json").read_text())
    assert report["outcome"] == "DIVERGED"
    assert report["test"] is None
    assert Path("a/checkpoints/train/round-0001/weights.safetensors").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(kshot, tmp_path):
    """SIGKILL in the middle of training; the resumed run ends with the very weights of an unbroken one."""
    text = SINUSOID.replace("steps_per_round: 4", "steps_per_round: 20, checkpoint_seconds: 0.001").replace(
        "<= 1000", "<= 0"
    )
    (tmp_path / "run.yaml").write_text(text)
    kshot("run", "run.yaml", "--out", "whole")
    command = [sys.executable, "-m", "kshot.app", "run", "run.yaml", "--out", "cut"]
    killed = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    train = tmp_path / "cut" / "checkpoints" / "train"
    deadline = time.monotonic() + 60
    while not (train.exists() and any(train.glob("step-*"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "cut" / "report.json").exists()
    kshot("run", "run.yaml", "--out", "cut", "--resume")
    both = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut")]
    assert both[0]["test"] == both[1]["test"]
    assert [r["val"] for r in both[0]["rounds"]] == [r["val"] for r in both[1]["rounds"]]
    assert '"resumed"' in (tmp_path / "cut" / "events.jsonl").read_text()


def test_an_interrupt_says_how_to_go_on(kshot, tmp_path, monkeypatch):
    from kshot.sources.functions import Sinusoids

    stack = Sinusoids.stack

    def interrupted(source, split, indices):
        if split == "val" and list(tmp_path.glob("a/checkpoints/train/*")):
            raise KeyboardInterrupt
        return stack(source, split, indices)

    (tmp_path / "run.yaml").write_text(SINUSOID)
    monkeypatch.setattr(Sinusoids, "stack", interrupted)
    done = kshot("run", "run.yaml", "--out", "a")
    assert done.code == 130
    assert "Resume by: kshot run run.yaml --out a --resume" in done.err


@pytest.mark.slow
def test_an_interrupted_process_says_how_to_go_on(tmp_path):
    text = SINUSOID.replace("steps_per_round: 4", "steps_per_round: 100000")
    (tmp_path / "run.yaml").write_text(text)
    command = [sys.executable, "-m", "kshot.app", "run", "run.yaml", "--out", "a"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    events = tmp_path / "a" / "events.jsonl"
    deadline = time.monotonic() + 60
    while not (events.exists() and '"train", "time"' in events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Resume by: kshot run run.yaml --out a --resume" in said


# bad input ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_left_alone(kshot, runs, tmp_path):
    (tmp_path / "run.yaml").write_text(SINUSOID)
    before = {path: path.stat().st_mtime_ns for path in (runs / "sine").rglob("*")}
    result = kshot("run", "run.yaml", "--out", runs / "sine")
    assert result.code == 2
    assert "already holds a run: choose another --out, or resume it by --resume" in result.err
    assert {path: path.stat().st_mtime_ns for path in (runs / "sine").rglob("*")} == before


def test_resuming_another_run_file_is_refused(kshot, runs, tmp_path):
    (tmp_path / "run.yaml").write_text(SINUSOID)
    result = kshot("run", "run.yaml", "--out", runs / "sine", "--resume", "--set", "learner.inner_lr=0.5")
    assert result.code == 2
    assert "holds a run with another learner" in result.err
    assert kshot("run", "run.yaml", "--out", "nowhere", "--resume").err.endswith("holds no run to resume\n")
    assert "--resume needs the folder" in kshot("run", "run.yaml", "--resume").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "sinusoidal"], "no recipe 'sinusoidal': did you mean 'sinusoid'?"),
        (["run", "nowhere/run.yaml"], "there is no run file nowhere/run.yaml"),
        (
            ["run", "sinusoid", "--set", "train.outerlr=1"],
            "--set: unknown key 'train.outerlr': did you mean 'outer_lr'?",
        ),
        (["run", "sinusoid", "--set", "target=mse < 1"], "a target reads 'METRIC >= NUMBER'"),
        (["run", "sinusoid", "--set", "target=accuracy >= 1"], "these tasks report loss, mse"),
        (["run", "sinusoid", "--set", "device=tpu9"], "device 'tpu9' is not available"),
        (["run", "glyphs", "--set", "source.shots=19"], "has 20 examples, but 19 shots + 5 queries need 24"),
        (["run", "sinusoid", "--set", "model={kind: conv4}"], "model conv4 takes images"),
        (["evaluate", "."], "is no run folder: it holds no spec.yaml"),
        (["data", "check", "omniglott"], "omniglott"),
    ],
)
def test_bad_words_get_a_sentence_and_leave_nothing(kshot, tmp_path, words, message):
    result = kshot(*words)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SINUSOID.replace("steps: 2}", "stepz: 2}", 1),
            "run.yaml, line 4: unknown key 'learner.stepz': did you mean 'steps'?",
        ),
        (SINUSOID.replace("kind: mlp", "kind: mpl"), "run.yaml, line 3: model has no kind 'mpl': did you mean 'mlp'?"),
        (SINUSOID.replace("rounds: 2", "rounds: 0"), "run.yaml, line 7: budget.rounds: input should be greater than"),
        (SINUSOID.replace("target: mse <= 1000\n", ""), "run.yaml: the key 'target' is missing"),
        ("name: [", "run.yaml, line 2: this is not YAML"),
        ("- a list", "a run file holds keys and values"),
    ],
)
def test_a_wrong_run_file_names_key_line_and_the_nearest_right_one(kshot, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text + "\n" * text.endswith("["))
    result = kshot("run", "run.yaml")
    assert result.code == 2
    assert message in result.err


# using a run --------------------------------------------------------------------------------------------------------


def test_evaluate_prints_the_figures_of_the_report(kshot, runs):
    report = json.loads((runs / "sine" / "report.json").read_text())
    found = json.loads(kshot("evaluate", runs / "sine", "--tasks", 6, "--json").out)
    assert found["test"]["mse"]["mean"] == pytest.approx(report["test"]["mse"]["mean"])
    assert found["protocol"]["episodes_sha256"] == report["protocol"]["episodes_sha256"]
    assert "inductive, test tasks" in kshot("evaluate", runs / "sine", "--tasks", 2).out


def test_an_evaluation_of_its_own_has_a_report_and_refuses_other_episodes(kshot, runs, tmp_path):
    first = json.loads((runs / "sine" / "report.json").read_text())
    sha = first["protocol"]["episodes_sha256"]
    done = kshot("evaluate", runs / "sine", "--tasks", 6, "--out", "again", "--episodes-sha256", sha[:12])
    assert done.code == 0
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["test"]["mse"] == pytest.approx(first["test"]["mse"])
    assert set(report["baselines"]) == {"scratch", "support_mean"}
    assert (tmp_path / "again" / "report.html").stat().st_size > 10_000
    assert len((tmp_path / "again" / "tasks.csv").read_text().splitlines()) >= 7
    other = kshot("evaluate", runs / "sine", "--tasks", 5, "--episodes-sha256", sha)
    assert other.code == 2
    assert sha[:8] in other.err


def test_runs_are_compared_on_the_terminal_as_csv_and_as_a_page(kshot, runs, tmp_path):
    done = kshot("compare", runs / "sine", runs / "glyphs", "--csv", "board.csv", "--html", "board.html")
    assert done.code == 0
    assert "2 sets of episodes" in done.out
    assert len(list(csv.reader(io.StringIO((tmp_path / "board.csv").read_text())))) == 3
    page = (tmp_path / "board.html").read_text()
    assert "never ranked together" in page
    assert 'src="http' not in page
    refused = kshot("compare", tmp_path)
    assert (refused.code, "report.json" in refused.err) == (2, True)


def test_an_evaluation_without_baselines_says_so_and_nothing_is_written_over(kshot, runs, tmp_path):
    alone = kshot("evaluate", runs / "glyphs", "--tasks", 3, "--no-baselines", "--out", "alone")
    assert "calibration error" in alone.out
    report = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert report["baselines"] == {}
    assert "No baseline was evaluated" in (tmp_path / "alone" / "report.html").read_text()
    again = kshot("evaluate", runs / "glyphs", "--tasks", 3, "--out", "alone")
    assert (again.code, "alone is not empty" in again.err) == (2, True)
    inside = kshot("compare", runs / "glyphs", "--csv", runs / "glyphs" / "tasks.csv")
    assert (inside.code, "is inside a folder that is compared" in inside.err) == (2, True)


def save_image(path: Path, *, size=(28, 28), mode="L", value=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, value : value + 4] = 255
    Image.fromarray(pixels).convert(mode).save(path)


def test_adapting_to_a_folder_of_images_and_predicting(kshot, runs, tmp_path):
    for number, name in enumerate(["left", "right"]):
        save_image(tmp_path / "support" / name / "1.png", value=20 * number)
        save_image(tmp_path / "new" / f"{name}.png", value=20 * number + 1)
    adapted = kshot("adapt", runs / "glyphs", "--support", "support", "--out", "state.safetensors")
    assert "2 examples of 2 classes: left, right" in adapted.out
    predicted = kshot("predict", runs / "glyphs", "--state", "state.safetensors", "--inputs", "new")
    rows = list(csv.DictReader(io.StringIO(predicted.out)))
    assert [Path(row["path"]).stem for row in rows] == ["left", "right"]
    assert all(row["label"] in ("left", "right") for row in rows)
    assert all(float(row["p(left)"]) + float(row["p(right)"]) == pytest.approx(1, abs=2e-4) for row in rows)
    again = kshot("adapt", runs / "glyphs", "--support", "support", "--out", "state.safetensors")
    assert "never overwritten" in again.err
    other = kshot("predict", runs / "sine", "--state", "state.safetensors", "--inputs", "new")
    assert "was not adapted from the weights" in other.err


def test_adapting_to_a_table_of_paths_gives_the_same_state(kshot, runs, tmp_path):
    for number, name in enumerate(["a", "b"]):
        save_image(tmp_path / "support" / name / "1.png", value=9 * number)
    (tmp_path / "support" / "table.csv").write_text("path,label\na/1.png,a\nb/1.png,b\n")
    kshot("adapt", runs / "glyphs", "--support", "support", "--out", "s1")
    kshot("adapt", runs / "glyphs", "--support", "support/table.csv", "--out", "s2")
    (one, about_one), (two, about_two) = (load_state(Path(name)) for name in ("s1", "s2"))
    assert about_one == about_two
    assert {name: t.tolist() for name, t in flatten(one).items()} == {n: t.tolist() for n, t in flatten(two).items()}


def test_adapting_to_a_table_of_numbers_and_predicting(kshot, runs, tmp_path):
    (tmp_path / "support.csv").write_text("x,y\n" + "".join(f"{x},{np.sin(x)}\n" for x in range(5)))
    (tmp_path / "new.csv").write_text("x\n0.5\n1.5\n")
    assert "adapted to 5 examples" in kshot("adapt", runs / "sine", "--support", "support.csv", "--out", "s").out
    rows = list(csv.reader(io.StringIO(kshot("predict", runs / "sine", "--state", "s", "--inputs", "new.csv").out)))
    assert rows[0] == ["row", "prediction"]
    assert [row[0] for row in rows[1:]] == ["1", "2"]
    assert all(np.isfinite(float(row[1])) for row in rows[1:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no support"),
        (lambda p: p.mkdir(), "one folder per class"),
        (lambda p: save_image(p / "a" / "1.png"), "at least two classes, got 1: a"),
        (lambda p: [save_image(p / n / "1.png") for n in "abcd"], "tells 3 classes apart, the support holds 4"),
        (lambda p: [save_image(p / n / "1.png", size=(30, 28)) for n in "ab"], "30×28 L; this run takes 28×28 L: pass --resize"),  # noqa: E501
        (lambda p: [save_image(p / n / "1.png", mode="RGB") for n in "ab"], "28×28 RGB; this run takes 28×28 L"),
        (lambda p: [(p / n).mkdir(parents=True) or (p / n / "1.png").write_bytes(b"no image") for n in "ab"], "is not an image that can be read"),  # noqa: E501
        (lambda p: p.with_suffix(".csv").write_text("file\n1.png\n"), "has no column 'path'; it has 'file'"),
        (lambda p: p.with_suffix(".csv").write_text("path,label\nnone.png,a\nnone.png,b\n"), "there is no image"),
        (lambda p: p.with_suffix(".csv").write_bytes(b"\xff\xfe\x00\x00"), "support.csv is empty"),
        (lambda p: p.write_text("path,label\n"), "the suffix '' is not known"),
    ],
)  # fmt: skip
def test_a_support_that_is_wrong_gets_a_sentence(kshot, runs, tmp_path, make, message):
    make(tmp_path / "support")
    support = "support.csv" if Path("support.csv").exists() else "support"
    result = kshot("adapt", runs / "glyphs", "--support", support, "--out", "s")
    assert result.code == 2
    assert message in result.err
    assert not Path("s").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n,3\n", "NaN or infinite, the first in row 1"),
        ("x,y\n1,two\n", "column 'y': 'two' is not a number"),
        ("x\n1\n", "has 1 columns; this run takes 1 of inputs and then 1 of targets"),
        ("", "is empty"),
    ],
)
def test_a_table_that_is_wrong_gets_a_sentence(kshot, runs, tmp_path, text, message):
    import re

    (tmp_path / "support.csv").write_text(text)
    result = kshot("adapt", runs / "sine", "--support", "support.csv", "--out", "s")
    assert result.code == 2
    assert re.search(message, result.err)


def test_images_of_another_size_and_mode_can_be_converted(kshot, runs, tmp_path):
    for number, name in enumerate("ab"):
        save_image(tmp_path / "support" / name / "1.png", size=(60, 40), mode="RGBA", value=9 * number)
    result = kshot("adapt", runs / "glyphs", "--support", "support", "--out", "s", "--resize", "--invert")
    assert result.code == 0
    assert Path("s").exists()


def test_recipes_and_data_are_listed(kshot):
    recipes = kshot("recipes").out
    assert all(name in recipes for name in ("glyphs", "sinusoid", "omniglot-5w1s"))
    assert "built in" in kshot("data", "list").out
    assert "without end" in kshot("data", "check", "sinusoids").out


@pytest.mark.slow
def test_data_check_counts_omniglot(kshot, omniglot_data):
    lines = kshot("data", "check", "omniglot").out.splitlines()
    assert lines[0].split() == ["train", "4,112", "classes,", "82,240", "drawings"]


def test_run_folders_are_counted_up(tmp_path):
    assert free_folder(tmp_path, "a").name == "a"
    assert free_folder(tmp_path, "a").name == "a-2"


def test_a_new_run_folder_that_stays_empty_is_removed_and_one_that_was_named_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "named"
    named.mkdir()
    for out in (None, named):
        with pytest.raises(ValueError, match="refused"), run_folder(out, "a"):
            raise ValueError("refused")
    assert list(tmp_path.iterdir()) == [named]
    for name in ("a", "a-2"):
        with run_folder(None, "a") as folder:
            (folder / "spec.yaml").touch()
        assert folder == Path("runs") / name
    with run_folder(None, "a") as folder:
        pass
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a", "a-2"]


def test_bars_are_drawn_on_a_terminal_only(runs):
    from rich.console import Console

    from kshot.app.progress import Display
    from kshot.training.fit import Progress

    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        with Display(console, "mse") as display:
            display.step(Progress(3, 0.25, 12.0), 10)
        shown[terminal] = console.file.getvalue()
    assert all(word in shown[True] for word in ("3/10", "12.0 steps/s", "loss 0.250"))
    assert shown[False] == ""


def test_what_a_source_warns_of_is_said_once_in_a_run(kshot, tmp_path):
    (tmp_path / "one.txt").write_text("".join(f"{who}: {'and so on ' * 9}\n" for who in "abcdefghijkl"))
    (tmp_path / "two.txt").write_bytes("a: größer".encode("latin-1"))
    (tmp_path / "run.yaml").write_text(SPEAKERS)
    result = kshot("run", "run.yaml", "--out", "out")
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["shots"]) == 2, "the source is made twice"
    assert (result.out + result.err).count("left out: ") == 1


def test_help_comes_without_torch():
    code = "import sys, kshot.app.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'pydantic')))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_tasks_frozen_from_a_run_file_can_be_run_on_and_scored(kshot, runs, tmp_path):
    (tmp_path / "run.yaml").write_text(SINUSOID)
    for split, tasks in (("train", 4), ("val", 4), ("test", 6)):
        froze = kshot("data", "freeze", "run.yaml", "--split", split, "--tasks", tasks, "--out", f"{split}.safetensors")
        assert f"{split}.safetensors: {tasks} {split} tasks, episodes " in froze.out
    hashed = froze.out.split()[-1]
    again = kshot("data", "freeze", "run.yaml", "--out", "test.safetensors")
    assert (again.code, "test.safetensors exists and is never written over" in again.err) == (2, True)
    files = "[train.safetensors, val.safetensors, test.safetensors]"
    run = kshot("run", "run.yaml", "--out", "frozen", "--set", f"source={{kind: episodes, path: {files}}}")
    assert run.code == 0
    report = json.loads(Path("frozen/report.json").read_text())
    before = json.loads((runs / "sine" / "report.json").read_text())
    assert report["protocol"]["episodes_sha256"] == before["protocol"]["episodes_sha256"] == hashed
    assert report["baselines"]["support_mean"] == before["baselines"]["support_mean"]
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.safetensors").unlink()
    (tmp_path / "new.csv").write_text("x,y\n0.1,1.0\n0.5,2.0\n")
    assert kshot("adapt", "frozen", "--support", "new.csv", "--out", "new.safetensors").code == 0, "without its data"


@pytest.mark.slow
def test_a_run_on_a_mixture_of_ranged_tasks(kshot, tmp_path):
    sources = "{a: {kind: glyphs, ways: [2, 3], shots: [1, 3], queries: 2, imbalance: random}, "
    sources += "b: {kind: glyphs, ways: [2, 3], shots: [1, 3], queries: 2}}"
    text = GLYPHS.replace("{kind: glyphs, ways: 3, queries: 2}", f"{{kind: mixture, sources: {sources}}}")
    (tmp_path / "run.yaml").write_text(text)
    assert kshot("run", "run.yaml", "--out", "run", "--set", "budget.rounds=1").code == 1
    report = json.loads(Path("run/report.json").read_text())
    assert report["protocol"]["ways"] == [2, 3]
    assert report["protocol"]["share"]["test"] == {"a": 0.5, "b": 0.5}
    assert {"scratch", "fine_tune", "pretrained_centroid", "centroid"} == set(report["baselines"])


@pytest.mark.slow
def test_proto_maml_is_a_learner_of_run_files(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(GLYPHS)
    learner = "learner={kind: proto_maml, inner_lr: 0.1}"
    assert kshot("run", "run.yaml", "--out", "run", "--set", learner, "--set", "budget.rounds=1").code == 1


def leaking(monkeypatch):
    """Sine waves whose queries are the support's own points."""
    from kshot.sources.functions import Sinusoids

    honest = Sinusoids.stack
    monkeypatch.setattr(
        Sinusoids, "stack", lambda *arguments: (task := honest(*arguments))._replace(query=task.support)
    )


def test_a_failed_audit_is_seen_everywhere_and_has_an_exit_code(kshot, tmp_path, monkeypatch):
    leaking(monkeypatch)
    (tmp_path / "met.yaml").write_text(SINUSOID)
    done = kshot("run", "met.yaml", "--out", "a")
    assert done.code == 3
    assert "FAILED support and query: " in done.out
    assert "is not to be trusted and supports no claim" in done.out
    report = json.loads(Path("a/report.json").read_text())
    assert report["trusted"] is False
    assert [a["name"] for a in report["audits"] if a["result"] == "FAILED"] == ["support and query"]
    page = Path("a/report.html").read_text()
    assert 'bad">not to be trusted' in page
    assert "beats the best baseline" not in page
    again = kshot("evaluate", "a", "--tasks", 8)
    assert (again.code, "FAILED support and query" in again.out) == (3, True)
    assert json.loads(kshot("evaluate", "a", "--tasks", 8, "--json").out)["trusted"] is False


def test_a_run_is_audited_down_to_who_read_the_test_split(kshot, runs):
    for folder in ("sine", "glyphs"):
        report = json.loads((runs / folder / "report.json").read_text())
        results = {audit["name"]: audit["result"] for audit in report["audits"]}
        assert report["trusted"] is True
        assert results["test reads"] == results["one checkpoint"] == "PASSED"
        again = kshot("evaluate", runs / folder, "--tasks", 4, "--json")
        assert again.code == 0
        results = {audit["name"]: audit["result"] for audit in json.loads(again.out)["audits"]}
        assert results["test reads"] == results["one checkpoint"] == "PASSED"
    events = [json.loads(line) for line in (runs / "glyphs" / "events.jsonl").read_text().splitlines()]
    reads = [(event["phase"], event["split"]) for event in events if event["kind"] == "read"]
    assert reads[0] == ("pretraining", "train")
    assert {("rounds", "train"), ("rounds", "val"), ("tuning", "val"), ("evaluation", "test")} <= set(reads)
    assert {phase for phase, split in reads if split == "test"} == {"evaluation"}
