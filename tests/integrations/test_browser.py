"""The page of a run computes in a browser, from disk and offline, what kshot computes."""

import base64
import html
import io
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from chromium import CHROMIUM, browser_page
from PIL import Image

import kshot
from kshot.app import inputs
from kshot.app.build import shapes_of
from kshot.data.images.decode import decode
from kshot.data.tables.columns import Column, Columns
from kshot.integrations.browser import export_page, runtime
from kshot.integrations.browser.description import describe
from kshot.integrations.browser.page import render
from kshot.sources.image_files import ImagePreprocessor

PACKAGE = Path(os.environ.get("KSHOT_ONNXRUNTIME_WEB") or runtime.package())  # of the user's own cache
LIMIT = 1e-4
NAMES = "<img src=x onerror=alert(1)>", "</script><b>bold</b>", "дом & 'Haus'"
MISSING = [
    f"there is no {what}" for there, what in ((CHROMIUM, "Chromium"), (PACKAGE.exists(), PACKAGE.name)) if not there
]
FEW = {"num_val_tasks": 5, "num_test_tasks": 5}
BRIEF = {"evaluate": FEW, "baselines": {"names": []}, "budget": {"rounds": 1}}
ABOUT = {"name": "<i>run</i>", "learner": "protonet", "out_of_scope": "out of scope", "reject": None}
IMAGES = {"kind": "images", "channels": 1, "size": 28, "paper": "black"}
TARGETS = {"kind": "classes", "ways": None, "classes": [], "columns": ["label"]}


def in_a_browser(test):
    return pytest.mark.slow(pytest.mark.skipif(bool(MISSING), reason=", ".join(MISSING))(test))


def rows(seed=0, count=240):
    """A table with each kind of column that a page reads, with gaps, and more words than are one-hot."""
    random = np.random.default_rng(seed)
    shop = np.arange(count) % 20
    visitors = random.uniform(0, 10, count).round(3)
    known = random.random(count) > 0.1
    return pl.DataFrame(
        {
            "shop": shop,
            "visitors": visitors,
            "wind": [value if there else None for value, there in zip(random.normal(0, 3, count).round(2), known)],
            "open": random.choice(["yes", "no"], count),
            "weather": [w if there else None for w, there in zip(random.choice(["sun", "rain"], count), known[::-1])],
            "town": [f"town {number}" for number in random.integers(0, 40, count)],
            "offers": random.choice(["tea|cake", "tea", "cake; bread", "bread"], count),
            "sales": (5 + shop / 4 * visitors + random.normal(0, 1, count)).round(3),
        }
    )


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """The folder of a run on a table, with examples and queries as CSV."""
    folder = tmp_path_factory.mktemp("shops")
    source = {"kind": "table", "path": rows(), "group": "shop", "target": "sales", "shots": 4, "queries": 6}
    source["kinds"] = {"offers": "set", "open": "boolean"}
    kshot.run(
        {"source": source, "learner": {"kind": "partial_pooling"}, "target": "mse <= 100"} | BRIEF, folder / "run"
    )
    rows(1, 12).drop("shop").write_csv(folder / "few.csv")
    new = rows(2, 9).drop("shop", "sales").with_columns(pl.lit('a "word", unseen').alias("weather"))
    pl.concat([rows(2, 9).drop("shop", "sales"), new]).write_csv(folder / "new.csv")
    return folder


def test_the_runtime_is_verified_and_its_absence_said_with_the_command(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"there is no .*-{runtime.VERSION}.tgz: .* `npm pack onnxruntime-web@"):
        runtime.runtime_files()
    other = tmp_path / "other.tgz"
    other.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"other.tgz is not onnxruntime-web .*: its integrity is sha512-.* fetch that"):
        runtime.runtime_files(other)
    dist = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    with pytest.raises(ValueError, match="it has no ort.wasm.bundle.min.mjs; fetch"):
        runtime.runtime_files(dist.parent)
    for name in runtime.FILES:
        (dist / name).write_bytes(b"changed")
    with pytest.raises(ValueError, match="its ort.wasm.bundle.min.mjs has another SHA-256"):
        runtime.runtime_files(dist.parent)

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in runtime.FILES:
            archive.add(dist / name, f"package/dist/{name}")
    other.write_bytes(packed.getvalue())
    digest = runtime.hashlib.sha512(packed.getvalue()).digest()
    monkeypatch.setattr(runtime, "INTEGRITY", "sha512-" + base64.b64encode(digest).decode())
    of_changed = runtime.hashlib.sha256(b"changed").hexdigest()
    monkeypatch.setattr(runtime, "FILES", dict.fromkeys(runtime.FILES, of_changed))
    assert set(runtime.runtime_files(other)) == set(runtime.runtime_files(dist)) == set(runtime.FILES)


