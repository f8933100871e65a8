"""Runs on the same data are counted by what they differ in; and tests between trainings are seen in a run's log."""

from kshot.app.folder import RunFolder, logged_reads
from kshot.app.spec import parse_spec
from kshot.app.tried import tried
from kshot.files import append_line, write_json

RUN = """\
name: {name}
source: {{kind: glyphs, ways: {ways}, queries: 2}}
model: {{kind: conv4, channels: 4}}
learner: {{kind: {learner}}}
target: {target} >= 0.9
seed: {seed}
task_seed: {task_seed}
"""


def make(folder, tested=True, **options):
    given = {"name": "a", "ways": 3, "learner": "protonet", "target": "accuracy", "seed": 0, "task_seed": 0} | options
    spec = parse_spec(RUN.format(**given), "run.yaml")
    folder.mkdir(parents=True)
    RunFolder(folder).spec.write_text(spec.to_yaml())
    if tested:
        write_json(RunFolder(folder).report, {"test": {"accuracy": {"mean": 0.5}}})
    return spec


def test_siblings_on_the_same_data_are_counted(tmp_path):
    spec = make(tmp_path / "a", tested=False)
    assert tried(tmp_path / "a", spec) == {
        "runs": 1, "tested": 0, "seeds": 1, "task_seeds": 1, "configurations": 1,
    }  # fmt: skip
    make(tmp_path / "a-2", seed=1)
    make(tmp_path / "a-3", seed=1, task_seed=5)
    make(tmp_path / "b", name="b", learner="r2d2", tested=False)
    make(tmp_path / "c" / "seed-7", seed=7, ways=5)
    make(tmp_path / "other", target="loss")  # another metric
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spec.yaml").write_text("name: [")
    assert tried(tmp_path / "a", spec) == {
        "runs": 5, "tested": 3, "seeds": 3, "task_seeds": 2, "configurations": 3,
    }  # fmt: skip
    seven = RunFolder(tmp_path / "c" / "seed-7")
    assert tried(seven.path, parse_spec(seven.spec.read_text(), ""))["runs"] == 5


def test_training_after_a_test_counts_as_a_read_of_it(tmp_path):
    def log(*events):
        (tmp_path / "events.jsonl").unlink(missing_ok=True)
        after = ""
        for event in events:
            after = append_line(tmp_path / "events.jsonl", event, after)
        return logged_reads(tmp_path / "events.jsonl")

    train, decision = {"kind": "train", "step": 1}, {"kind": "decision"}
    reads = [{"kind": "read", "phase": phase, "split": split} for phase, split in (
        ("rounds", "train"), ("rounds", "val"), ("evaluation", "test"),
    )]  # fmt: skip
    honest = log(*reads[:2], train, decision, train, reads[2])
    assert honest == [("rounds", "train"), ("rounds", "val"), ("evaluation", "test")]
    again = log(*reads[:2], train, decision, reads[2], {"kind": "resumed"}, train, train, decision)
    assert again == [*honest, ("training after its evaluation", "test")]


def test_a_damaged_line_of_the_log_may_have_been_a_read_of_the_test(tmp_path):
    path, after = tmp_path / "events.jsonl", ""
    for split in ("train", "val", "test"):
        after = append_line(path, {"kind": "read", "phase": "rounds", "split": split}, after)
    content = path.read_text()
    path.write_text(content.replace('"test"', '"tesu"'))
    assert logged_reads(path) == [
        ("rounds", "train"), ("rounds", "val"), ("a damaged line of events.jsonl", "test"),
    ]  # fmt: skip
    path.write_text(content[:-9])
    assert logged_reads(path) == [("rounds", "train"), ("rounds", "val")]
