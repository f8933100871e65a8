"""A run folder is copied to an object store while the run goes on, and a run goes on from there on another machine."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from run_files import SHORT
from safetensors.torch import load_file

from kshot.app import mirror
from kshot.app.execute import execute, run
from kshot.app.folder import RunFolder
from kshot.app.mirror import Mirror, Mirroring, mirrored, take_from_mirror
from kshot.app.spec import parse_spec
from kshot.deciding.decisions import EventLog
from kshot.files import sha256_of
from kshot.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("without_charts")


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files if not path.name.startswith(".")}


def weights(folder):
    return load_file(Checkpoints(folder / "checkpoints" / "train").latest() / "weights.safetensors")


@pytest.fixture
def spec():
    return parse_spec(SHORT, "run.yaml")


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/store/run"


@pytest.mark.parametrize("store", ["file", "memory"])
def test_the_copy_of_a_finished_run_is_the_run(store, spec, tmp_path, url):
    url = url if store == "file" else "memory://bucket/run"
    report = execute(spec, tmp_path / "run", mirror=url)
    assert Mirror(url).restore(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "run")
    assert RunFolder(tmp_path / "again").read_report()["test"] == report["test"]
    assert not (tmp_path / "run" / mirror.STAGED).exists()


def test_each_snapshot_of_a_run_is_one_from_which_it_goes_on_to_the_same_end(spec, tmp_path, url, monkeypatch):
    monkeypatch.setattr(mirror, "KEPT", 1000)
    staged, stage = [], Mirroring._stage

    def waited(self):
        stage(self)
        self._wait()
        staged.append(self._number)

    monkeypatch.setattr(Mirroring, "_stage", waited)
    monkeypatch.setattr(mirror, "SECONDS", 0.0)
    execute(spec, tmp_path / "run", mirror=url)
    assert len(staged) > 8
    monkeypatch.undo()
    expected, known = weights(tmp_path / "run"), Mirror(url)
    for number in sorted(known.numbers())[1:-1:5]:
        monkeypatch.setattr(Mirror, "numbers", lambda self, number=number: [number])
        folder = tmp_path / f"from-{number}"
        assert Mirror(url).restore(folder)
        assert RunFolder(folder).losses() == []
        execute(spec, folder, resume=True)
        for name, weight in weights(folder).items():
            assert torch.equal(weight, expected[name]), (number, name)


def test_the_same_command_starts_a_run_and_goes_on_with_it_on_another_machine(kshot, tmp_path, url):
    (tmp_path / "run.yaml").write_text(
        SHORT.replace("<= 1000", "<= 0").replace("mode: vmap", "mode: vmap, schedule: constant")
    )
    words = ["run", "run.yaml", "--out", "out", "--mirror", url, "--resume"]
    assert kshot(*words, "--set", "budget.rounds=1").code in (0, 1)
    shutil.rmtree(tmp_path / "out")
    refused = kshot(*(word for word in words if word != "--resume"))
    assert refused.code == 2
    assert "already holds a run: choose another --mirror, or continue it by --resume" in refused.err
    assert kshot(*words, "--set", "budget.rounds=2").code in (0, 1)
    run("run.yaml", tmp_path / "whole", overrides=["budget.rounds=2"])
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(tmp_path / "out").items())
    events = [json.loads(line)["kind"] for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert "resumed" in events


def test_a_mirror_that_fails_does_not_stop_a_run(spec, tmp_path, url, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    with caplog.at_level(logging.WARNING):
        assert execute(spec, tmp_path / "run", mirror=url)["test"]
    assert f"the mirror {url} is not up to date: No space left on device" in caplog.text
    assert Mirror(url).latest() == (0, {})


def test_a_mirror_that_cannot_be_read_is_a_sentence(tmp_path, url, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError("access denied")

    monkeypatch.setattr(LocalFileSystem, "ls", denied)
    with pytest.raises(ValueError, match=f"the mirror {url} cannot be read: access denied"):
        take_from_mirror(url, tmp_path / "run", resume=True)


def snapshot(folder, url):
    """Send a folder as a run would."""
    with mirrored(url, folder) as follow:
        follow(EventLog())


def test_two_snapshots_are_kept_and_a_torn_one_is_left_out(tmp_path, url):
    folder, store = tmp_path / "run", tmp_path / "store" / "run"
    folder.mkdir()
    for number in range(1, 5):
        (folder / "spec.yaml").write_text(f"number {number}")
        (folder / "same.txt").write_text("the same")
        snapshot(folder, url)
    assert sorted(path.name for path in (store / "snapshots").iterdir()) == ["00000003.json", "00000004.json"]
    assert len(list((store / "objects").iterdir())) == 3
    (store / "snapshots" / "00000004.json").write_text('{"files": {')
    assert Mirror(url).latest()[0] == 3
    assert Mirror(url).restore(tmp_path / "again")
    assert (tmp_path / "again" / "spec.yaml").read_text() == "number 3"
    snapshot(folder, url)  # of a process that follows the one that was killed in its fourth snapshot
    assert Mirror(url).latest()[0] == 5
    shutil.rmtree(tmp_path / "again")
    assert Mirror(url).restore(tmp_path / "again")
    assert (tmp_path / "again" / "spec.yaml").read_text() == "number 4"


def test_damage_of_a_mirror_is_told_and_leaves_nothing(tmp_path, url):
    folder, store = tmp_path / "run", tmp_path / "store" / "run" / "objects"
    folder.mkdir()
    (folder / "spec.yaml").write_text("number")
    snapshot(folder, url)
    (content,) = store.iterdir()
    content.write_text("another")
    with pytest.raises(ValueError, match=r"the content of spec.yaml is damaged in snapshot 1"):
        take_from_mirror(url, tmp_path / "again", resume=True)
    content.unlink()
    with pytest.raises(ValueError, match=r"lacks the content of spec.yaml in snapshot 1"):
        take_from_mirror(url, tmp_path / "again", resume=True)
    assert not (tmp_path / "again").exists()


def test_two_processes_on_one_mirror_are_told(tmp_path, url, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "spec.yaml").write_text("number")
    with caplog.at_level(logging.WARNING), mirrored(url, folder):
        Path(tmp_path / "store/run/snapshots").mkdir(parents=True)
        mirroring = Mirroring(Mirror(url), folder)
        mirroring._number, mirroring._known = 1, set()
        (tmp_path / "store/run/snapshots/00000002.json").write_text("{}")
        mirroring.close()
    assert "is not up to date: another process writes to it" in caplog.text


def test_a_full_disk_does_not_stop_a_run_that_has_room_for_itself(spec, tmp_path, url, monkeypatch, caplog):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(mirror, "SECONDS", 0.0)
    monkeypatch.setattr(mirror, "_staged", full)
    with caplog.at_level(logging.WARNING):
        assert execute(spec, tmp_path / "run", mirror=url)["test"]
    assert f"the mirror {url} is not up to date: No space left on device" in caplog.text


@pytest.mark.parametrize("name", ["/etc/passwd", "../spec.yaml", "a/../../b"])
def test_names_that_lead_out_of_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="leads out of the folder"):
        mirror._safe(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mirror": "nothing://bucket"}, "mirror nothing://bucket: Protocol not known: nothing"),
        ({"mirror": "memory://x", "seeds": [0, 1]}, "mirror is for one run: leave out seeds and evaluate.folds"),
    ],
)
def test_what_cannot_be_mirrored_is_a_sentence_before_any_training(options, message, spec, tmp_path):
    with pytest.raises(ValueError, match=message):
        execute(spec, tmp_path / "run", **options)
