"""What the documents say is run."""

import re
from pathlib import Path

import pytest
import yaml

import kshot
from kshot.app.spec import ImagesSpec, Spec, _ClassesSpec, load_spec, recipes

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
    blocks += re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "algorithms.md").read_text(), re.DOTALL)
    for block in blocks:
        names: dict = {}
        exec(compile(block, "documents", "exec"), names)
        if "outer" in names:
            assert all(parameter.grad.abs().sum() > 0 for parameter in names["model"].parameters())


def test_every_factory_stands_in_the_table():
    table = (ROOT / "docs" / "algorithms.md").read_text()
    factories = set(kshot.learners.__all__) - {"GradientLearner", "HeadLearner", "SupportMean", "with_warps"}
    assert all(f"`{name}`" in table for name in factories)


def test_the_documented_run_file_is_valid_and_names_every_key():
    (block,) = re.findall(r"```yaml\n(name.*?)```", (ROOT / "docs" / "run-files.md").read_text(), re.DOTALL)
    written = yaml.safe_load(block)
    spec = Spec.model_validate(written)
    assert set(written) == set(Spec.model_fields)
    for part in ("source", "learner", "pretrain", "train", "budget", "evaluate", "baselines"):
        assert set(written[part]) == set(getattr(spec, part).model_dump()), part


def test_the_documented_images_source_names_every_key_of_its_own():
    blocks = re.findall(
        r"```yaml\n(source:\n  kind: images.*?)```", (ROOT / "docs" / "run-files.md").read_text(), re.DOTALL
    )
    written = yaml.safe_load(blocks[0])["source"]
    spec = ImagesSpec.model_validate(written)
    assert set(written) == set(spec.model_dump()) - set(_ClassesSpec.model_fields)
    assert set(written["augment"]) == set(spec.augment.model_dump())


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
    import kshot
    from kshot.app.build import build_learner, build_model

    recipe = load_spec("sinusoid", ["learner={kind: " + kind + ", inner_lr: 0.01}"])
    shapes = {"inputs": [1], "targets": [1]}
    learner = build_learner(recipe, build_model(recipe, shapes, head=True), kshot.objectives.mse)
    task = kshot.tasks.sinusoids().task("val", 0)
    assert learner.predict(learner.adapt(task.support), task.query.inputs).shape == (10, 1)
