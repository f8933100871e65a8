"""What the documents say is run."""

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from rich.console import Console

import kshot
from kshot.app.build import build_source
from kshot.app.run import run
from kshot.app.spec import (
    CorpusSpec,
    FromHfSpec,
    GaussianProcessesSpec,
    ImagesSpec,
    MixtureSpec,
    OneSourceSpec,
    PixelsSpec,
    SinusoidsSpec,
    Spec,
    TabularPriorsSpec,
    TextSpec,
    _ClassesSpec,
    load_spec,
    parse_spec,
    recipes,
)
from kshot.tasks.splitting import FORMS
from kshot.types import SPLITS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("document", ["README.md"])
def test_python_blocks_run(document, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, document, "exec"), {})
    assert "100 tasks" in capsys.readouterr().out


def test_blocks_on_parts_and_on_migrating_run():
    migrating = (ROOT / "docs" / "migrating.md").read_text()
    blocks = re.findall(r"\*\*After\*\*\n\n```python\n(.*?)```", migrating, re.DOTALL)
    assert len(blocks) == migrating.count("**Before**") == 3
    for name in ("algorithms.md", "evaluation.md"):
        blocks += re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)
    for block in blocks:
        names: dict = {}
        exec(compile(block, "documents", "exec"), names)
        if "outer" in names:
            assert all(parameter.grad.abs().sum() > 0 for parameter in names["model"].parameters())


def test_every_factory_stands_in_the_table():
    table = (ROOT / "docs" / "algorithms.md").read_text()
    parts = {"GradientLearner", "Head", "HeadLearner", "Mahalanobis", "SupportMean", "generate", "with_warps"}
    factories = set(kshot.learners.__all__) - parts
    assert all(f"`{name}`" in table for name in factories)


def test_the_documented_run_file_is_valid_and_names_every_key():
    (block,) = re.findall(r"```yaml\n(name.*?)```", (ROOT / "docs" / "run-files.md").read_text(), re.DOTALL)
    written = yaml.safe_load(block)
    spec = Spec.model_validate(written)
    assert set(written) == set(Spec.model_fields)
    for part in ("source", "learner", "pretrain", "train", "budget", "evaluate", "baselines"):
        assert set(written[part]) == set(getattr(spec, part).model_dump()), part


@pytest.mark.parametrize(
    "kind",
    [ImagesSpec, TextSpec, CorpusSpec, FromHfSpec, SinusoidsSpec, GaussianProcessesSpec, TabularPriorsSpec, PixelsSpec],
)
def test_a_documented_source_names_every_key_of_its_own(kind):
    (name,) = get_args(kind.model_fields["kind"].annotation)
    document = (ROOT / "docs" / "run-files.md").read_text()
    (block,) = re.findall(rf"```yaml\n(source:\n  kind: {name}\n.*?)```", document, re.DOTALL)
    written = yaml.safe_load(block)["source"]
    spec = kind.model_validate(written)
    shared = set(_ClassesSpec.model_fields) if issubclass(kind, _ClassesSpec) else set()
    assert set(written) == set(spec.model_dump()) - shared
    for key in {"augment", "reading"} & set(written):
        assert set(written[key]) == set(getattr(spec, key).model_dump())


@pytest.mark.parametrize("kind", [TextSpec, CorpusSpec])
def test_a_source_takes_the_same_in_a_run_file_as_in_python(kind):
    (name,) = get_args(kind.model_fields["kind"].annotation)
    arguments = inspect.signature(getattr(kshot.sources, name)).parameters
    assert set(arguments) - {"seed"} == set(kind.model_fields) - {"kind"}
    for key, argument in arguments.items():
        if key not in ("path", "seed", "reading"):
            assert kind.model_fields[key].default == argument.default, key


YOUR_DATA = dict(part.split("\n", 1) for part in (ROOT / "docs" / "your-data.md").read_text().split("\n## ")[1:])
ALL_BUT_THE_DATA = {"name": "any", "model": {"kind": "mlp"}, "learner": {"kind": "protonet"}, "target": "loss <= 1"}
TINY = [
    "budget.rounds=1",
    "train.steps_per_round=2",
    "train.tasks_per_step=2",
    "evaluate={num_val_tasks: 2, num_test_tasks: 2}",
]
TINY += ["baselines={names: []}"]


