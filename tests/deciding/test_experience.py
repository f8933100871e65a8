"""Experience never costs a run its life, nor a user data or privacy."""

import json
import logging
import multiprocessing
import os
import sqlite3
import sys
import time
import types

import pytest
import sqlalchemy as sa
from trials import a_trial

from kshot.deciding.experience import Experience, shipped_trials
from kshot.deciding.trial import read_trials


@pytest.fixture
def file(tmp_path):
    return tmp_path / "experience.sqlite"


def own(experience):
    return experience.trials(shipped=False)


# The database


def test_trials_outlive_the_process_and_equal_ones_are_kept_once(file):
    first = Experience(str(file))
    first.add(a_trial())
    first.add(a_trial(created="2026-07-07T00:00:00+00:00"))
    first.add(a_trial(1, kind="classification", created="2025-01-01T00:00:00+00:00"))
    again = Experience(f"sqlite:///{file}")
    assert [trial.descriptors["rows"] for trial in own(again)] == [101.0, 100.0], "in the order of time"
    assert own(again)[1].created == "2026-01-02T03:04:05+00:00", "the first time is kept"
    assert own(again) == own(first)
    assert [trial.kind for trial in again.trials(kind="regression", shipped=False)] == ["regression"]
    assert again.problem is None


def test_the_place_is_that_of_the_environment_or_in_the_users_folder(file, monkeypatch):
    monkeypatch.setenv("KSHOT_EXPERIENCE", str(file))
    assert Experience().place == str(file)
    monkeypatch.delenv("KSHOT_EXPERIENCE")
    monkeypatch.setenv("XDG_DATA_HOME", str(file.parent))
    assert Experience().place.endswith("experience.sqlite")
    assert Experience("postgresql://me:secret@host/name").place == "postgresql://me:***@host/name"


def test_several_processes_add_at_once_to_a_database_that_none_has_made(file):
    def add(process):
        experience = Experience(str(file))
        for number in range(25):
            experience.add(a_trial(number + 20 * process))  # the last five are those of the next process too
        os._exit(experience.problem is not None)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add, args=(process,)) for process in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert sorted(trial.descriptors["rows"] for trial in own(Experience(str(file)))) == list(range(100, 185))


def test_what_another_process_locks_out_is_kept_and_written_later(file, caplog):
    experience = Experience(str(file))
    experience.add(a_trial(0))
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        experience.add(a_trial(1))
        assert "another process has locked it" in experience.problem
        assert len(caplog.records) == 1
        late = Experience(str(file))
        assert len(own(late)) == 1 or late.problem, "a reader is not kept out by a writer, or says so"
        other.execute("ROLLBACK")
    other.close()
    experience.add(a_trial(2))
    assert experience.problem is None
    assert len(own(Experience(str(file)))) == 3


