"""Files are written whole, checked when read, and folders have one owner."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from kshot.app.folder import free_folder
from kshot.files import (
    PART,
    DamagedFile,
    append_line,
    is_empty,
    owned,
    read_json,
    read_lines,
    read_signed,
    whole_file,
    write_json,
    write_signed,
    write_text,
)


def flipped(content, offset):
    changed = bytearray(content)
    changed[offset] ^= 1 << offset % 8
    return bytes(changed)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_it_is_whatever_the_platform(tmp_path):
    write_text(tmp_path / "new" / "a", "é\r\n\n")
    assert (tmp_path / "new" / "a").read_bytes() == "é\r\n\n".encode()
    mask = os.umask(0o022)
    os.umask(mask)
    assert (tmp_path / "new" / "a").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("kind", ["json", "signed", "lines"])
def test_every_flipped_bit_is_found_or_changes_no_value(tmp_path, kind):
    path = tmp_path / "file"
    values = {"α": [1.5, -2e-9, None], "b": {"3": True}, "text": "[/x] \u2028"}
    write, read = {
        "json": (lambda: write_json(path, values), lambda: read_json(path)),
        "signed": (lambda: write_signed(path, "name: glyphs\nseed: 3\n"), lambda: read_signed(path)),
        "lines": (lambda: append_lines(path, [values] * 3), lambda: read_lines(path)),
    }[kind]
    write()
    content, expected = path.read_bytes(), read()
    unseen, unnamed = [], 0
    for offset in range(len(content)):
        path.write_bytes(flipped(content, offset))
        try:
            found = read()
        except DamagedFile as error:
            unnamed += str(path) not in str(error)
            continue
        if kind == "lines":
            rows, checks, damaged = found
            assert all(row == values for row in rows)
            assert damaged or checks in (expected.checks, expected.checks[:2])  # the last may have been cut short
        elif found != expected:
            unseen.append(offset)
    assert unnamed == 0
    # Only a flip that destroys the mark of a signed file makes it a file without a checksum, which a person may write.
    assert all(kind == "signed" and offset < len(b"# sha256: ") for offset in unseen)


def append_lines(path, rows, after=""):
    for values in rows:
        after = append_line(path, values, after)
    return after


def test_a_line_cut_short_by_a_kill_is_no_damage_and_a_lost_one_is(tmp_path):
    path, rows = tmp_path / "log", [{"step": 1}, {"round": {"val": {"mse": 1.5}}, "step": 2}, {"step": 3}]
    first = append_lines(path, rows[:1])
    start, last = path.read_bytes(), append_lines(path, rows[1:2], first)
    whole, second = path.read_bytes(), path.read_bytes()[len(start) :]
    for length in range(len(second) - 1):
        path.write_bytes(start + second[:length])
        assert read_lines(path)[::2] == (rows[:1], []), length
        append_lines(path, rows[2:], first)
        assert read_lines(path)[::2] == ([rows[0], rows[2]], []), length
    path.write_bytes(whole[:-1])  # only the line feed is missing
    append_lines(path, rows[2:], last)
    assert read_lines(path)[::2] == (rows, [])
    lines = path.read_bytes().splitlines(keepends=True)
    for lost in (0, 1):
        path.write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
        assert read_lines(path).damaged == [lost + 1]
        path.write_bytes(b"".join([*lines[:lost], lines[lost][:-3], *lines[lost + 1 :]]))
        assert read_lines(path).damaged


def test_a_signed_text_that_is_cut_short_anywhere_is_found(tmp_path):
    path, text = tmp_path / "run.yaml", "name: glyphs\nseed: 3\nbudget: {rounds: 2}\n"
    write_signed(path, text)
    assert read_signed(path) == (text, True)
    content = path.read_bytes()
    for length in range(content.index(b"\n"), len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFile, match=r"run\.yaml does not match the checksum in its first line"):
            read_signed(path)
    path.write_text(text)
    assert read_signed(path) == (text, False)


def test_values_that_python_writes_otherwise_than_json_are_unchanged(tmp_path):
    write_json(tmp_path / "a", {"numbers": (1, 2), "by": {10: "a", 9: "b"}, "none": float("nan")})
    read = read_json(tmp_path / "a")
    assert (read["numbers"], read["by"]) == ([1, 2], {"10": "a", "9": "b"})
    assert np.isnan(read["none"])


HOLD = """
import sys, time
from pathlib import Path
from kshot.files import owned
with owned(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_owner_and_that_of_a_dead_process_is_free(tmp_path):
    run = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "ready\n"
    with pytest.raises(ValueError, match=rf"run is being written by process {other.pid} on .* since"), owned(run):
        pass
    other.kill()
    other.communicate()
    with owned(run):
        assert is_empty(run)
        (run / "spec.yaml").write_text("")
        assert not is_empty(run)


def _free(parent, start):
    time.sleep(max(0.0, start - time.time()))
    return [free_folder(parent, "a").name for _ in range(20)]


def test_processes_that_start_together_get_folders_of_their_own(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        names = list(itertools.chain(*pool.starmap(_free, [(tmp_path, time.time() + 0.3)] * 4)))
    assert len(set(names)) == len(names) == 80


def test_what_a_killed_process_leaves_is_no_file(tmp_path):
    (tmp_path / f".report.json.0123{PART}").write_text("{")
    with pytest.raises(DamagedFile, match=r"report\.json is missing"):
        read_json(tmp_path / "report.json")
