"""`kshot sweep --launcher ray`: workers that are tasks of Ray; the proof by a real Ray is slow."""

import os
import signal
from types import SimpleNamespace

import psutil
import pytest
from app.test_sweep import SPACE, TINY, known

import kshot as package
from kshot.app.sweep import on_ray


def test_without_ray_a_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match="which is not installed: pip install 'kshot\\[ray\\]'"):
        package.sweep(TINY | {"search": SPACE}, tmp_path / "out", launcher="ray", experience=known())


def test_the_nodes_of_a_cluster_need_a_database_that_they_share(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace())
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ValueError, match="share the study by a database: give --storage"):
        package.sweep(TINY | {"search": SPACE}, tmp_path / "out", launcher="ray", experience=known())


class Failed(Exception):
    """As ray.exceptions.RayError."""


def test_the_failure_of_all_workers_is_told():
    def get(task):
        if task == "bad":
            raise Failed("ray::work_alone()\nValueError: no data")

    ray = SimpleNamespace(
        remote=lambda **options: lambda function: SimpleNamespace(remote=lambda job: job.pop()),
        wait=lambda tasks, num_returns, timeout: (tasks[:1], tasks[1:]),
        get=get,
        exceptions=SimpleNamespace(RayError=Failed),
    )
    workers = on_ray.RayWorkers(ray, ["bad", "good"], 2)
    assert workers.wait()
    with pytest.raises(RuntimeError, match="a worker on Ray failed: ValueError: no data"):
        workers.wait()
    workers = on_ray.RayWorkers(ray, ["good", "bad"], 2)
    assert workers.wait()  # of a failed one and another
    assert not workers.wait()


@pytest.mark.slow
def test_trials_are_shared_by_workers_of_a_local_ray_and_a_killed_one_costs_its_trial_alone(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed; it is in the extra 'ray'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    killed, wait = [], on_ray.RayWorkers.wait

    def kill_one_first(self):
        if not killed:
            busy = [
                each for each in psutil.Process().children(recursive=True) if "work_alone" in " ".join(each.cmdline())
            ]
            if len(busy) == 2:
                killed.append(busy[0].pid)
                os.kill(busy[0].pid, signal.SIGKILL)
        return wait(self)

    monkeypatch.setattr(on_ray.RayWorkers, "wait", kill_one_first)
    report = package.sweep(
        TINY | {"search": SPACE}, tmp_path / "out", trials=8, workers=2, launcher="ray", experience=known()
    )
    assert killed
    assert not ray.is_initialized()
    trials = report["sweep"]["trials"]
    assert len([each for each in trials if each["figure"]]) >= 7
    assert sum(each["kept"] for each in trials) == 1
    assert package.load(tmp_path / "out").report["test"] == report["test"]
