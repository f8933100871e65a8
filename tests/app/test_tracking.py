"""`track` of a run file: each library has what the log of the run says, once, also where the run was resumed."""

import json
import struct
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from app.signalling import PLACE, SENT
from app.trackers import InMemory
from run_files import SINUSOID

from kshot.app import cli
from kshot.app.build import build_tracker
from kshot.app.schema import kinds
from kshot.app.spec import parse_spec
from kshot.app.tracking import follow
from kshot.app.tracking.follow import Tracking
from kshot.deciding.decisions import EventLog

RUN = SINUSOID.replace("kind: sinusoids", "kind: app.signalling:sinusoids").replace("round: 4", "round: 15")
RUN = RUN.replace("mse <= 1000", "mse <= 1.0e-4") + "pretrain: {steps: 20, batch: 20}\n"
BLOCK = 2**15
SIGNAL_AT = "train 46-47"  # in step 23, the eighth of the second round
INSTALLED = [name for name in ("tensorboard", "mlflow", "wandb") if find_spec(name)]


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(library not in INSTALLED, reason=f"{library} is not installed; the extra 'track' has it")


def run(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kshot", "run", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return stop.value.code or 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was stopped in its second round, and resumed with another target, with all trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    options = {"mlflow": {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": "tests"}}
    parts = [{"kind": name, **options.get(name, {})} for name in INSTALLED]
    (folder / "run.yaml").write_text(f"{RUN}track: {json.dumps(['app.trackers:in_memory', *parts])}\n")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these libraries and what they use
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv(PLACE, SIGNAL_AT)
        patch.setenv(SENT, str(folder / "sent"))
        patch.chdir(folder)
        assert run("run.yaml", "--out", "tiny") == 143
        assert run("run.yaml", "--out", "tiny", "--resume", "--set", "target=mse <= 2.0e-4") == 1
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """The points of each metric, as the event log has them, those of steps that were taken again once."""
    points: dict[str, dict[int, float]] = {}
    for line in (folder / "tiny" / "events.jsonl").read_text().splitlines():
        if (found := follow._figures(json.loads(line))) is not None:
            for name, value in found[1].items():
                points.setdefault(name, {}).setdefault(found[0], value)
    report = json.loads((folder / "tiny" / "report.json").read_text())
    points["test/mse"] = {30: report["test"]["mse"]["mean"]}
    points["baselines/support_mean/mse"] = {30: report["baselines"]["support_mean"]["mse"]["mean"]}
    assert len(points["train/loss"]) >= 3
    assert list(points["pretrain/loss"]) == [10, 20]
    assert list(points["val/mse"]) == [15, 30]
    return points


def check(found: dict[str, list[tuple[int, float]]], expected: dict[str, dict[int, float]]) -> None:
    """The steps and values are the expected ones, in order and once each."""
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == list(points), name
        assert [value for _, value in found[name]] == pytest.approx(list(points.values()), rel=1e-6, nan_ok=True), name


def test_any_tracker_gets_each_point_once_and_the_run_file_and_the_report(folder, expected):
    tracker = InMemory.runs["memory of tiny"]
    found: dict[str, list] = {}
    for name, step, value in tracker.points:
        found.setdefault(name, []).append((step, value))
    check(found, expected)
    assert "rounds" in found["figures"][0][1]
    assert tracker.closed == [False, True]
    assert [values["target"] for values in tracker.known] == ["mse <= 1.0e-4", "mse <= 2.0e-4"]
    assert tracker.known[0]["learner.inner_lr"] == 0.01


@needs("tensorboard")
def test_tensorboard(folder, expected):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tiny" / "tensorboard"))
    events.Reload()
    check({name: [(p.step, p.value) for p in events.Scalars(name)] for name in events.Tags()["scalars"]}, expected)
    assert "rounds" in events.Tags()["images"]
    (text,) = events.Tensors("run file/text_summary")[-1:]
    assert b"| learner.inner_lr | 0.01 |" in text.tensor_proto.string_val[0]


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow(folder, expected):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    history = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    check({name: [(each.step, each.value) for each in points] for name, points in history.items()}, expected)
    assert (found.info.run_name, found.info.status) == ("tiny", "FINISHED")
    assert (found.data.params["target"], found.data.tags["resumed.target"]) == ("mse <= 1.0e-4", "mse <= 2.0e-4")
    assert {each.path for each in client.list_artifacts(found.info.run_id)} == {"report.html", "report.json"}


