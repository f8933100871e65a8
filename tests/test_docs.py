"""What the documents say is run."""

import re
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import kshot
from kshot.app.build import build_source
from kshot.app.run import run
from kshot.app.schema import kinds
from kshot.app.spec import load_spec, parse_spec, recipes
from kshot.tasks.splitting import FORMS
from kshot.types import SPLITS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("document", ["README.md"])
def test_python_blocks_run(document, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        fewer = re.sub(r"\bsteps=\d\d\d", "steps=2", block)  # of training, which is not what is tested
        exec(compile(fewer.replace("num_tasks=100", "num_tasks=10"), document, "exec"), {})
    assert "10 tasks" in capsys.readouterr().out


FEWER = {
    "num_tasks=100": "num_tasks=3",
    "num_tasks=20": "num_tasks=3",
    "steps=20, tasks_per_step=10": "steps=2, tasks_per_step=2",
    "GroupKFold(5)": "GroupKFold(2)",
    "cv=4": "cv=2",
}


def test_blocks_on_parts_and_on_migrating_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where they write files
    migrating = (ROOT / "docs" / "migrating.md").read_text()
    blocks = re.findall(r"\*\*After\*\*\n\n```python\n(.*?)```", migrating, re.DOTALL)
    assert len(blocks) == migrating.count("**Before**") == 3
    for name in ("algorithms.md", "evaluation.md", "experience.md", "keras.md", "onnx.md", "scikit-learn.md"):
        blocks += re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)
    for block in blocks:
        names: dict = {}
        for given, smaller in FEWER.items():
            block = block.replace(given, smaller)
        exec(compile(block, "documents", "exec"), names)
        if "outer" in names:
            assert all(parameter.grad.abs().sum() > 0 for parameter in names["model"].parameters())


HUGGING_FACE = dict(part.split("\n", 1) for part in (ROOT / "docs" / "huggingface.md").read_text().split("\n## ")[1:])
NO_BASELINES = ('"rounds": 1}', '"rounds": 1}, "baselines": {"names": []}')
NEEDED = {"The Hub": "huggingface_hub", "Lightning": "lightning", "accelerate": "accelerate"}
SMALLER = {
    '"num_test_tasks": 100': '"num_test_tasks": 8',
    "num_tasks=100": "num_tasks=10",
    "split, 400": "split, 8",
    "max_steps=100": "max_steps=2",
    "in range(100)": "in range(2)",
}


@pytest.mark.parametrize("section", HUGGING_FACE)
def test_each_example_on_hugging_face_runs(section, tmp_path, monkeypatch):
    pytest.importorskip(NEEDED[section], reason=f"{NEEDED[section]} is not installed")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", HUGGING_FACE[section], re.DOTALL)
    for given, smaller in [*SMALLER.items(), NO_BASELINES]:
        block = block.replace(given, smaller)
    with warnings.catch_warnings():
        if section == "Lightning":
            warnings.simplefilter("ignore")  # of numbers of workers, and of what the machine has
        exec(compile(block, "huggingface.md", "exec"), {})


def test_every_factory_stands_in_the_table():
    table = (ROOT / "docs" / "algorithms.md").read_text()
    parts = {"GradientLearner", "Head", "HeadLearner", "Mahalanobis", "SupportMean", "generate", "with_warps"}
    factories = set(kshot.learners.__all__) - parts
    assert all(f"`{name}`" in table for name in factories)


YOUR_DATA = dict(part.split("\n", 1) for part in (ROOT / "docs" / "your-data.md").read_text().split("\n## ")[1:])
ALL_BUT_THE_DATA = {"name": "any", "model": {"kind": "mlp"}, "learner": {"kind": "protonet"}, "target": "loss <= 1"}
TINY = [
    "budget.rounds=1",
    "train.steps_per_round=2",
    "train.tasks_per_step=2",
    "evaluate={num_val_tasks: 2, num_test_tasks: 16, shots: []}",
]
TINY += ["baselines={names: []}"]