@pytest.mark.parametrize("section", [name for name, text in YOUR_DATA.items() if "```python" in text])
def test_each_example_on_your_data_runs(section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made, *further = re.findall(r"```python\n(.*?)```", YOUR_DATA[section], re.DOTALL)
    (block,) = re.findall(r"```yaml\n(.*?)```", YOUR_DATA[section], re.DOTALL)
    exec(compile(made, section, "exec"), {})
    if block.startswith("name:"):
        (tmp_path / "example.yaml").write_text(block)
        spec = load_spec("example.yaml", TINY)
        report = run(spec, tmp_path / "run", console=Console(quiet=True))
        assert report["test"]
        assert report["trusted"]
    else:
        source = build_source(parse_spec(yaml.safe_dump(ALL_BUT_THE_DATA | yaml.safe_load(block)), section))
        for split in SPLITS:
            assert source.task(split, 0).support.weight.sum() > 0
    for more in further:
        exec(compile(more, section, "exec"), {})
        assert "(5 tasks)" in capsys.readouterr().out


def test_your_data_has_an_example_of_every_source_that_takes_files():
    text = (ROOT / "docs" / "your-data.md").read_text()
    built_in = {"pixels", "sinusoids", "gaussian_processes", "tabular_priors", "glyphs", "omniglot"}
    for source in (*get_args(OneSourceSpec), MixtureSpec):
        (kind,) = get_args(source.model_fields["kind"].annotation)
        assert kind in built_in or f"kind: {kind}\n" in text


def test_the_forms_of_a_cut_are_those_that_there_are():
    (block,) = re.findall(r"```yaml\n(.*?)```", YOUR_DATA["How the cut is made"], re.DOTALL)
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


@pytest.mark.parametrize(
    "kind", ["meta_sgd", "meta_curvature", "alfa", "anil", "boil", "fomaml", "reptile", "maml_pp", "imaml"]
)
def test_each_learner_of_a_run_file_is_built_as_its_factory_says(kind):
    from kshot.app.build import build_learner, build_model

    recipe = load_spec("sinusoid", ["learner={kind: " + kind + ", inner_lr: 0.01}"])
    shapes = {"inputs": [1], "targets": [1], "objective": "mse"}
    learner = build_learner(recipe, build_model(recipe, shapes, head=True), shapes)
    task = kshot.sources.sinusoids().task("val", 0)
    assert learner.predict(learner.adapt(task.support), task.query.inputs).shape == (10, 1)


HEADS = ["protonet", "r2d2", "logistic_regression", "metaoptnet", "matching_net", "relation_net", "feat", "frn", "pmf"]
HEADS += ["simpleshot", "plda", "baseline_pp", "laplacian_shot", "transductive_fine_tune"]


@pytest.mark.parametrize("kind", HEADS)
def test_each_head_of_a_run_file_takes_what_its_factory_does_and_is_built_for_maps_and_vectors(kind):
    from kshot.app.build import build_learner, build_model, has_head

    rate = ", inner_lr: 0.01, steps: 1" if kind in ("pmf", "baseline_pp", "transductive_fine_tune") else ""
    arguments = inspect.signature(getattr(kshot.learners, kind)).parameters
    for model, inputs in (("{kind: conv4, channels: 4}", [1, 20, 20]), ("{kind: mlp, hidden: [6]}", [7])):
        recipe = load_spec("glyphs", ["learner={kind: " + kind + rate + "}", f"model={model}"])
        options = recipe.learner.model_dump(exclude={"kind"})
        assert set(arguments) - set(options) <= {"embedding", "objective", "features", "relation"}
        for key in recipe.learner.model_fields_set ^ set(recipe.learner.model_dump()):
            assert options[key] == arguments[key].default, key
        shapes = {"inputs": inputs, "targets": [5], "objective": "classification"}
        assert not has_head(recipe)
        learner = build_learner(recipe, build_model(recipe, shapes, head=False), shapes)
        support = kshot.Batch.of(torch.randn(6, *inputs), torch.arange(6) % 3, ways=3)
        assert learner.predict(learner.adapt(support), torch.randn(4, *inputs)).shape == (4, 3)
