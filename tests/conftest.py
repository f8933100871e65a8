"""What all tests share: one thread, no global randomness, a cache of their own, and where the real data lies."""

from __future__ import annotations

import gc
import inspect
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sqlalchemy import event
from sqlalchemy.engine import Engine

from kshot.app import cli
from kshot.data.cache import cached
from kshot.evaluation.report import report
from kshot.sources import glyphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kshot.evaluation.report.parts import Picture

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: garbage collections need not go through it again and again
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes a millisecond


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """What tests write need not outlive a power cut; tests/chaos runs in processes of its own."""

    def without_waiting(connection: Any, record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", without_waiting)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
    event.remove(Engine, "connect", without_waiting)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache folder; Omniglot is read once for all tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSHOT_CACHE", str(folder))
        patch.setenv("KSHOT_EXPERIENCE", str(folder / "experience.sqlite"))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _glyphs_drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The processes of one run of the tests share a drawing of all glyphs, which takes ten seconds."""
    names = inspect.unwrap(glyphs).__globals__
    draw, folder = names["_draw_all"], tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def once() -> dict[str, np.ndarray]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KSHOT_CACHE", str(folder / "glyphs"))
            return cached("glyphs", draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(names, "_draw_all", once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _charts_drawn_once() -> Iterator[None]:
    """A report shows a chart that an earlier one drew, since drawing takes most of the time of a tiny run.

    Each chart is drawn for the first run that has it; tests/evaluation draws all charts, of ordinary and odd figures.
    """
    drawn: dict[tuple[str, int, bool], Picture] = {}
    draw = report.picture

    def once(name: str, figure: Figure) -> Picture:
        key = name, len(figure.axes), any(axes.images for axes in figure.axes)
        if key not in drawn:
            drawn[key] = draw(name, figure)
            return drawn[key]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "_uri", lambda figure: "")
            patch.setattr(report, "make_narrow", lambda figure: figure)
            return draw(name, figure)._replace(uri=drawn[key].uri, narrow=drawn[key].narrow)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "picture", once)
        yield


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets do not lie beside this checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture
def omniglot_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_DATA", str(shared_data))
    return shared_data / "omniglot"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command line: words in, what it prints out, or on standard error where the words are wrong."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["kshot", *words])
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code == 2:
                return capsys.readouterr().err
        return capsys.readouterr().out

    return run
