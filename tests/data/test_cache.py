"""The cache and its atomic writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kshot.data.cache import CachedRows, cached, cached_folder, is_cached, write_arrays


def test_arrays_are_computed_once_and_again_where_the_file_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    assert not is_cached("numbers")
    for _ in range(2):
        assert cached("numbers", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert cached("numbers", lambda: pytest.fail("it is in the cache"))["a"].tolist() == [0, 1, 2]
    assert is_cached("numbers")
    content = (tmp_path / "numbers.npz").read_bytes()
    for damaged in (content[:-30], content.replace(b"\x02", b"\x03"), b""):
        (tmp_path / "numbers.npz").write_bytes(damaged)
        assert cached("numbers", lambda: {"a": np.arange(4)})["a"].tolist() == [0, 1, 2, 3]


def test_a_row_is_computed_once_for_its_key_whatever_else_is_asked_with_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    asked: list[bytes] = []

    def rows(keys, name="rows"):
        def compute(positions):
            asked.extend(keys[position] for position in positions)
            return {p: np.array([keys[p][0], 7.0]) for p in positions if keys[p] != b"bad"}

        found = CachedRows(name, keys, compute, chunk=2)
        return found[np.arange(len(keys))], found.known

    found, known = rows([b"abc", b"bad", b"abc", b"cde"])
    assert asked == [b"abc", b"bad", b"cde"]
    assert known.tolist() == [True, False, True, True]
    assert found[known].tolist() == [[97, 7], [97, 7], [99, 7]]
    asked.clear()
    found, known = rows([b"cde", b"xyz", b"abc", b"bad"])
    assert asked == [b"xyz", b"bad"], "what could not be computed is tried again"
    assert found[known].tolist() == [[99, 7], [120, 7], [97, 7]]
    assert not rows([b"bad"])[1].any()
    asked.clear()
    rows([b"abc"], name=None)
    rows([b"abc"], name="others")
    assert asked == [b"abc", b"abc"]


def test_rows_are_read_by_position_and_computed_again_where_their_file_is_damaged_or_gone(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    asked: list[int] = []

    def compute(positions):
        asked.extend(positions)
        return {p: np.full((2, 3), p + 0.5, np.float32) for p in positions if p != 4}

    keys = [bytes([number]) for number in range(7)]
    expected = np.arange(7, dtype=np.float32) + 0.5
    expected[4] = 0  # left out

    def check(rows):
        for taken in (np.arange(7), np.array([[6, 0], [4, 6]]), np.array([], np.int64)):
            found = rows[taken]
            assert (found.dtype, found.shape) == (np.float32, (*taken.shape, 2, 3))
            np.testing.assert_array_equal(found, np.broadcast_to(expected[taken][..., None, None], found.shape))

    rows = CachedRows("rows", keys, compute, chunk=3)
    assert (rows.shape, rows.dtype, len(rows)) == ((7, 2, 3), np.float32, 7)
    check(rows)
    asked.clear()

    def flip(path):
        content = bytearray(path.read_bytes())
        content[content.index(np.float32(1.5).tobytes())] ^= 1
        path.write_bytes(content)

    files = sorted((tmp_path / "rows").glob("*.npz"))
    second = next(path for path in files if np.float32(1.5).tobytes() in path.read_bytes())
    for damage, opened_before in (
        (flip, False),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), False),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), True),
        (lambda path: path.unlink(), True),
        (lambda path: shutil.rmtree(path.parent), True),
    ):
        opened = CachedRows("rows", keys, compute, chunk=3)
        if opened_before:
            check(opened)
        asked.clear()
        damage(second)
        check(opened if opened_before else CachedRows("rows", keys, compute, chunk=3))
        assert {0, 1, 2} <= set(asked)
        asked.clear()
        check(CachedRows("rows", keys, compute, chunk=3))
        assert asked == [4], "the file is whole again"
    asked.clear()
    deleted = []

    def delete(done, total):
        if done and not deleted:
            deleted.append(shutil.rmtree(tmp_path / "gone"))

    check(CachedRows("gone", keys, compute, chunk=3, progress=delete))
    assert deleted
    assert asked == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]


def test_rows_without_a_name_are_deleted_with_their_object(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    rows = CachedRows(None, [b"a", b"b"], lambda positions: {p: np.full(2, p) for p in positions}, chunk=1)
    assert rows[np.array([1, 0])].tolist() == [[1, 1], [0, 0]]
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    del rows
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot write in .*file .*set KSHOT_DATA .* and KSHOT_CACHE"):
        cached("numbers", lambda: {"a": np.zeros(2)})


def test_a_failed_write_leaves_the_old_arrays(tmp_path):
    path = tmp_path / "numbers.npz"
    write_arrays(path, {"a": np.arange(3)})

    class Unwritable:
        def __array__(self, *_, **__):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        write_arrays(path, {"a": Unwritable()})
    with np.load(path) as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def said_by(names, program, folder):
    """What processes say that call `read` of a program at once, each with its name; the lines of all."""
    forked = """
