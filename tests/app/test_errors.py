"""How commands end: each kind of error has its exit code and a sentence."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import SafetensorError

from kshot.app.errors import FAULT, FULL, INVALID, exit_code, sentence
from kshot.files import DamagedFile, read_json
from kshot.inner.functional import Function


def raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def deep(depth=0):
    return deep(depth + 1)


def refused():
    model = torch.nn.LazyLinear(2)
    Function(model, "running").query({}, {}, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: read_json(Path("missing.json")), INVALID),
        (refused, INVALID),
        (lambda: Path("/").write_text(""), INVALID),
        (lambda: b"\xff".decode(), INVALID),
        (lambda: pl.DataFrame({"a": [1]})["b"], INVALID),
        (lambda: np.linalg.cholesky(-np.eye(2)), FAULT),
        (lambda: torch.ones(2) @ torch.ones(3), FAULT),
        (lambda: json.loads("{"), FAULT),
        (lambda: {}["key"], FAULT),
        (deep, FAULT),
    ],
    ids=["damaged", "refused", "file", "encoding", "polars", "numpy", "torch", "json", "key", "recursion"],
)
def test_an_error_has_a_code_and_a_sentence(make, code, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    error = raised(make)
    said = sentence(error)
    assert exit_code(error) == code
    assert "\n" not in said.strip() or code == INVALID
    reports = list(tmp_path.glob("kshot-fault-*.txt"))
    if code == FAULT:
        assert str(reports[0]) in said
        assert "Traceback" in reports[0].read_text()
        assert f"torch {torch.__version__}" in reports[0].read_text()
    else:
        assert not reports


def test_a_full_disk_and_no_memory_have_a_code_of_their_own():
    assert exit_code(OSError(errno.ENOSPC, "No space left on device")) == FULL
    assert exit_code(MemoryError()) == FULL
    assert exit_code(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")) == FULL
    assert "No space left" in sentence(OSError(errno.ENOSPC, "No space left on device"))
    assert exit_code(SafetensorError("Error while deserializing header")) == FAULT
    assert exit_code(DamagedFile("weights are damaged")) == FAULT  # without a traceback it is nobody's


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc, in which nobody can make a folder, is not there")
def test_a_folder_that_cannot_be_made_is_named(kshot):
    result = kshot("run", "sinusoid", "--out", "/proc/run")
    assert result.code == INVALID
    assert result.err.strip().startswith("kshot: /proc/run: ")


def test_a_terminal_that_lacks_characters_does_not_end_the_command(tmp_path):
    rows = [f"p{number},{dose},{number + 2 * dose}" for number in range(13) for dose in range(7)]
    (tmp_path / "patients.csv").write_text("\n".join(["patient,dose,pressure", *rows]))
    source = "{kind: table, path: patients.csv, group: patient, target: pressure, shots: 3, queries: 3}"
    (tmp_path / "run.yaml").write_text(f"name: it\nsource: {source}\nlearner: {{kind: cnp}}\ntarget: mse <= 1\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "kshot.app", "data", "check", "run.yaml", "--tasks", "2"]
    done = subprocess.run(words, capture_output=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u2588" in done.stdout  # a bar


def test_a_reader_that_ends_does_not_end_the_command(tmp_path):
    code = (
        "import sys\nfrom kshot.app.errors import Patient\nsys.stdout = Patient(sys.stdout)\n"
        "for n in range(20000):\n    print('line', n)\nopen(sys.argv[1], 'w').write('done')\nsys.stdout.flush()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = tmp_path / "done"
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(done)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert running.stdout.readline() == b"line 0\n"
    running.stdout.close()
    with running.stderr:
        assert running.stderr.read() == b""
    assert running.wait(60) == 0
    assert done.read_text() == "done"