def test_a_killed_process_leaves_whole_trials(file):
    def add_without_end():
        experience = Experience(str(file))
        number = 0
        while True:
            experience.add(a_trial(number))
            number += 1

    process = multiprocessing.get_context("fork").Process(target=add_without_end)
    process.start()
    deadline = time.monotonic() + 30
    while len(own(Experience(str(file)))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    experience = Experience(str(file))
    rows = [trial.descriptors["rows"] for trial in own(experience)]
    assert sorted(rows) == list(range(100, 100 + len(rows)))
    assert len(rows) >= 3
    assert experience.problem is None


def broken(file, how):
    """Write something that is no usable database to a file."""
    Experience(str(file)).merge(a_trial(number) for number in range(60))
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[4096:] = bytes(byte ^ 0xFF for byte in content[4096:])
    elif how == "header":
        content[:16] = bytes(16)
    elif how == "image":
        content = bytearray(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    elif how == "text":
        content = bytearray(b"date,value\n" * 200)
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped", "header", "image", "text"])
def test_a_damaged_file_is_left_as_it_is_until_all_is_forgotten(file, how, caplog):
    broken(file, how)
    before = file.read_bytes()
    experience = Experience(str(file))
    assert own(experience) == []
    experience.add(a_trial(7))
    assert own(experience) == [a_trial(7)]
    assert "damaged" in experience.problem
    assert "forget --all" in experience.problem
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "it is said once"
    assert experience.forget(kind="regression") == 1
    assert file.read_bytes() == before
    assert experience.forget(everything=True) == 0
    assert [path.read_bytes() for path in file.parent.glob("*.aside-*") if path.suffix.startswith(".aside")] == [before]
    experience.add(a_trial(8))
    assert own(Experience(str(file))) == [a_trial(8)]


@pytest.mark.parametrize("position", range(0, 100, 7))
def test_any_flipped_byte_is_noticed_or_harmless(file, position):
    known = [a_trial(number) for number in range(30)]
    Experience(str(file)).merge(known)
    content = bytearray(file.read_bytes())
    content[position * len(content) // 100] ^= 0x81
    file.write_bytes(content)
    experience = Experience(str(file))
    trials = own(experience)
    assert all(trial in known for trial in trials)
    assert len(trials) == 30 or experience.problem
    experience.add(a_trial(99))
    assert a_trial(99) in own(experience)


def test_a_damaged_row_does_not_hide_the_others(file):
    experience = Experience(str(file))
    experience.merge([a_trial(0), a_trial(1), a_trial(2)])
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE kshot_trials SET content = replace(content, '101', '107')")
        connection.execute("UPDATE kshot_trials SET content = CAST(X'fffe' AS TEXT) WHERE content LIKE '%102%'")
    connection.close()
    assert own(experience) == [a_trial(0)]
    assert "2 of 3 trials" in experience.problem


@pytest.mark.parametrize(("version", "said"), [(0, "an older version"), (2, "a newer version")])
def test_tables_of_another_version_are_left_as_they_are(file, version, said):
    Experience(str(file)).add(a_trial())
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE kshot_schema SET version = ?", (version,))
    connection.close()
    experience = Experience(str(file))
    experience.add(a_trial(1))
    assert said in experience.problem
    assert own(experience) == [a_trial(1)]
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM kshot_trials").fetchone() == (1,)
    connection.close()


def test_a_database_of_another_program_is_never_touched(file):
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE bookmarks (address TEXT)")
    connection.close()
    before = file.read_bytes()
    experience = Experience(str(file))
    experience.add(a_trial())
    assert "another program" in experience.problem
    experience.forget(everything=True)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_what_is_read_only_is_read(file, tmp_path, monkeypatch):
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.chdir(empty)
    Experience(str(file)).add(a_trial())
    experience = Experience(f"sqlite:///file:{file}?mode=ro&uri=true")
    assert own(experience) == [a_trial()]
    experience.add(a_trial(1))
    assert "readonly" in experience.problem
    assert own(experience) == [a_trial(), a_trial(1)]
    assert own(Experience(str(file))) == [a_trial()]
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    "url", ["{}/file/x.sqlite", "{}", "no-such-database://host/x", "sqlite://host:port/x", "{}/fifo"]
)
def test_a_place_that_cannot_be_used_is_said(url, tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    experience = Experience(url.format(tmp_path))
    experience.add(a_trial())
    assert own(experience) == [a_trial()]
    assert "is not used" in experience.problem
    assert experience.forget(everything=True) == 1


def test_the_package_of_a_database_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    experience = Experience("postgresql+psycopg://me:secret@host/name")
    experience.add(a_trial())
    assert "not installed" in experience.problem
    assert "secret" not in experience.problem


def test_forgetting_needs_a_condition_and_meets_all_of_them(file):
    experience = Experience(str(file))
    old = a_trial(1, created="2020-01-01T00:00:00+00:00")
    experience.merge([old, a_trial(2, data_set="waves"), a_trial(3, kind="classification")])
    for conditions in ({}, {"kind": "regression", "everything": True}):
        with pytest.raises(ValueError, match="name the trials"):
            experience.forget(**conditions)
    assert experience.forget(kind="regression", before="2021-01-01") == 1
    assert experience.forget(data_set="waves") == 1
    assert [trial.kind for trial in own(experience)] == ["classification"]
    assert experience.forget(everything=True) == 1
    assert own(Experience(str(file))) == []
    assert b"maml" not in file.read_bytes(), "nothing of what is forgotten stays in the file"


# Files


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.xz"])
def test_an_exported_file_adds_what_is_not_known(file, tmp_path, suffix):
    here, there = Experience(str(file)), Experience(str(tmp_path / "other.sqlite"))
    here.merge([a_trial(0), a_trial(1)])
    there.merge([a_trial(1), a_trial(2)])
    path = tmp_path / f"mine.{suffix}"
    assert here.export(path) == 2
    assert there.import_(path) == 1
    assert there.import_(path) == 0
    assert own(there) == sorted([a_trial(0), a_trial(1), a_trial(2)], key=lambda trial: trial.sha256), (
        "of the same time, in the order of hashes"
    )
    first = path.read_bytes()
    here.export(path)
    assert path.read_bytes() == first


def test_lines_that_cannot_be_read_are_said_and_the_others_added(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text(f"not json\n{json.dumps(a_trial().to_json())}\n[1]\n")
    experience = Experience("sqlite://")
    assert experience.import_(path) == 1
    assert own(experience) == [a_trial()]
    assert [record.getMessage() for record in caplog.records] == read_trials(path)[1]
    assert len(caplog.records) == 2


# What comes with kshot


def test_the_shipped_trials_are_small_whole_and_come_first():
    from importlib import resources

    from kshot.deciding.experience import SHIPPED

    assert len((resources.files("kshot.deciding") / SHIPPED).read_bytes()) <= 2 << 20
    trials = shipped_trials()
    assert trials
    assert len({trial.sha256 for trial in trials}) == len(trials)
    assert all(trial.data_set and trial.kind for trial in trials)
    experience = Experience("sqlite://")
    experience.add(a_trial())
    assert experience.trials() == [*trials, a_trial()]


def test_a_damaged_shipped_file_costs_a_warning(monkeypatch, caplog):
    from kshot.deciding import experience

    monkeypatch.setattr(experience.resources, "files", lambda _: types.SimpleNamespace(__truediv__=None))
    shipped_trials.cache_clear()
    try:
        assert shipped_trials() == ()
        assert "install kshot again" in caplog.text
    finally:
        shipped_trials.cache_clear()


def test_a_postgres_server_is_used_through_its_url():
    url = os.environ.get("KSHOT_TEST_POSTGRES")
    if not url:
        pytest.skip("KSHOT_TEST_POSTGRES names no server")
    experience = Experience(url)
    experience.merge([a_trial(0), a_trial(1)])
    assert experience.problem is None
    assert Experience(url).merge([a_trial(0), a_trial(2)]) == 1
    assert len(own(Experience(url))) == 3
    assert experience.forget(everything=True) == 3
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("DROP TABLE kshot_trials, kshot_schema"))
