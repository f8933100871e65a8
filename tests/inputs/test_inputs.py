"""No input leaks a library's error, a traceback or a hang: kept inputs, a few random ones, and all combinations."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from inputs import tiny
from inputs.calls import Case, call, call_twice_if_late
from inputs.combinations import Combination, combinations, outcome
from inputs.commands import kinds
from inputs.fuzz import drawn
from inputs.prepared import prepare

pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'text'")

KEPT = sorted((Path(__file__).parent / "corpus").glob("*.json"))
SHORT, LONG = 3, 300  # random inputs of each kind
SAMPLE = 101  # every 101st combination, in another order of learners for each source

KINDS = list(kinds(Path()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The prepared data, which one process of pytest-xdist makes and the others copy."""
    own = tmp_path_factory.mktemp("inputs") / "data"
    if worker_id == "master":
        return prepare(own)
    made = tmp_path_factory.getbasetemp().parent / "inputs-prepared"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            prepare(made)
    return Path(shutil.copytree(made, own))


@pytest.mark.parametrize("file", KEPT, ids=[file.stem for file in KEPT])
def test_an_input_that_once_failed_is_refused_in_a_sentence(file: Path, data: Path) -> None:
    done = call(Case.from_json(file.read_text(encoding="utf-8")), data)
    assert not done.leak, done


@pytest.mark.parametrize("kind", KINDS)
def test_random_inputs_end_with_a_sentence(kind: str, data: Path) -> None:
    assert leaks(kind, 1, SHORT, data) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_inputs_end_with_a_sentence(kind: str, data: Path) -> None:
    assert leaks(kind, 2, LONG, data) == []


def leaks(kind: str, number: int, count: int, data: Path) -> list[str]:
    found: list[str] = []

    def judge(_: str, case: Case) -> None:
        done, _ = call_twice_if_late(case, data)
        found.extend([f"{done.leak} of {case.to_json()[:2000]}"] * bool(done.leak))

    drawn(number, count, data, judge, kind)
    return found


ALL = list(combinations())


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("combinations")
    tiny.write_data(folder)
    tiny.write_encoder(folder / "encoder")
    before = Path.cwd()
    os.chdir(folder)
    yield {}
    os.chdir(before)


@pytest.mark.parametrize("combination", ALL[::SAMPLE], ids=", ".join)
def test_a_source_with_a_learner_and_a_model_trains_or_is_refused(combination: Combination, opened: dict) -> None:
    assert outcome(combination, opened)


@pytest.mark.slow
@pytest.mark.parametrize("source", tiny.SOURCES)
def test_every_combination_trains_or_is_refused(source: str, opened: dict) -> None:
    found = {each: outcome(each, opened) for each in ALL if each.source == source}
    assert "trains" in found.values()
    assert "diverges" not in found.values()
