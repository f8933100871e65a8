"""Damage each file of run folders, and use them: `python -m chaos.corruptions 10000`.

Each use of a damaged folder must give what the undamaged one gives, or end with a sentence that names the file.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import logging
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from chaos.runs import SINE, TABLE, command, differences, outcome, prepare, run_words, write_inputs

import kshot
from kshot.files import LOCK
from kshot.training.checkpoint import load_state

KINDS = ("flipped", "cut", "zeroed", "swapped", "deleted")
USES = {"open": 0.6, "adapt": 0.15, "evaluate": 0.08, "resume": 0.07, "predict": 0.05, "compare": 0.05}
ENDS = ("whole", "stopped")
STATE = "state.safetensors"
OTHER = {"seed: 0": "seed: 1", "mse <= 0.0001": "mse <= 0.0002", "num_test_tasks: 4": "num_test_tasks: 3"}


class Subject(NamedTuple):
    """A run with what is done with it: its folder, run file, another run like it, and the results when undamaged."""

    folder: Path
    file: Path
    other: Path
    expected: dict[str, Any]


class Used(NamedTuple):
    """What a use of a run gave: its exit code, all that it said, and its figures."""

    code: int
    said: str
    figures: Any


def call(*words: object) -> tuple[int, str, str]:
    """Exit code, standard output and error of the command line; a traceback has code 70."""
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)
    logging.getLogger().addHandler(handler)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command(*words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except Exception as error:
        code = 70
        err.write(f"traceback: {type(error).__name__}: {error}")
    finally:
        logging.getLogger().removeHandler(handler)
    return code, out.getvalue(), err.getvalue()


def use(how: str, subject: Subject, scratch: Path) -> Used:
    """Use a run folder in one of the `USES`."""
    return {
        "open": _open, "adapt": _adapt, "evaluate": _evaluate, "resume": _resume, "predict": _predict,
        "compare": _compare,
    }[how](subject, scratch)  # fmt: skip


def _open(subject: Subject, scratch: Path) -> Used:
    try:
        run = kshot.load(subject.folder)
        weights = {name: tensor.clone() for name, tensor in run.learner.state_dict().items()}
        figures = {"weights": repr(weights), "report": run.report, "round": run.round, "reads": run.reads}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            figures["output"] = run.learner.model(torch.randn(3, *run.shapes["inputs"])).tolist()
    except (ValueError, OSError) as error:
        return Used(2, str(error), None)
    except Exception as error:
        return Used(70, f"traceback: {type(error).__name__}: {error}", None)
    return Used(0, "", figures)


def _adapt(subject: Subject, scratch: Path) -> Used:
    state = scratch / "adapted"
    code, out, err = call("adapt", subject.folder, "--support", subject.file.parent / "support.csv", "--out", state)
    figures = None
    if state.exists():
        values, meta = load_state(state)
        figures = repr((values, sorted(meta.items())))
    state.unlink(missing_ok=True)
    return Used(code, out + err, figures)


def _evaluate(subject: Subject, scratch: Path) -> Used:
    code, out, err = call("evaluate", subject.folder, "--tasks", 2, "--json")
    return Used(code, err + out, _figures(json.loads(out)) if code in (0, 3) else None)


def _resume(subject: Subject, scratch: Path) -> Used:
    copy = scratch / subject.folder.name / "run"
    shutil.copytree(subject.folder, copy)
    code, out, err = call(*run_words(subject.file, copy, resume=True))
    figures = None
    if code in (0, 1, 3):
        figures = {key: value for key, value in outcome(copy).items() if key not in ("events", "left")}
        figures["report"] = _figures(figures["report"])
        out += json.dumps(figures["report"]["audits"])
    shutil.rmtree(copy.parent)
    return Used(code, (out + err).replace(str(copy), str(subject.folder)), figures)


def _predict(subject: Subject, scratch: Path) -> Used:
    code, out, err = call(
        "predict", subject.folder, "--state", subject.folder / STATE, "--inputs", subject.file.parent / "inputs.csv"
    )
    return Used(code, out + err, out)


def _compare(subject: Subject, scratch: Path) -> Used:
    table = scratch / "compare.csv"
    code, out, err = call("compare", subject.folder, subject.other, "--csv", table)
    figures = re.sub(r"[^,\n]* ms|\d+\.\d+ s", "", table.read_text()) if table.exists() else None
    table.unlink(missing_ok=True)
    return Used(code, out + err, figures)


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    keys = ("test", "baselines", "best_round", "weights_sha256", "trusted", "audits", "shots", "rejection", "failures")
    return {key: report.get(key) for key in keys}


@contextlib.contextmanager
def damaged(kind: str, file: Path, other: Path, draw: random.Random) -> Iterator[bool]:
    """A context in which a file is damaged; whether it is another than before."""
    before = content = file.read_bytes()
    place = draw.randrange(len(content)) if content else 0
    if kind == "flipped" and content:
        content = content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    elif kind == "cut":
        content = content[:place]
    elif kind == "zeroed":
        length = len(content[place : place + draw.choice((4, 64, 512, 4096))])
        content = content[:place] + bytes(length) + content[place + length :]
    elif kind == "swapped" and other.exists():
        content = other.read_bytes()
    if kind == "deleted":
        file.unlink()
    elif content != before:
        file.write_bytes(content)
    try:
        yield kind == "deleted" or content != before
    finally:
        file.write_bytes(before)


def judge(used: Used, expected: Used, file: Path) -> str:
    """What is wrong with a use of a damaged folder, "" if nothing is."""
    if "traceback" in used.said.lower() or used.code in (4, 70):
        return f"TRACEBACK: {used.said[-300:]}"
    if used.code == expected.code and not differences(used.figures, expected.figures):
        return ""
    if used.code == 2:
        return "" if file.name in used.said else f"UNNAMED: {used.said[-300:]}"
    trust = [found for found in differences(used.figures, expected.figures) if not _is_of_trust(found)]
    if not trust and (used.code == 3 or (isinstance(used.figures, dict) and "reads" in used.figures)):
        told = used.said + repr(used.figures)
        return "" if file.name in told else f"UNNAMED: untrusted, {used.said[-300:]}"
    return f"SILENT: code {used.code}, {trust[:2]}, {used.said[-200:]}"


def _is_of_trust(difference: str) -> bool:
    """Whether a difference says that a figure is not to be trusted, and is of no figure."""
    return re.match(r"(/report)?/(audits|trusted|reads|trust)", difference) is not None


def subjects(folder: Path, texts: Sequence[str] = (SINE, TABLE), ends: Sequence[str] = ENDS) -> list[Subject]:
    """The runs to damage, with their undamaged results: of each run file a finished and an interrupted one."""
    made = []
    for text in texts:
        name = text.split()[1]
        other_text = text.replace("budget: {rounds", "seed: 0\nbudget: {rounds")
        for before, after in OTHER.items():
            other_text = other_text.replace(before, after)
        for which in ends:
            place = folder / f"{name}-{which}"
            file, out, other = write_inputs(place / "inputs", text), place / "a" / "run", place / "b" / "run"
            other_file = write_inputs(place / "others", other_text)
            _write_inputs_of(name, file.parent)
            for each, run_file in ((out, file), (other, other_file)):
                each.parent.mkdir()
                with _stopped(which == "stopped"):
                    code, _, err = call(*run_words(run_file, each, resume=False))
                assert code == (130 if which == "stopped" else 1), err
                words = ["adapt", each, "--support", file.parent / "support.csv", "--out", each / STATE]
                assert not call(*words)[0], call(*words)
            subject = Subject(out, file, other, {})
            for how in USES:
                if how != "compare" or which == "whole":
                    subject.expected[how] = use(how, subject, folder)
                    assert subject.expected[how].code in (0, 1), (how, subject.expected[how])
                    again = use(how, subject, folder)
                    assert not differences(again.figures, subject.expected[how].figures), how
            made.append(subject)
    return made


def _write_inputs_of(name: str, folder: Path) -> None:
    if name == "sine":
        (folder / "support.csv").write_text("x,y\n0.5,1.0\n-0.5,2.0\n1.5,0.3\n")
        (folder / "inputs.csv").write_text("x\n0.1\n0.2\n")
    else:
        rows = (folder / "support.csv").read_text().splitlines()
        (folder / "inputs.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows))


@contextlib.contextmanager
def _stopped(stopped: bool) -> Iterator[None]:
    """A context in which runs end after their first round, as by a kill."""
    from kshot.deciding import loop

    apply = loop._RunState.apply

    def stop(*args: Any) -> None:
        apply(*args)
        raise KeyboardInterrupt

    if stopped:
        loop._RunState.apply = stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        loop._RunState.apply = apply  # type: ignore[method-assign]


class Tally(NamedTuple):
    """Number of corruptions, those after which all was equal, those that were told, and sentences on the others."""

    corruptions: int
    equal: int
    told: int
    faults: list[str]
    kinds: collections.Counter[str]


def check(count: int, seed: int, observe: Callable[[str], object] = lambda fault: None) -> Tally:
    """Damage random files of runs, one at a time, and use them."""
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        return damage_all(subjects(scratch), count, random.Random(seed), scratch, observe)
    finally:
        shutil.rmtree(scratch)


def damage_all(
    runs: Sequence[Subject],
    count: int,
    draw: random.Random,
    scratch: Path,
    observe: Callable[[str], object] = lambda fault: None,
    names: str = ".*",
) -> Tally:
    """`check` of given runs, of the files whose names match a pattern."""
    done, equal, told, faults, kinds = 0, 0, 0, list[str](), collections.Counter[str]()
    while done < count:
        subject = draw.choice(runs)
        files = sorted(file for file in subject.folder.rglob("*") if file.is_file() and file.name != LOCK)
        file, kind = draw.choice([file for file in files if re.fullmatch(names, file.name)]), draw.choice(KINDS)
        how = draw.choices(list(USES), list(USES.values()))[0]
        how = "predict" if file.name == STATE else how
        if how not in subject.expected:
            continue
        with damaged(kind, file, subject.other / file.relative_to(subject.folder), draw) as changed:
            if not changed:
                continue
            used = use(how, subject, scratch)
        done += 1
        if done % 500 == 0:
            observe(f"({done} so far)")
        kinds[f"{kind} {file.name}"] += 1
        expected = subject.expected[how]
        if fault := judge(used, expected, file):
            place = f"{subject.folder.parts[-3]} {file.relative_to(subject.folder)}"
            faults.append(f"{how} of {place} {kind}: {fault}")
            observe(faults[-1])
        elif used.code == 2 or differences(used.figures, expected.figures):
            told += 1
        else:
            equal += 1
    return Tally(done, equal, told, faults, kinds)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]  # corruptions, and optionally the seed
    prepare()
    found = check(numbers[0], *(numbers[1:] or [0]), lambda fault: print(fault, flush=True))
    by_kind = collections.Counter(fault.split(": ")[1] for fault in found.faults)
    print(
        f"{found.corruptions} corruptions: {found.equal} without effect, {found.told} told, {len(found.faults)} "
        f"faults {dict(by_kind)}; {len(found.kinds)} kinds of damage and file"
    )
    sys.exit(bool(found.faults))
