"""Commands in the documents exist, with their options, and the examples of pages on commands run, in less time."""

import random
import re
import shlex
from pathlib import Path

import pytest
import typer

from kshot.app import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
RUN = {
    "tests/test_docs.py": """README algorithms evaluation experience extending huggingface keras migrating onnx
        scikit-learn your-data""",
    "tests/test_docs_commands.py": "auto processes sweep",
    "tests/app/test_run_files.py": "run-files",
}
"""The tests that run the Python examples of a page."""

SMALLER = {
    "steps_per_round: 50": "steps_per_round: 1",
    "budget: {rounds: 9}": "budget: {rounds: 1}\nevaluate: {num_val_tasks: 4, num_test_tasks: 4}",
    "trials=40, workers=2": "trials=1, workers=1",
    "minutes=15": "minutes=1.5",
}


def blocks(page: str, language: str) -> list[str]:
    text = PAGES[f"{page}.md"]
    for given, smaller in SMALLER.items():
        text = text.replace(given, smaller)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_page_with_python_is_run():
    pages = {name.removesuffix(".md") for name, text in PAGES.items() if "```python" in text}
    assert pages == {page for names in RUN.values() for page in names.split()}
    for test, names in RUN.items():
        assert all(page in (ROOT / test).read_text() for page in names.split())


def commands() -> list[str]:
    """The lines of shell blocks that call kshot."""
    lines = [
        line for page in PAGES for block in blocks(page[:-3], "sh") for line in block.replace("\\\n", "").split("\n")
    ]
    return list(dict.fromkeys(line for line in lines if line.startswith("kshot ")))


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_options_exist(line):
    words = shlex.split(line, comments=True)[1:]
    if words[0].startswith("--"):  # options of typer
        return
    command = typer.main.get_command(cli.app)
    context = command.make_context("kshot", [words[0]])
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, words)
        context = command.make_context(name, list(words) if not hasattr(command, "commands") else words[:1], context)


def test_the_commands_are_many():
    assert len(commands()) > 25


@pytest.fixture
def folder(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KSHOT_EXPERIENCE", str(tmp_path / "experience.sqlite"))
    return tmp_path


@pytest.mark.slow
def test_the_examples_of_the_search_run(folder, capsys):
    (run_file,), (code,) = blocks("sweep", "yaml"), blocks("sweep", "python")
    (folder / "waves.yaml").write_text(run_file)
    exec(compile(code, "sweep.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_example_of_the_choice_runs(folder, capsys):
    rng = random.Random(0)
    rows = [f"{patient},{x},{patient % 5 + 2 * x}" for patient in range(30) for x in (rng.random() for _ in range(12))]
    (folder / "patients.csv").write_text("\n".join(["patient,dose,outcome", *rows]))
    (code,) = blocks("auto", "python")
    names: dict = {}
    exec(compile(code, "auto.md", "exec"), names)
    assert names["report"]["choice"]["reason"] in capsys.readouterr().out


def test_the_example_of_processes_runs_in_one(capsys):
    (code,) = blocks("processes", "python")
    exec(compile(code, "processes.md", "exec"), {})
    assert "4 tasks)" in capsys.readouterr().out
