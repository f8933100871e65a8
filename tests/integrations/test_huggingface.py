"""A run goes to the Hub and back: the same predictions, checked files, nobody's code, and a card with its figures."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import kshot
from kshot.app.doctor import diagnose
from kshot.app.spec import parse_spec
from kshot.evaluation.baselines import baseline
from kshot.evaluation.report.verdict import verdict_of
from kshot.files import DamagedFile, read_json, sha256_of, write_json, write_signed

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

from kshot.integrations.huggingface import HubRun  # noqa: E402  after the check
from kshot.integrations.huggingface.card import model_card  # noqa: E402  after the check
from kshot.integrations.huggingface.saved import without_places  # noqa: E402  after the check

TINY = {
    "train": {"steps_per_round": 2, "tasks_per_step": 2},
    "budget": {"rounds": 1},
    "evaluate": {"num_val_tasks": 4, "num_test_tasks": 8, "shots": [1]},
}
WORDS = [f"secretword{number}" for number in range(12)]
TOPICS = ["travel", "money", "music", "sport", "food", "law", "art", "health", "space", "sea", "home", "war"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on texts, whose file lies in a folder that is nobody's business."""
    place = tmp_path_factory.mktemp("private-place")
    rows = [f"please {word} about {topic} {i},{topic}" for word, topic in zip(WORDS, TOPICS) for i in range(6)]
    (place / "intents.csv").write_text("\n".join(["text,label", *rows]))
    source = {"kind": "text", "path": str(place / "intents.csv"), "ways": 2, "queries": 2, "features": "characters"}
    kshot.run(
        {
            "name": "intents",
            "about": "Intents of sentences.",
            "source": source | {"width": 64},
            "model": {"kind": "mlp", "hidden": [8]},
            "learner": {"kind": "protonet"},
            "target": "accuracy >= 0.99",
            "baselines": {"names": ["centroid"]},
            **TINY,
        },
        place / "run",
    )
    return place / "run"


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "intents"
    HubRun(kshot.load(folder), license="cc-by-4.0").save_pretrained(out)
    return out


@pytest.fixture
def examples(tmp_path):
    (tmp_path / "new.csv").write_text("text,label\nplay a song,yes\nstop it,no\nplay more,yes\nnever,no\n")
    return tmp_path / "new.csv"


def answers(run, examples):
    return run.predict(run.adapt(examples), examples)


def test_what_is_opened_predicts_as_the_run_that_was_saved(folder, saved, examples):
    before, hub_run = kshot.load(folder), HubRun.from_pretrained(saved)
    assert hub_run.license == "cc-by-4.0"
    expected = answers(before, examples)
    assert answers(hub_run.run, examples) == expected
    assert answers(kshot.load(saved), examples) == expected  # it is a run folder, for all commands
    assert not diagnose(saved).damaged
    assert hub_run.run.reads == before.reads  # so that a later evaluation knows that the test tasks were read
    before.save_state(saved.parent / "state", before.adapt(examples))
    assert hub_run.run.predict(hub_run.run.load_state(saved.parent / "state"), examples) == expected


def test_the_tools_of_the_hub_find_the_weights(saved):
    run = HubRun.from_pretrained(saved).run
    expected = {name: value.clone() for name, value in run.learner.state_dict().items()}
    for parameter in run.learner.parameters():
        torch.nn.init.zeros_(parameter)
    huggingface_hub.load_torch_model(run.learner, saved, strict=True)
    assert all(torch.equal(value, expected[name]) for name, value in run.learner.state_dict().items())