def records(file: bytes) -> Iterator[bytes]:
    """The records of a file of W&B, which is a log of LevelDB after a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(file):
        if BLOCK - place % BLOCK < 7:  # the rest of a block in which no record fits
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", file[place : place + 7])
        parts += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb(folder, expected):
    from wandb.proto import wandb_internal_pb2

    runs = sorted((folder / "tiny" / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.parent.name.rsplit("-", 1)[1] for path in runs}) == 1  # both processes under one id
    found: dict[str, list] = {}
    counts: list[int] = []
    for path in runs:
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items}
                counts.append(row["_step"])
                for name, value in row.items():
                    found.setdefault(name, []).append((row["step"], value))
    check(found, expected)
    assert counts == sorted(counts)


@pytest.mark.parametrize("at", ["start", "train/loss", "report"])
def test_a_tracker_that_fails_does_not_stop_a_run(kshot, tmp_path, at):
    kind = "app.trackers:failing"
    (tmp_path / "run.yaml").write_text(f"{RUN.replace('round: 15', 'round: 10')}track: {{kind: {kind!r}, at: {at}}}\n")
    result = kshot("run", "run.yaml", "--out", "out")
    assert result.code == 1
    said = [line for line in result.out.splitlines() if "goes on without it" in line]
    assert len(said) == 1
    assert said[0].startswith(f"{kind} failed, and the run goes on without it: ")
    sent = tmp_path / "out" / "trackers.json"
    last = json.loads(sent.read_text())[kind].get("train", -1) if at != "start" else -1
    assert last == (20 if at == "report" else -1)  # what failed is sent after --resume


def tracked(log: EventLog, folder: Path, make=build_tracker) -> Tracking:
    spec = parse_spec(f"{RUN}track: {{kind: 'app.trackers:in_memory', label: {folder.name}}}\n", "here")
    tracking = Tracking(spec, folder, make, print)
    tracking.follow(log)
    return tracking


def losses(tracker: InMemory) -> list[int]:
    return [step for name, step, _ in tracker.points if name == "train/loss"]


def test_a_tracker_gets_what_was_logged_before_it_and_nothing_twice(tmp_path):
    log = EventLog()
    for step in (10, 20):
        log.record("train", step=step, loss=1.0)
    first = tracked(log, tmp_path)
    (tracker,) = first.open.values()
    log.record("train", step=30, loss=1.0)
    first.close()
    resumed = EventLog()
    resumed.events = [*log.events, {"kind": "resumed", "time": 0.0}]
    second = tracked(resumed, tmp_path)
    for step in (25, 30, 35):  # steps that are taken again, since the checkpoint was older
        resumed.record("train", step=step, loss=1.0)
    second.close()
    assert list(second.open.values()) == []
    assert losses(tracker) == [10, 20, 30, 35]


def test_what_a_tracker_missed_is_sent_after_a_resume(tmp_path, capsys):
    log, tracker, away = EventLog(), InMemory("one"), [True]

    class Away(InMemory):
        def metrics(self, values, step, time):
            if step > 10 and away[0]:
                raise ConnectionError("no route to host")
            tracker.metrics(values, step, time)

    log.record("train", step=10, loss=1.0)
    tracking = tracked(log, tmp_path, lambda part, run: Away("one"))
    for step in (20, 30):
        log.record("train", step=step, loss=1.0)
    tracking.close()
    said = "app.trackers:in_memory failed, and the run goes on without it: ConnectionError: no route to host\n"
    assert capsys.readouterr().out == said
    away[0] = False
    tracked(log, tmp_path, lambda part, run: Away("one")).close()
    assert losses(tracker) == [10, 20, 30]


@pytest.mark.parametrize("content", ["", "[1]", '{"app.trackers:in_memory": 3}', "{"])
def test_a_damaged_file_of_what_was_sent_is_no_error(tmp_path, content, capsys):
    (tmp_path / follow.SENT).write_text(content)
    log = EventLog()
    log.record("train", step=10, loss=1.0)
    tracking = tracked(log, tmp_path, lambda part, run: InMemory(str(run.id)))
    assert [losses(each) for each in tracking.open.values()] == [[10]]
    assert not capsys.readouterr().out


def test_what_cannot_be_tracked_is_refused_before_the_run(kshot, tmp_path, monkeypatch):
    assert set(kinds("tracker")) == {"tensorboard", "mlflow", "wandb"}
    (tmp_path / "run.yaml").write_text(RUN)
    assert "did you mean 'tensorboard'" in kshot("run", "run.yaml", "--set", "track=tensorbord").err
    assert (
        "project: input should be a valid string"
        in kshot("run", "run.yaml", "--set", "track={kind: wandb, project: 3}").err
    )
    monkeypatch.setattr("kshot.app.tracking.tracker.find_spec", lambda name: None)
    result = kshot("run", "run.yaml", "--set", "track=[tensorboard]", "--out", "out")
    assert result.code == 2
    assert "tensorboard is not installed: pip install 'kshot[track]'" in result.err
    assert not (tmp_path / "out").exists()


def test_one_tracker_is_a_list_of_one():
    specs = [parse_spec(f"{RUN}track: {value}\n", "here") for value in ("wandb", "[wandb]", "{kind: wandb}")]
    assert [spec.track[0].kind for spec in specs] == ["wandb"] * 3
    assert parse_spec(RUN, "here").track == parse_spec(f"{RUN}track:\n", "here").track == []
