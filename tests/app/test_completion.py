"""Completion by the shell, through the script that `kshot --show-completion` prints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kshot.app import completion
from kshot.app.spec import recipes
from kshot.data import library

BASH = shutil.which("bash")
SCRIPT = "import sys; from kshot.app.cli import main; sys.argv[0] = 'kshot'; main()"


@pytest.fixture
def bash(tmp_path, monkeypatch):
    """A function: what bash offers for the last of some words, in an interactive shell with kshot's completion."""
    if BASH is None:
        pytest.skip("bash is not installed")
    program = tmp_path / "bin" / "kshot"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{SCRIPT}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = subprocess.run([program, "--show-completion", "bash"], capture_output=True, text=True, check=True).stdout
    assert "complete -o default -F _kshot_completion kshot" in script

    def offers(*words: str) -> list[str]:
        call = (
            f"COMP_WORDS=({' '.join(map(repr, ['kshot', *words]))}); COMP_CWORD={len(words)}; _kshot_completion kshot"
        )
        lines = f'{script}\n{call}\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
        done = subprocess.run([BASH, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    return offers


def test_bash_completes_recipes_and_run_files(bash, tmp_path):
    (tmp_path / "single.yaml").touch()
    (tmp_path / "table.csv").touch()
    assert bash("run", "sin") == ["sinusoid", "single.yaml"]
    assert bash("auto", "table") == []  # so that the shell offers table.csv by itself
    assert bash("data", "check", "omniglot-q") == ["omniglot-quick"]


def test_all_recipes_and_data_sets_are_offered():
    assert completion.recipe_names("") == sorted(recipes())
    assert completion.data_sets("") == sorted(entry.name for entry in library.known())


def test_completion_and_help_import_nothing_heavy(tmp_path):
    lines = """
import json, os, sys
sys.argv = ["kshot", *sys.argv[1:]]
from kshot.app.cli import main
try:
    main()
except SystemExit:
    print(json.dumps(sorted(set(sys.modules) & {"torch", "numpy", "polars", "sklearn"})), file=sys.stderr)
"""
    completing = {"_KSHOT_COMPLETE": "complete_bash", "COMP_WORDS": "kshot data add ", "COMP_CWORD": "3"}
    for words, environment in ((["--help"], {}), ([], completing)):
        done = subprocess.run(
            [sys.executable, "-c", lines, *words],
            env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert json.loads(done.stderr) == []
        assert ("omniglot" if environment else "recipes") in done.stdout
