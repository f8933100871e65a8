"""Strategies of hypothesis for calls on trained runs and for command lines, and the table of all strategies."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hypothesis import strategies as st
from inputs.calls import DATA, Case
from inputs.cases import (
    data_files,
    delimited,
    films,
    folders,
    frozen,
    pictures,
    run_file_bytes,
    run_file_parts,
    run_file_values,
    set_options,
)
from inputs.prepared import RUNS, SUPPORT
from inputs.values import CELLS, ODD_TEXTS, SCALARS, TEXTS, damaged


@st.composite
def states(draw: st.DrawFn, data: Path) -> Case:
    """A damaged state, or the state of another run."""
    run, other = draw(st.sampled_from(sorted(RUNS))), draw(st.sampled_from(sorted(RUNS)))
    content = draw(damaged((data / f"{other}.state").read_bytes()))
    words = ["predict", f"{DATA}/runs/{run}", "--state", "s.state", "--inputs", f"{DATA}/{SUPPORT[run]}"]
    if run == "letters" and draw(st.booleans()):
        words = ["generate", f"{DATA}/runs/{run}", "--state", "s.state", "--prompt", draw(TEXTS), "--length", "3"]
    return Case([_word(word) for word in words], {"s.state": content})


@st.composite
def inputs_of_runs(draw: st.DrawFn, data: Path) -> Case:
    """Odd examples for a trained run, to adapt to, to predict, or to recommend from."""
    run = draw(st.sampled_from(sorted(RUNS)))
    support = data / SUPPORT[run]
    files = {"x/a/1.png": next(iter(pictures().values())), "x/b/1.png": b""}
    if support.is_file():
        content = support.read_bytes()
        if support.suffix == ".csv" and draw(st.booleans()):
            rows = list(csv.reader(io.StringIO(content.decode())))
            row = draw(st.integers(0, len(rows) - 1))
            column = draw(st.integers(0, len(rows[0]) - 1))
            rows[row][column] = draw(CELLS)
            name, content = draw(delimited(rows))
        else:
            name, content = f"x{support.suffix}", draw(damaged(content))
        files = {name.removesuffix(".gz"): content}
    else:
        files = {f"x/{n}": draw(damaged(c)) if draw(st.booleans()) else c for n, c in list(pictures().items())[:6]}
        name = "x"
    name = name.removesuffix(".gz")
    flags = draw(st.lists(st.sampled_from(["--resize", "--invert"]), max_size=2))
    if run in ("ratings", "clicks") and draw(st.booleans()):
        return Case(
            ["recommend", f"{DATA}/runs/{run}", "--user", name, "--top", draw(st.sampled_from(["1", "3", "999"]))],
            files,
        )
    if draw(st.booleans()):
        return Case(["adapt", f"{DATA}/runs/{run}", "--support", name, "--out", "new.state", *flags], files)
    return Case(["predict", f"{DATA}/runs/{run}", "--state", f"{DATA}/{run}.state", "--inputs", name, *flags], files)


@st.composite
def damaged_runs(draw: st.DrawFn, data: Path) -> Case:
    """A command on a run folder with one damaged file."""
    run = draw(st.sampled_from(sorted(RUNS)))
    folder = data / "runs" / run
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path.read_bytes() for name, path in files.items() if path.suffix != ".html"}
    name = draw(st.sampled_from(sorted(files)))
    if draw(st.booleans()):
        files[name] = draw(damaged(files[name]))
    else:
        del files[name]
    words = draw(st.sampled_from([
        ["evaluate", "r", "--tasks", "2", "--no-baselines"], ["compare", "r", f"{DATA}/runs/{run}"],
        ["predict", "r", "--state", f"{DATA}/{run}.state", "--inputs", f"{DATA}/{SUPPORT[run]}"],
        ["adapt", "r", "--support", f"{DATA}/{SUPPORT[run]}", "--out", "new.state"],
    ]))  # fmt: skip
    return Case(words, {f"r/{name}": content for name, content in files.items()})


COMMANDS = [
    ["run", "sinusoid"], ["evaluate", f"{DATA}/runs/sine"], ["compare", f"{DATA}/runs/sine", f"{DATA}/runs/rows"],
    ["adapt", f"{DATA}/runs/sine"], ["predict", f"{DATA}/runs/sine"], ["recommend", f"{DATA}/runs/ratings"],
    ["generate", f"{DATA}/runs/letters"], ["recipes"], ["data", "list"], ["data", "add", "omniglot"],
    ["data", "check", "sinusoid"], ["data", "freeze", "sinusoid"], [], ["data"], ["nothing"],
]  # fmt: skip
OPTIONS = [
    "--set", "--out", "--resume", "--init-from", "--seeds", "--tasks",
    "--split", "--json", "--csv", "--episodes-sha256",
    "--html", "--support", "--state", "--inputs", "--resize", "--user", "--top", "--ask", "--interview", "--personal",
    "--prompt", "--length", "--temperature", "--top-p", "--seed", "--from", "--examples", "--help", "--version", "--x",
]  # fmt: skip
WORDS = [
    f"{DATA}/support-sine.csv", f"{DATA}/sine.state", f"{DATA}/letters.state", "out", "missing/out",
    f"{DATA}/support-ratings.csv", f"{DATA}/runs/sine", DATA, "0", "1", "3", "-1", "0.5", "nan", "1e400", "9" * 23,
    "test", "train", "/dev/null",
    "0,1", "0,0", "1,", "a,b", ".", "/proc/self/mem", "/", "seed=3", "source.shots=2",
]  # fmt: skip
_FEW = ["train.steps_per_round=1", "budget.rounds=1", "evaluate.num_test_tasks=2", "evaluate.num_val_tasks=2"]
_FEW += ["baselines.names=[]", "train.tasks_per_step=1", "evaluate.shots=[]"]
SHORT = [word for key in _FEW for word in ("--set", key)]


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    """Commands with options and words that may not belong together."""
    words = list(draw(st.sampled_from(COMMANDS)))
    few = SHORT if words[:1] == ["run"] else ["--tasks", "2", "--no-baselines"] if words[:1] == ["evaluate"] else []
    for _ in range(draw(st.integers(0, 4))):
        words.append(draw(st.sampled_from(OPTIONS)))
        words += draw(
            st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(ODD_TEXTS), SCALARS.map(str)), max_size=2)
        )
    return Case([_word(word) for word in [*words, *few]], {})


def _word(word: str) -> str:
    """A word as the operating system can pass it."""
    return word.replace("\x00", "") if "\x00" in word else word


def kinds(data: Path) -> dict[str, st.SearchStrategy[Case]]:
    """The strategies by name."""
    return {
        "run file, values": run_file_values(),
        "run file, parts": run_file_parts(),
        "run file, bytes": run_file_bytes(),
        "--set": set_options(),
        "data files": data_files(),
        "folders": folders(),
        "films": films(),
        "frozen tasks": frozen(data),
        "states": states(data),
        "inputs": inputs_of_runs(data),
        "run folders": damaged_runs(data),
        "command lines": command_lines(),
    }