import multiprocessing, os
def say(words):  # a whole line at once
    os.write(1, f"{words}\\n".encode())
context = multiprocessing.get_context("fork")
processes = [context.Process(target=read, args=(name,)) for name in sys.argv[1]]
for process in processes:
    process.start()
for process in processes:
    process.join()
"""
    environment = os.environ | {"KSHOT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", f"import sys\n{program}{forked}", names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_processes_that_start_at_once_compute_once(tmp_path):
    program = f"""
import time, numpy as np
from pathlib import Path
from kshot.data.cache import cached
def compute():
    with open({str(tmp_path / "computed")!r}, "a") as file:
        file.write("once ")
    time.sleep(0.5)
    return {{"a": np.arange(3)}}
def read(name):
    say(cached("numbers", compute)["a"].tolist())
"""
    assert said_by("abc", program, tmp_path) == ["[0, 1, 2]"] * 3
    assert (tmp_path / "computed").read_text() == "once "


@pytest.mark.parametrize("kind", ["rows", "each"])
def test_processes_that_start_at_once_share_the_chunks(kind, tmp_path):
    program = f"""
import os, time, numpy as np
from pathlib import Path
from kshot.data.cache import CachedRows, cached_each
here = Path({str(tmp_path)!r})
def log(numbers):
    with open(here / "computed", "a") as file:
        file.writelines(f"{{os.getpid()}} {{number}}\\n" for number in numbers)
    time.sleep(0.2)
def rows(numbers):
    log(numbers)
    return {{number: np.array([number]) for number in numbers if number != 3}}
def array(number):
    log([number])
    return {{"a": np.array([number])}}
def read(name):
    (here / f"{{name}} is ready").touch()
    while len([*here.glob("* is ready")]) < 2:
        time.sleep(0.01)
    if {kind!r} == "rows":
        found = CachedRows("rows", [bytes([number]) for number in range(8)], rows, chunk=1)
        say(found[np.flatnonzero(found.known)][:, 0].tolist())
    else:
        found = cached_each([f"number-{{number}}" for number in range(8)], array)
        say([int(each["a"][0]) for each in found])
"""
    expected = [number for number in range(8) if kind == "each" or number != 3]
    assert said_by("ab", program, tmp_path) == [f"{expected}"] * 2
    computed = [line.split() for line in (tmp_path / "computed").read_text().splitlines()]
    assert len({process for process, _ in computed}) == 2
    numbers = sorted(int(number) for _, number in computed)
    assert numbers == (list(range(8)) if kind == "each" else [0, 1, 2, 3, 3, 4, 5, 6, 7]), "3 cannot be computed"


def test_a_folder_is_filled_again_where_its_table_is_missing_changed_or_unconfirmed(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    fills = []

    def fill(folder):
        fills.append(folder)
        (folder / "table.csv").write_text("a,b\n1,2\n")

    def table():
        return cached_folder("set", fill, "table.csv") / "table.csv"

    assert table().read_text() == table().read_text() == "a,b\n1,2\n"
    assert len(fills) == 1
    for damage in (
        lambda: table().write_text("a,b\n1,3\n"),
        lambda: table().unlink(),
        lambda: (tmp_path / "set" / "manifest.json").unlink(),
        lambda: (tmp_path / "set" / "manifest.json").write_text("{}"),
        lambda: shutil.rmtree(tmp_path / "set"),
    ):
        count = len(fills)
        damage()
        assert table().read_text() == "a,b\n1,2\n"
        assert len(fills) == count + 1
    assert [path.name for path in tmp_path.iterdir()] in (["set", ".set.lock"], [".set.lock", "set"])