@pytest.mark.skipif(not PACKAGE.exists(), reason=f"there is no {PACKAGE.name}")
def test_the_package_of_npm_has_the_known_hashes():
    assert set(runtime.runtime_files(PACKAGE)) == set(runtime.FILES)


def test_a_page_names_the_hashes_of_its_scripts_and_refuses_all_connections():
    packed = {"runtime": "eA==", "wasm": "eA==", "adapt": "eA==", "predict": "eA=="}
    page = render(ABOUT | {"inputs": IMAGES, "targets": TARGETS | {"classes": [*NAMES]}}, packed)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(runtime.hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert len(scripts) == 5
    assert policy.startswith("default-src 'none'; script-src " + " ".join(f"'sha256-{each}'" for each in hashes))
    assert "unsafe-inline" not in policy
    assert "connect-src" not in policy
    assert not re.search(r'(src|href)="', page)
    assert "<h1>&lt;i&gt;run&lt;/i&gt;</h1>" in page
    data = re.search(r'<script type="application/json" id="about">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)["targets"]["classes"] == list(NAMES)


def opened(source, kind, **changed):
    """What `describe` reads of a run on a source."""
    part = SimpleNamespace(kind=kind)
    spec = SimpleNamespace(name="run", learner=part, source=part, reject=None)
    about = {"path": Path("runs/x"), "spec": spec, "shapes": shapes_of(source), "preprocessor": source.preprocessor}
    return SimpleNamespace(**(about | changed))


def test_a_page_says_what_it_cannot_read():
    kinds = {"offers": "set", "open": "boolean"}
    source = kshot.sources.table(rows(), group="shop", target="sales", shots=4, queries=6, kinds=kinds)
    run = opened(source, "table")
    about = describe(run)
    found = {column["name"]: column["kind"] for column in about["inputs"]["columns"]}
    assert found == {"visitors": "number", "wind": "number", "weather": "category", "town": "category"} | kinds
    assert about["targets"]["columns"] == ["sales"]
    columns = Columns([*run.preprocessor.columns.columns, Column("day", "date")])
    with pytest.raises(ValueError, match="column 'day' is of kind date, which a page does not read: leave it out by"):
        describe(opened(source, "table", preprocessor=replace(run.preprocessor, columns=columns)))
    with pytest.raises(ValueError, match=r"targets of runs/x are written as 1.234,5, which a page does not read"):
        describe(opened(source, "table", preprocessor=replace(run.preprocessor, formats=("1.234,5",))))

    waves = kshot.sources.sinusoids(shots=3)
    about = describe(opened(waves, "sinusoids"))
    assert [column["name"] for column in about["inputs"]["columns"]] == ["x1"]
    assert about["targets"] == {"kind": "numbers", "columns": ["y"], "mean": [0], "std": [1]}
    characters = kshot.sources.glyphs()
    assert describe(opened(characters, "glyphs"))["inputs"] == IMAGES
    shapes = shapes_of(characters) | {"inputs": [1, 28, 20]}
    with pytest.raises(ValueError, match=r"on inputs \[1, 28, 20\] of source glyphs: a page takes classes of square"):
        describe(opened(characters, "glyphs", shapes=shapes))
    features = ImagePreprocessor("encoder", "timm:x", 96, "")
    with pytest.raises(ValueError, match="takes features of the encoder timm:x, which is not part of a page"):
        describe(opened(characters, "images", preprocessor=features))


def test_the_file_of_a_page_is_checked_before_the_work(tmp_path):
    with pytest.raises(ValueError, match=r"--browser writes one page: name a file such as .*page.html, not"):
        export_page("run", tmp_path)
    (tmp_path / "page.html").touch()
    with pytest.raises(ValueError, match=r"page.html exists and is never overwritten"):
        export_page("run", tmp_path / "page.html")


def test_the_command_takes_one_format(command, tmp_path):
    assert "name one format to export to" in command("export", "run", "--browser", "p.html", "--onnx", "graphs")
    assert "leave it out" in command("export", "run", "--onnx", "x", "--onnxruntime-web", "y")
    assert "`npm pack onnxruntime-web@" in command("export", "run", "--browser", str(tmp_path / "page.html"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if MISSING:
        pytest.skip(", ".join(MISSING))
    with browser_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def write(path, image):
    """An image (1, H, W) in 0 … 1 as a grey PNG."""
    Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """The folder of a run on characters, with its page and pictures of a task."""
    folder = tmp_path_factory.mktemp("glyphs")
    source = {"kind": "glyphs", "ways": 3, "shots": 2, "queries": 2, "train_queries": 2}
    train = {"steps_per_round": 1, "tasks_per_step": 2}
    model, learner = {"kind": "conv4", "channels": 8}, {"kind": "protonet"}
    kshot.run(
        {"source": source, "model": model, "learner": learner, "train": train, "target": "accuracy >= 0"} | BRIEF,
        folder / "run",
    )
    task = kshot.sources.glyphs(ways=3, shots=2, queries=3).task("test", 5)
    for part, batch in (("support", task.support), ("query", task.query)):
        for row, image in enumerate(batch.inputs):
            number = int(batch.targets[row].argmax())
            path = folder / part / f"class {number}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, image)
    return folder


def read_image(path, run):
    return inputs.read_image(path, run.shapes["inputs"], resize=False, invert=False)


def open_page(page, run, out, **options):
    export_page(run, out, runtime=PACKAGE, **options)
    page.requests.clear()
    page.open(out)
    page.until("page.graphs !== null")


def press_adapt(page):
    page.value("page.state = null; document.getElementById('adapt-now').click()")
    page.until("page.state !== null && !document.getElementById('adapt-now').disabled")


@pytest.fixture
def adapted(glyphs, page, tmp_path):
    """A page that was adapted to three classes of characters, with names in HTML."""
    open_page(page, glyphs / "run", tmp_path / "page.html")
    page.value("document.getElementById('more').click()")
    for number, name in enumerate(NAMES):
        box = f"document.querySelectorAll('#classes fieldset')[{number}]"
        page.value(f"{box}.querySelector('input[type=text]').value = {json.dumps(name)}")
        page.choose(f"{box}.querySelector('input[type=file]')", sorted(glyphs.glob(f"support/class {number}/*.png")))
    page.choose("document.querySelector('#queries input[type=file]')", sorted(glyphs.glob("query/*/*.png")))
    page.until("form.classes.every((box) => box.images.length === 2) && form.queryBox.images.length === 9")
    press_adapt(page)
    page.until("page.answers.length === 9")
    return page


@in_a_browser
def test_characters_are_told_apart_as_by_kshot_offline_and_names_stay_text(adapted, glyphs):
    page, run = adapted, kshot.load(glyphs / "run")
    state = run.adapt(glyphs / "support")
    expected = run.predict(state, sorted(glyphs.glob("query/*/*.png")))
    images = torch.stack([read_image(path, run) for path in sorted(glyphs.glob("query/*/*.png"))])
    logits = run.logits(state.state, images)
    assert (torch.tensor(page.value("page.predictions")) - logits).abs().max() <= LIMIT * logits.abs().max()
    found = np.array(page.value("page.answers.map((answer) => answer.probabilities)"))
    assert np.abs(found - np.stack([expected[f"p(class {number})"] for number in range(3)], 1)).max() <= LIMIT
    labels = page.value("[...document.querySelectorAll('.answers .label')].map((each) => each.textContent)")
    assert labels == [NAMES[int(label[-1])] for label in expected["label"]]
    assert page.value("document.querySelectorAll('#results img, #results b').length") == 0
    assert {url.split(":")[0] for url in page.requests} == {"file", "blob"}
    assert sum(url.startswith("file:") for url in page.requests) == 1
    assert not page.errors
    for width in (390, 1280):
        page.resize(width, 900)
        assert page.value("document.documentElement.scrollWidth") <= width


@in_a_browser
def test_the_page_refuses_what_it_cannot_use_and_any_connection(adapted, glyphs, tmp_path):
    page = adapted
    page.value("form.classes[1].name.value = form.classes[0].name.value")
    page.value("document.getElementById('adapt-now').click()")
    page.until("document.getElementById('status').textContent.includes('Two classes have the same name')")
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.choose("document.querySelector('#queries input[type=file]')", [tmp_path / "broken.png"])
    page.until("document.getElementById('status').textContent.includes('Not an image')")
    assert page.value("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    blocked = [error for error in page.errors if "Content Security Policy" in error]
    assert blocked
    page.errors.clear()


@in_a_browser
def test_images_are_decoded_as_by_kshot(adapted, tmp_path):
    page, random = adapted, np.random.default_rng(0)
    waves = np.add.outer(np.sin(np.arange(77) / 5), np.cos(np.arange(120) / 7))[..., None] * [60, 40, 30] + 128
    photo = Image.fromarray(np.clip(waves + random.normal(0, 20, waves.shape), 0, 255).astype(np.uint8))
    clear = photo.copy()
    clear.putalpha(Image.fromarray(np.tile(np.arange(120, dtype=np.uint8) * 2, (77, 1))))
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(tmp_path / "photo.png")
    photo.resize((20, 31)).convert("L").save(tmp_path / "small.png")
    clear.save(tmp_path / "clear.png")
    photo.resize((90, 90)).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    most = {"photo.png": 0, "small.png": 0, "clear.png": 2, "turned.jpg": 3}
    page.value("window.given = Object.assign(document.createElement('input'), {type: 'file', multiple: true})")
    page.choose("given", [tmp_path / name for name in most])
    for colour, channels in (("grey", 1), ("rgb", 3)):
        options = json.dumps({"channels": channels, "size": 32})
        found = page.value(
            f"Promise.all([...given.files].map(async (file) => [...await imageOf(file, {options}, false)]))"
        )
        for (name, limit), values in zip(most.items(), found):
            expected = decode((tmp_path / name).read_bytes(), name, size=32, colour=colour).ravel()
            assert np.abs(np.array(values) - expected).max() <= limit, (name, colour)


@in_a_browser
def test_rows_of_a_table_are_read_and_predicted_as_by_kshot(shops, page, tmp_path):
    open_page(page, shops / "run", tmp_path / "page.html")
    run = kshot.load(shops / "run")
    for name, file in (("support", "few.csv"), ("queries", "new.csv")):
        page.choose(f"document.getElementById('{name}-file')", [shops / file])
        page.until(f"document.getElementById('{name}-text').value.includes('tea')")
    found = page.value("[...form.support().inputs.values, ...form.queries().inputs.values]")
    read = [run.preprocessor.support(shops / "few.csv").inputs, run.preprocessor.inputs(shops / "new.csv", {})]
    assert (torch.tensor(found) - torch.cat(read).flatten()).abs().max() < 1e-6
    press_adapt(page)
    page.until("page.answers.length === 18")
    expected = run.predict(run.adapt(shops / "few.csv"), shops / "new.csv")["sales"]
    assert np.abs(np.array(page.value("page.answers.map((each) => each.values[0])")) - expected).max() <= LIMIT * 20
    page.value("document.getElementById('support-text').value = 'visitors,sales\\n1,2'")
    page.value("document.getElementById('adapt-now').click()")
    page.until("document.getElementById('status').textContent.startsWith('The table has no column wind')")

    run.save_state(tmp_path / "state", run.adapt(shops / "few.csv"))
    open_page(page, shops / "run", tmp_path / "predicts.html", state=tmp_path / "state")
    page.choose("document.getElementById('queries-file')", [shops / "new.csv"])
    page.until("page.answers.length === 18")
    assert np.abs(np.array(page.value("page.answers.map((each) => each.values[0])")) - expected).max() <= LIMIT * 20
    assert not page.errors


@in_a_browser
def test_the_novelty_of_a_page_is_that_of_a_run(adapted):
    from kshot.evaluation.rejection import novelty

    logits = torch.tensor([[1.0, -2.0, 0.5]])
    for score in ("energy", "nearest", "probability"):
        found = adapted.value(f"novelty([1, -2, 0.5], '{score}')")
        assert abs(found - float(novelty(logits, score))) < 1e-6
