"""`kshot doctor`: what it finds in a run folder is what other commands refuse, and its advice works."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_files import SINUSOID
from typer.testing import CliRunner

from kshot.app.cli import app
from kshot.app.doctor import diagnose
from kshot.files import owned

pytestmark = pytest.mark.usefixtures("without_charts")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "tiny.yaml").write_text(SINUSOID.replace("<= 1000", "<= 0.001"))
    assert kshot("run", folder / "tiny.yaml", "--out", folder / "run") == 1
    return folder / "run"


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def kshot(*arguments: object) -> int:
    return CliRunner().invoke(app, [str(each) for each in arguments]).exit_code


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_sound_folder_has_no_fault_and_is_left_as_it_is(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    diagnosis = diagnose(copy)
    assert not diagnosis.damaged
    assert {"spec.yaml", "shapes.json", "events.jsonl", "checkpoints/train/round-0002", "report.json", "tasks.csv"} <= {
        finding.name for finding in diagnosis.findings
    }
    assert kshot("doctor", copy) == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("spec.yaml", "spec.yaml"),
        ("shapes.json", "shapes.json"),
        ("events.jsonl", "events.jsonl"),
        ("report.json", "report.json"),
        ("tasks.csv", "tasks.csv"),
        ("checkpoints/train/round-0002/weights.safetensors", "checkpoints/train/round-0002"),
        ("checkpoints/train/round-0002/optimizer.safetensors", "checkpoints/train/round-0002"),
        ("checkpoints/train/round-0001/meta.json", "checkpoints/train/round-0001"),
    ],
)
def test_one_flipped_bit_is_found_in_every_file(copy, name, found):
    flip(copy / name)
    assert [finding.name for finding in diagnose(copy).findings if finding.fault] == [found]
    assert kshot("doctor", copy) == 2


def test_the_advice_for_a_damaged_newest_checkpoint_works(copy):
    flip(copy / "checkpoints" / "train" / "round-0002" / "weights.safetensors")
    advice = diagnose(copy).advice
    command = next(part for sentence in advice for part in sentence.split("`") if part.startswith("kshot run"))
    assert advice[-1].endswith("goes on from round-0001.")
    assert kshot(*command.split()[1:]) == 1  # the target of 0.001 is missed
    after = diagnose(copy)
    assert not after.damaged
    assert len(list(copy.glob("checkpoints/train/.round-0002.*.damaged"))) == 1  # kept
    assert after.advice[0] == "The best round, 2, is undamaged."
    assert kshot("evaluate", copy, "--tasks", 2, "--split", "val", "--no-baselines") == 0


def test_the_advice_for_a_training_without_a_checkpoint_works(copy):
    for path in (copy / "checkpoints" / "train").glob("*/weights.safetensors"):
        path.unlink()
    advice = diagnose(copy).advice
    assert len(advice) == 1
    assert f"delete {copy / 'checkpoints' / 'train'}, and" in advice[0]
    shutil.rmtree(copy / "checkpoints" / "train")
    assert diagnose(copy).advice[0].startswith("No step of the training can be read: `kshot run")
    assert kshot("run", copy / "spec.yaml", "--out", copy, "--resume") == 1
    assert not diagnose(copy).damaged


def test_states_and_folders_of_several_runs_are_examined(copy, tmp_path, run):
    (tmp_path / "support.csv").write_text("x,y\n0.5,0.4\n-1.0,-0.8\n")
    state = tmp_path / "state.safetensors"
    assert kshot("adapt", copy, "--support", tmp_path / "support.csv", "--out", state) == 0
    assert not diagnose(state).damaged
    flip(state)
    assert diagnose(state).damaged
    shutil.copytree(run, tmp_path / "runs" / "seed-0")
    shutil.copytree(run, tmp_path / "runs" / "seed-1")
    flip(tmp_path / "runs" / "seed-1" / "shapes.json")
    faults = [finding.name for finding in diagnose(tmp_path / "runs").findings if finding.fault]
    assert faults == ["seed-1/shapes.json"]


def test_what_a_killed_or_living_process_left_is_said(copy):
    (copy / ".tasks.csv.0a1b2c.part").write_text("half")
    assert any("1 unfinished files" in sentence for sentence in diagnose(copy).advice)

    with owned(copy):
        assert any("is being written by process" in sentence for sentence in diagnose(copy).advice)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        diagnose(tmp_path)
    with pytest.raises(ValueError, match="is no run folder"):
        diagnose(tmp_path / "missing")
