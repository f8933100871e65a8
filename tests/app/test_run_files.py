"""docs/run-files.md against the schema."""

import re
from pathlib import Path

import pytest
import yaml

from kshot import supplied
from kshot.annotations import Supplied
from kshot.app.schema import check_part, describe, kinds, our_factory
from kshot.app.spec import Spec

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "run-files.md").read_text()
SECTIONS = dict(part.split("\n", 1) for part in DOCUMENT.split("\n## ")[1:])
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)]
SHARED = {
    "ways",
    "shots",
    "queries",
    "train_ways",
    "test_ways",
    "train_queries",
    "imbalance",
    "label_noise",
    "on_too_few",
}
"""Keys of sources of classes, which stand once."""


def sources() -> dict[str, dict]:
    return {block["source"]["kind"]: block["source"] for block in BLOCKS if set(block) == {"source"}}


def test_the_documented_run_file_is_valid_and_names_every_key():
    written = dict(BLOCKS[0])
    assert written.pop("search") is None  # it is for `kshot sweep`, which takes it out
    spec = Spec.model_validate(written)
    assert set(written) == set(Spec.model_fields)
    for part in ("source", "learner", "pretrain", "train", "budget", "evaluate", "baselines"):
        assert set(written[part]) == set(getattr(spec, part).model_dump()), part


@pytest.mark.parametrize("kind", sorted(set(kinds("source")) - {"glyphs", "episodes", "movielens", "omniglot_runs"}))
def test_a_documented_source_is_valid_and_names_every_key(kind):
    written = sources()[kind]
    keys = set(check_part("source", written).model_dump())
    assert keys - set(written) <= (SHARED if "ways" in keys else set())
    for key in {"augment", "reading"} & set(written):
        part = getattr(check_part("source", written), key)
        assert part is None or set(written[key]) == set(part.model_dump())


def test_every_source_is_documented():
    assert all(f"`{kind}`" in SECTIONS["Sources"] for kind in kinds("source"))


@pytest.mark.parametrize("role", ["model", "learner"])
def test_models_and_learners_are_documented_with_their_defaults(role):
    (block,) = re.findall(r"```yaml\n(.*?)```", SECTIONS[f"{role.title()}s"], re.DOTALL)[:1]
    written = yaml.safe_load(block)
    assert set(written) == set(kinds(role))
    for kind, options in written.items():
        part = check_part(role, {"kind": kind} | options)
        dumped = part.model_dump()
        for inner in dumped.get("among", {}).values():
            if inner["model"] is None:  # it has the run's model, or none
                del inner["model"]
        assert dumped == {"kind": kind} | options
        for argument in describe(our_factory(role, kind)):
            if argument.key and not argument.required:
                default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
                assert options[argument.key] == default, (kind, argument.key)


def test_what_a_run_supplies_is_documented():
    rows = dict(re.findall(r"\| `(\w+)` \| (.*?) \|\n", SECTIONS["Parts of your own"]))
    names = {
        name: marker.value
        for name, value in vars(supplied).items()
        for marker in getattr(value, "__metadata__", ())
        if isinstance(marker, Supplied)
    }
    assert rows == names
    assert set(names.values()) == {member.value for member in Supplied}


def test_the_example_of_parts_of_ones_own_is_taken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS["Parts of your own"], re.DOTALL)
    (tmp_path / "my_documented_parts.py").write_text(code)
    parts = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", SECTIONS["Parts of your own"], re.DOTALL)[0])
    for role, part in parts.items():
        assert check_part(role, part | {"kind": part["kind"].replace("my_parts", "my_documented_parts")})
