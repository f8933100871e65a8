"""A run survives what a disk, a clock and other processes do; each harness is a server of child processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks a child for each run")


def check(tmp_path, *words):
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else tmp_path
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder),
        "KSHOT_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("length", ["brief", pytest.param("short", marks=pytest.mark.slow)])
def test_nothing_is_lost_or_wrong_and_planted_faults_are_found(tmp_path, length):
    check(tmp_path, "chaos", length)


@pytest.mark.slow
def test_every_planted_fault_is_found(tmp_path):
    check(tmp_path, "chaos", "faults")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["kills 500", "full_disk 50", "races 1000", "corruptions 10000", "ranks 20"],
    ids=lambda words: words.split()[0],
)
def test_for_a_long_time(tmp_path, words):
    check(tmp_path, *f"chaos.{words}".split())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a file system")
def test_real_disks_of_all_sizes(tmp_path):
    check(tmp_path, "chaos.full_disk", "50", "--mount")
