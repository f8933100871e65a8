"""`kshot run --processes`: as one process, also after one of them was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from app.noting import NOTED
from app.signalling import PLACE, SENT
from learners.test_dynamic_evaluation import RUN, phrases, small_gpt
from run_files import GLYPHS, SHORT, SINUSOID
from safetensors.torch import load_file

import kshot
from kshot.app.spec import load_spec

REPOSITORY = Path(__file__).parents[2]
LONGER = {"train.steps_per_round": 60, "train.tasks_per_step": 4, "evaluate.num_val_tasks": 8}


def start(folder: Path, *words: str, by: str = "kshot.app", **environment: str) -> subprocess.Popen:
    settings = [f"--set={name}={value}" for name, value in LONGER.items()]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", by, "run", str(folder / "tiny.yaml"), *settings, *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Those of the last round."""
    return load_file(sorted((run / "checkpoints" / "train").glob("round-*"))[-1] / "weights.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "tiny.yaml").write_text(SHORT)
    run = start(folder, "--out", str(folder / "two"), by="app.in_group")
    said = run.communicate(timeout=400)[0]
    assert run.returncode == 0, said
    return folder


def test_two_processes_run_a_run_file_as_one_does(undisturbed: Path, command: Callable[..., str]) -> None:
    settings = [f"--set={name}={value}" for name, value in LONGER.items()]
    command("run", str(undisturbed / "tiny.yaml"), *settings, "--out", str(undisturbed / "one"))
    of_two, of_one = (final_weights(undisturbed / name) for name in ("two", "one"))
    for name, weight in of_one.items():
        torch.testing.assert_close(of_two[name], weight, rtol=1e-3, atol=1e-4)
    figures = [kshot.load(undisturbed / name) for name in ("two", "one")]
    assert type(figures[0].learner) is type(figures[1].learner)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_started_again_and_ends_with_the_same_weights(undisturbed: Path, rank: int) -> None:
    run = start(undisturbed, "--out", str(undisturbed / f"killed-{rank}"), "--processes", "2")
    killed = False
    while run.poll() is None and not killed:
        time.sleep(0.05)
        if list((undisturbed / f"killed-{rank}").glob("checkpoints/train/round-0001/meta.json")):
            for child in psutil.Process(run.pid).children(recursive=True):
                if child.is_running() and child.environ().get("RANK") == str(rank):
                    child.send_signal(signal.SIGKILL)
                    killed = True
    said = run.communicate(timeout=400)[0]
    assert killed
    assert run.returncode == 0, said
    expected = final_weights(undisturbed / "two")
    for name, weight in final_weights(undisturbed / f"killed-{rank}").items():
        assert torch.equal(weight, expected[name]), name


REGRESSION = SINUSOID.replace("num_test_tasks: 6", "num_test_tasks: 19, shots: [2, 5]").replace(
    "[scratch, support_mean]", "[scratch, support_mean, {kind: app.noting:support_mean}]"
)
CLASSIFICATION = GLYPHS.replace("num_test_tasks: 4", "num_test_tasks: 19") + "reject: {}\n"
OF_THE_CALL = {"command", "tried", "log", "content_sha256", "environment", "timing", "data_check"}
"""Entries of a report on the call, such as what a check of the data had time for; all others are on the run."""


def figures_of(run: Path) -> dict:
    report = json.loads((run / "report.json").read_text())
    for name in ("adapt_ms", "predict_ms"):
        del report["cost"][name]
    for audit in report["audits"]:  # by process 0, with the threads of both, which round differently
        del audit["finding"], audit["figure"]
    return {name: entry for name, entry in report.items() if name not in OF_THE_CALL}


def check_noted(folder: Path, words: list[str]) -> None:
    """Test tasks were shared, and a process that is lost meanwhile ends nothing."""
    assert [path.name for path in (folder / "by one").iterdir()] == ["alone"]
    assert {path.name for path in (folder / "by two").iterdir()} == {"0", "1"}
    (folder / "killed").mkdir()
    run = start(folder, *words, **{NOTED: str(folder / "killed")})
    wait_for(run, "1", folder / "killed")
    for child in psutil.Process(run.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.send_signal(signal.SIGKILL)
    said = run.communicate(timeout=400)[0]
    assert run.returncode == 0, said
    assert (folder / "run" / "tasks.csv").read_text() == (folder / "one" / "tasks.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("run_file", [REGRESSION, CLASSIFICATION], ids=["regression", "classification"])
def test_two_processes_report_the_figures_of_one(run_file: str, tmp_path: Path) -> None:
    """The weights are the same: two processes resume what one has trained."""
    (tmp_path / "tiny.yaml").write_text(run_file)
    for name, words in {"one": [], "two": ["--processes", "2", "--resume"]}.items():
        (tmp_path / f"by {name}").mkdir()
        words += ["--out", str(tmp_path / "run"), "--set=train.steps_per_round=4", "--set=train.mode=loop"]
        run = start(tmp_path, *words, **{NOTED: str(tmp_path / f"by {name}")})
        said = run.communicate(timeout=400)[0]
        assert run.returncode in (0, 1), said  # 1 for a target that is missed
        shutil.copytree(tmp_path / "run", tmp_path / name)
    one, two = tmp_path / "one", tmp_path / "two"
    assert one.joinpath("tasks.csv").read_text() == two.joinpath("tasks.csv").read_text()
    expected, found = figures_of(one), figures_of(two)
    assert expected["failures"] == []
    assert len(expected["baselines"]) >= 3
    for entry, value in expected.items():
        assert found[entry] == value, entry
    if run_file == REGRESSION:
        check_noted(tmp_path, words)


def members(run: subprocess.Popen) -> list[psutil.Process]:
    """The process that was started, torchrun, and its processes, as far as they run."""
    return [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]


def wait_for(run: subprocess.Popen, pattern: str, folder: Path) -> None:
    while run.poll() is None and not list(folder.glob(pattern)):
        time.sleep(0.05)


def stopped_in(run: Path) -> list[int]:
    """The steps after which the run was stopped."""
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event["step"] for event in lines if event["kind"] == "stopped"]


def test_a_signal_stops_all_processes_after_the_same_step(undisturbed: Path) -> None:
    out = undisturbed / "stopped"
    run = start(undisturbed, "--out", str(out), "--processes", "2")
    wait_for(run, "checkpoints/train/round-0001/meta.json", out)
    processes = members(run)
    run.terminate()
    said = run.communicate(timeout=400)[0]
    assert run.returncode == 143, said
    words = f"run {undisturbed / 'tiny.yaml'} {' '.join(f'--set={name}={value}' for name, value in LONGER.items())}"
    assert f"Ended by SIGTERM. Resume by: kshot {words} --out {out} --processes 2 --resume" in said
    assert said.count("Resume by") == 1
    assert [step > 0 for step in stopped_in(out)] in ([True], [])  # [] for a signal during a validation
    psutil.wait_procs(processes, timeout=5)
    assert not any(each.is_running() for each in processes)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["process 1", "all, repeatedly"])
def test_stopped_processes_resume_to_the_same_weights(undisturbed: Path, to: str) -> None:
    (undisturbed / "tiny.yaml").write_text(SHORT.replace("kind: sinusoids", "kind: app.signalling:sinusoids"))
    out = undisturbed / to.replace(" ", "-")
    words = ["--out", str(out), "--processes", "2"]
    if to == "process 1":  # in step 3, whose task 14 is of process 0
        run = start(undisturbed, *words, **{PLACE: "train 13-15", SENT: str(undisturbed / "sent")})
    else:  # as SLURM does
        run = start(undisturbed, *words)
        wait_for(run, "checkpoints/train/round-0001/meta.json", out)
        for each in [*members(run), *members(run)[1:]]:
            each.terminate()
    said = run.communicate(timeout=400)[0]
    assert run.returncode == 143, said
    if to == "process 1":
        assert stopped_in(out) == [4]
    resumed = start(undisturbed, *words, "--resume")
    said = resumed.communicate(timeout=400)[0]
    assert resumed.returncode == 0, said
    expected = final_weights(undisturbed / "two")
    for name, weight in final_weights(out).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.slow
def test_processes_that_share_frozen_weights_run_as_those_that_do_not(tmp_path: Path) -> None:
    small_gpt(tmp_path / "gpt")
    phrases(tmp_path / "letters")
    source = RUN["source"] | {"unit": "tokens", "tokenizer": "gpt", "length": 8}
    run_file = RUN | {"source": source, "model": {"kind": "causal_lm", "rank": 2}, "pretrain": None}
    run_file |= {"baselines": {"names": ["scratch"], "num_test_tasks": 2}, "budget": {"rounds": 2}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(run_file))
    words = ["--processes", "2", "--set=train.steps_per_round=4", "--set=train.tasks_per_step=3"]
    for name, shared in {"whole": "false", "shared": "true"}.items():
        run = start(
            tmp_path, *words, "--set=train.mode=loop", f"--set=shard_frozen={shared}", "--out", f"{tmp_path / name}"
        )
        said = run.communicate(timeout=400)[0]
        assert run.returncode == 1, said
        assert "FAILED" not in said
    expected = final_weights(tmp_path / "whole")
    for name, weight in final_weights(tmp_path / "shared").items():
        assert torch.equal(weight, expected[name]), name
    assert (tmp_path / "shared" / "tasks.csv").read_text() == (tmp_path / "whole" / "tasks.csv").read_text()
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "shared")]
    assert reports[0]["cost"]["num_parameters"] == reports[1]["cost"]["num_parameters"]
    words[:2] = ["--resume", "--set=budget.rounds=3"]
    run = start(
        tmp_path, *words, "--set=train.mode=loop", "--set=shard_frozen=false", "--out", str(tmp_path / "shared")
    )
    said = run.communicate(timeout=400)[0]
    assert run.returncode == 1, said
    assert len(list((tmp_path / "shared" / "checkpoints" / "train").glob("round-0003"))) == 1


def test_what_one_process_would_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="among several processes, and there is one: start several, as by kshot run"):
        kshot.run(load_spec("sinusoid", ["shard_frozen=true"]).model_dump(), out=tmp_path / "run")
    with pytest.raises(ValueError, match="shard_frozen shares weights of a model, and learner cnp has none"):
        load_spec("sinusoid", ["shard_frozen=true", "learner={kind: cnp}", "model=null", "baselines={names: []}"])


def test_several_seeds_are_refused(command: Callable[..., str]) -> None:
    said = command("run", "sinusoid", "--seeds", "0,1", "--processes", "2")
    assert "several processes share one run" in said
