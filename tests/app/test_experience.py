"""`kshot experience` from the command line."""

import json
import subprocess
import sys

import pytest

from kshot.deciding.experience import Cost, Experience, Figure, Trial, shipped_trials


@pytest.fixture
def database(tmp_path, monkeypatch):
    """A database of three trials, which is the default one."""
    file = tmp_path / "known" / "mine.sqlite"
    monkeypatch.setenv("KSHOT_EXPERIENCE", str(file))
    for number, (kind, learner) in enumerate([("regression", "maml"), ("regression", "r2d2"), ("texts", "protonet")]):
        trial = Trial(
            {"kind": kind}, {"learner": {"kind": learner}}, [Figure(1, 0.5)], 0.4, Cost(1.0), data_set="sines",
            created=f"2026-0{number + 1}-01T00:00:00+00:00",
        )  # fmt: skip
        Experience().add(trial)
    return file


def own():
    return Experience().trials(shipped=False)


def test_show_counts_trials_by_kind_and_learner(kshot, database):
    said = kshot("experience", "show", "--no-shipped").out.splitlines()
    assert said == [
        f"{database}: 3 trials",
        "regression: 2 trials on 1 data sets, the latest of 2026-02-01; maml 1, r2d2 1",
        "texts: 1 trials on 1 data sets, the latest of 2026-03-01; protonet 1",
    ]
    assert f"and {len(shipped_trials()):,} that come with kshot" in kshot("experience", "show").out
    lines = kshot("experience", "show", "--no-shipped", "--kind", "texts", "--json").out.splitlines()
    assert [Trial.from_json(json.loads(line)) for line in lines] == own()[2:]


def test_export_import_and_forget(kshot, database, tmp_path):
    assert "3 trials" in kshot("experience", "export", "mine.jsonl.xz").out
    refused = kshot("experience", "export", "mine.jsonl.xz")
    assert refused.code == 2
    assert "never written over" in refused.err
    other = ("--database", tmp_path / "other.sqlite")
    assert "3 new trials of 3" in kshot("experience", "import", "mine.jsonl.xz", *other).out
    assert "0 new trials of 3" in kshot("experience", "import", "mine.jsonl.xz", *other).out
    assert "1 trials deleted" in kshot("experience", "forget", "--kind", "regression", "--before", "2026-01-15").out
    assert len(own()) == 2
    assert "2 trials deleted" in kshot("experience", "forget", "--all").out
    assert own() == []
    assert "1 new trials" not in kshot("experience", "import", "mine.jsonl.xz").out
    assert len(own()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["forget"], "name the trials to forget"),
        (["forget", "--all", "--kind", "texts"], "name the trials to forget"),
        (["forget", "--before", "lately"], "--before is a date"),
        (["import", "missing.jsonl"], "No such file"),
        (["import", "trials.csv"], ".jsonl.gz"),
        (["export", "trials.csv"], ".jsonl.gz"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(kshot, database, words, said):
    result = kshot("experience", *words)
    assert result.code == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1
    assert len(own()) == 3


def test_lines_that_are_no_trial_are_named_and_the_others_added(kshot, database, tmp_path):
    kshot("experience", "export", "mine.jsonl")
    file = tmp_path / "mine.jsonl"
    file.write_text("\x1b[2J\n" + file.read_text())
    kshot("experience", "forget", "--all")
    result = kshot("experience", "import", "mine.jsonl")
    assert result.code == 2
    assert "mine.jsonl, line 1 is left out" in result.err
    assert "\x1b" not in result.err
    assert len(own()) == 3


def test_a_damaged_database_is_said_by_every_command_and_moved_aside_by_one(kshot, database, caplog):
    database.write_bytes(b"something else" * 100)
    for words in (["show"], ["export", "empty.jsonl"], ["forget", "--kind", "texts"]):
        assert kshot("experience", *words).code == 2
        assert "is damaged" in caplog.text
        caplog.clear()
    result = kshot("experience", "forget", "--all")
    assert result.code == 0
    assert "is now" in caplog.text
    assert [path.read_bytes() for path in database.parent.glob("*.aside-*")] == [b"something else" * 100]
    assert kshot("experience", "show").code == 0


def test_help_needs_neither_torch_nor_sqlalchemy():
    code = (
        "import sys; sys.argv = ['kshot', 'experience', '--help']\n"
        "from kshot.app.cli import app\n"
        "try: app()\n"
        "finally: sys.exit(int(bool({'torch', 'sqlalchemy', 'numpy'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "never data" in " ".join(done.stdout.split()).replace("│", "")


RUN = """\
name: secret-of-mine
about: nobody's business
source: {kind: sinusoids, shots: 5}
model: {kind: mlp, hidden: [4]}
learner: {kind: maml, inner_lr: 0.01}
train: {steps_per_round: 1, tasks_per_step: 1, mode: loop}
target: mse <= 0.001
budget: {rounds: 2}
evaluate: {num_val_tasks: 3, num_test_tasks: 3, shots: []}
baselines: {names: []}
"""


def test_a_run_adds_a_trial_with_the_figure_of_each_round(kshot, database, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    assert kshot("run", "run.yaml", "--out", "out").code == 1
    (trial,) = [each for each in own() if each.plan["learner"]["kind"] == "maml" and each.kind == "numbers"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(f.seconds, f.value) for f in trial.figures] == [
        (each["seconds"], pytest.approx(each["val"]["mse"]["mean"])) for each in report["rounds"]
    ]
    assert trial.plan["model"]["hidden"] == [4]
    assert trial.cost.parameters == 13
    assert trial.descriptors["metric"] == "mse"
    assert not {"secret-of-mine", "nobody's business"} & set(json.dumps(trial.to_json()).split('"'))