@pytest.mark.parametrize("section", [name for name, text in YOUR_DATA.items() if "```python" in text])
def test_each_example_on_your_data_runs(section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made, *further = re.findall(r"```python\n(.*?)```", YOUR_DATA[section], re.DOTALL)
    blocks = re.findall(r"```yaml\n(.*?)```", YOUR_DATA[section], re.DOTALL)
    exec(compile(made.replace(*NO_BASELINES), section, "exec"), {})
    if not blocks:
        assert "100 tasks" in capsys.readouterr().out
        return
    (block,) = blocks
    if block.startswith("name:"):
        (tmp_path / "example.yaml").write_text(block)
        spec = load_spec("example.yaml", TINY)
        report = run(spec, tmp_path / "run", console=Console(quiet=True))
        assert report["test"]
        assert report["trusted"], [audit for audit in report["audits"] if audit["result"] != "PASSED"]
    else:
        source = build_source(parse_spec(yaml.safe_dump(ALL_BUT_THE_DATA | yaml.safe_load(block)), section))
        for split in SPLITS:
            assert source.task(split, 0).support.weight.sum() > 0
    for more in further:
        exec(compile(more, section, "exec"), {})
        assert "(5 tasks" in capsys.readouterr().out


EXTENDING = (ROOT / "docs" / "extending.md").read_text()
PARTS = re.findall(r"```python\n(.*?)```", EXTENDING, re.DOTALL)
RUN_FILE, FRAGMENTS = (
    [block for block in re.findall(r"```yaml\n(.*?)```", EXTENDING, re.DOTALL) if block.startswith("name:") == whole]
    for whole in (True, False)
)


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    """A folder with the module that the document on extending writes, importable."""
    source = [block for block in PARTS if "from my_parts import" not in block]
    (tmp_path / "my_parts.py").write_text("\n\n".join(source))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_parts", None)


def test_each_part_of_the_document_on_extending_keeps_its_contract(my_parts, capsys):
    checks = [block for block in PARTS if "from my_parts import" in block]
    assert len(checks) == 6
    for block in checks:
        names: dict = {}
        exec(compile(block, "extending.md", "exec"), names)
        if "test_nearest_neighbours" in names:
            (mark,) = names["test_nearest_neighbours"].pytestmark
            assert "meta-gradient" in dict(mark.args[1])
    assert "(20 tasks)" in capsys.readouterr().out


def test_the_parts_of_the_document_on_extending_run_from_a_run_file(my_parts):
    (text,) = RUN_FILE
    (my_parts / "rings.yaml").write_text(text)
    spec = load_spec("rings.yaml", [each for each in TINY if not each.startswith("baselines")])
    report = run(spec, my_parts / "run", console=Console(quiet=True))
    assert report["trusted"]
    assert "macro_f1" in report["test"]
    assert isinstance(kshot.load(my_parts / "run").learner, sys.modules["my_parts"].NearestNeighbours)
    assert len(FRAGMENTS) == 5
    for fragment in FRAGMENTS:
        written = yaml.safe_load(text) | yaml.safe_load(fragment)
        changed = parse_spec(yaml.safe_dump(written), "extending.md").model_dump()
        for key, value in yaml.safe_load(fragment).items():
            if isinstance(changed[key], dict):  # a kind without options may be written alone
                value = {"kind": value} if isinstance(value, str) else value
                changed[key] = {name: changed[key][name] for name in value}
            assert changed[key] == value


def test_your_data_has_an_example_of_every_source_that_takes_files():
    text = (ROOT / "docs" / "your-data.md").read_text()
    built_in = {"pixels", "sinusoids", "gaussian_processes", "tabular_priors", "glyphs", "omniglot"}
    built_in |= {"omniglot_runs"}
    for kind in kinds("source"):
        assert kind in built_in or f"kind: {kind}\n" in text


def test_the_forms_of_a_cut_are_those_that_there_are():
    (block,) = re.findall(r"```yaml\n(.*?)```", YOUR_DATA["Splits"], re.DOTALL)
    assert {next(iter(yaml.safe_load(line)["split"])) for line in block.splitlines()} == set(FORMS)


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid(name):
    spec = load_spec(name)
    assert spec.name == name
    assert spec.about


def test_the_tree_in_the_readme_names_what_there_is():
    tree = re.search(r"```\nkshot/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    words = set(re.findall(r"[\w*]+\.(?:py|yaml)", tree))
    files = {path.name for path in (ROOT / "kshot").rglob("*.py")} | {"zoo.py", "*.yaml"}
    assert words <= files
    rooms = {path.name for path in (ROOT / "kshot").iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert all(f"  {room}/" in tree for room in rooms)


def test_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