def test_what_is_saved_can_be_saved_again(saved, tmp_path):
    HubRun.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for name in ("spec.yaml", "shapes.json", "encoding.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
    assert "no report" in (tmp_path / "again" / "README.md").read_text()


def test_a_threshold_goes_along_and_the_device_of_the_training_does_not(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    write_json(tmp_path / "run" / "rejection.json", {"score": "energy", "threshold": 1.0})
    run = kshot.load(tmp_path / "run")
    HubRun(replace(run, spec=run.spec.model_copy(update={"device": "cuda:7"}))).save_pretrained(tmp_path / "hub")
    assert read_json(tmp_path / "hub" / "rejection.json") == {"score": "energy", "threshold": 1.0}
    assert HubRun.from_pretrained(tmp_path / "hub").run.spec.device == "auto"


def test_a_folder_that_is_not_empty_is_left_alone(folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        HubRun(kshot.load(folder)).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_no_row_and_no_path_of_the_user_goes_along(saved, folder):
    contents = {path.name: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    assert {*contents} == {
        "README.md", "config.json", "encoding.json", "events.jsonl", "meta.json", "model.safetensors.index.json",
        "shapes.json", "spec.yaml", "weights.safetensors",
    }  # fmt: skip
    for content in contents.values():
        assert b"secretword" not in content
        assert b"private-place" not in content
    assert b"path: intents.csv" in contents["spec.yaml"]


def test_databases_and_paths_at_any_depth_are_left_out():
    source = {
        "kind": "mixture",
        "sources": {
            "a": {"path": "postgresql://me@host/sales", "reading": {"query": "select secret", "separator": ";"}},
            "b": {"path": ["/data/x.csv", "y/z.csv"], "split": {"files": {"train": "lists/train.txt"}}},
            "c": {"path": "$SALES", "encoder": "package:small", "pattern": "/a/b"},
        },
    }
    assert without_places(source)["sources"] == {
        "a": {"path": "data that are no file", "reading": {"separator": ";"}},
        "b": {"path": ["x.csv", "z.csv"], "split": {"files": {"train": "train.txt"}}},
        "c": {"path": "data that are no file", "encoder": "package:small", "pattern": "/a/b"},
    }


@pytest.mark.parametrize("name", ["spec.yaml", "shapes.json", "encoding.json", "weights.safetensors", "config.json"])
def test_a_damaged_file_is_named(saved, tmp_path, name):
    HubRun.from_pretrained(saved).save_pretrained(tmp_path / "hub")
    (path,) = (tmp_path / "hub").rglob(name)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=name):
        HubRun.from_pretrained(tmp_path / "hub")


def test_a_file_of_another_run_is_refused(saved, tmp_path):
    HubRun.from_pretrained(saved).save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "spec.yaml"
    path.write_text(path.read_text().partition("\n")[2].replace("seed: 0", "seed: 1"))
    HubRun.from_pretrained(tmp_path / "hub")  # changed by hand, as its missing checksum says
    write_signed(path, path.read_text())
    with pytest.raises(DamagedFile, match="of another run"):
        HubRun.from_pretrained(tmp_path / "hub")


@pytest.fixture
def foreign(saved, tmp_path, monkeypatch):
    """A copy of the folder, and a module that notes when it is imported."""
    HubRun.from_pretrained(saved).save_pretrained(tmp_path / "hub")
    (tmp_path / "their_parts.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nx = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "hub"
    sys.modules.pop("their_parts", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: protonet", "kind: their_parts:x"),
        ("kind: mlp", "kind: their_parts:x"),
        ("kind: text", "kind: their_parts:x"),
        ("objective: null", "objective: their_parts:x"),
        ("policy: null", "policy: their_parts:x"),
        ("  - centroid", "  - their_parts:x"),
        ("kind: protonet", "kind: kshot.files:write_text"),
        ("kind: protonet", "kind: kshot.evaluation.baselines:baseline"),
    ],
)
def test_a_run_file_that_names_code_is_refused_before_the_code_is_imported(foreign, old, new):
    path = foreign / "spec.yaml"
    text = path.read_text().partition("\n")[2]
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=r"would import and run code.*allow_import=True"):
        HubRun.from_pretrained(foreign)
    assert not (foreign.parent / "ran").exists()


def test_an_objective_or_a_configuration_that_names_code_is_refused_too(foreign):
    config = foreign / "config.json"
    write_json(config, read_json(config) | {"allow_import": True, "run": 1, "config": {}})
    HubRun.from_pretrained(foreign)
    shapes = foreign / "shapes.json"
    write_json(shapes, read_json(shapes) | {"objective": "their_parts:x"})
    with pytest.raises(ValueError, match="would import their_parts"):
        HubRun.from_pretrained(foreign)
    assert not (foreign.parent / "ran").exists()


def test_a_run_with_a_learner_of_the_user_opens_if_they_say_so(folder, tmp_path, monkeypatch, examples):
    (tmp_path / "our_parts.py").write_text(
        "import kshot\nfrom kshot.supplied import Embedding\nfrom kshot.objectives import Objective\n\n\n"
        "def ours(model: Embedding, *, objective: Objective) -> kshot.Learner:\n"
        "    return kshot.protonet(model, objective=objective)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = kshot.load(folder)
    text = yaml.safe_dump(run.spec.model_dump() | {"learner": {"kind": "our_parts:ours"}})
    HubRun(replace(run, spec=parse_spec(text, "ours"))).save_pretrained(tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "imports `our_parts`" in card
    assert "allow_import=True" in card
    with pytest.raises(ValueError, match="allow_import=True"):
        HubRun.from_pretrained(tmp_path / "hub")
    opened = HubRun.from_pretrained(tmp_path / "hub", allow_import=True).run
    assert answers(opened, examples) == answers(run, examples)
    sys.modules.pop("our_parts")


def test_a_baseline_is_not_given_away(folder, tmp_path):
    run = kshot.load(folder)
    run.learner.inside = baseline("ridge", kshot.objectives.mse)
    with pytest.raises(ValueError, match="baseline ridge, which is fitted to the training data"):
        HubRun(run).save_pretrained(tmp_path / "hub")


def test_the_card_says_what_the_report_says(saved, folder):
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "kshot"
    assert "meta-learning" in card.data.tags
    report = kshot.load(folder).report
    assert f"| protonet | {report['test']['accuracy']['mean']:.3f}" in card.text
    assert "| centroid |" in card.text
    assert verdict_of(report) in card.text
    assert "Intents of sentences." in card.text
    assert "- classes: 8 train, 2 val, 2 test" in card.text
    assert not any(topic in card.text for topic in ("travel", "money", "intents.csv"))
    code = card.text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert len(code.splitlines()) <= 5


def test_the_card_says_when_a_simple_baseline_is_as_good(folder):
    run = kshot.load(folder)
    figure = {"accuracy": {"mean": 0.9, "ci95": 0.02, "num_tasks": 100}}
    report = {"metric": "accuracy", "test": figure, "baselines": {"knn": figure}, "outcome": "TARGET_MET"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run), "report", report)
        card = model_card(run, None)
    assert "The simple baseline is as good here" in card.text
    assert "ask before you use" in card.text
    assert "license" not in card.data.to_dict()


class Uploads:
    """What takes the place of `HfApi`: it keeps the folder of each repository."""

    def __init__(self, hub: Path):
        self.hub = hub

    def __call__(self, token=None):
        return self

    def create_repo(self, repo_id, **options):
        return type("Url", (), {"repo_id": repo_id})

    def upload_folder(self, *, repo_id, folder_path, **options):
        blobs = self.hub / "blobs"
        for path in sorted(Path(folder_path).rglob("*")):
            if path.is_file():  # as the cache of the Hub has them: links to files that are named by their hash
                blob = blobs / sha256_of(path)
                blob.parent.mkdir(parents=True, exist_ok=True)
                blob.write_bytes(path.read_bytes())
                link = self.hub / repo_id / path.relative_to(folder_path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(blob)
        return f"https://hub.example/{repo_id}/commit/1"


def test_a_repository_is_uploaded_and_opened_by_its_name(folder, examples, tmp_path, monkeypatch):
    uploads = Uploads(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", uploads)
    url = HubRun(kshot.load(folder), license="mit").push_to_hub("me/intents", private=True)
    assert url == "https://hub.example/me/intents/commit/1"
    assert 'from_pretrained("me/intents")' in (tmp_path / "hub/me/intents/README.md").read_text()

    asked = {}

    def download(repo_id, **options):
        asked.update(options)
        return str(tmp_path / "hub" / repo_id)

    monkeypatch.setattr("kshot.integrations.huggingface.hub.snapshot_download", download)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download",
        lambda repo_id, filename, **_: f"{tmp_path}/hub/{repo_id}/{filename}",
    )
    hub_run = HubRun.from_pretrained("me/intents", revision="v1")
    assert hub_run.license == "mit"
    assert asked["revision"] == "v1"
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", ".py")) for pattern in asked["allow_patterns"])
    assert answers(hub_run.run, examples) == answers(kshot.load(folder), examples)


def test_the_weights_are_the_only_tensors_and_the_index_names_them(saved):
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {
        path.relative_to(saved).as_posix() for path in saved.rglob("*.safetensors")
    }
