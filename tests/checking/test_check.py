"""The check of tasks: each fault is planted once and found, and clean tasks have none."""

import json

import numpy as np
import polars as pl
import pytest
from PIL import Image
from planted import CUT, EACH, found, numbers, pictures, pool, raw

from kshot import objectives, sources, tasks
from kshot.checking.check import check, check_for_report
from kshot.checking.findings import SEVERITIES
from kshot.checking.target_leakage import Rows, leaks
from kshot.data.dataset import ArrayDataset
from kshot.tasks import ClassTasks, GroupTasks


def table_of(tmp_path, **columns):
    frame = pl.DataFrame({"group": np.repeat([f"g{n}" for n in range(60)], 10)} | columns)
    frame.write_csv(tmp_path / "t.csv")
    return tmp_path / "t.csv"


def test_how_columns_were_understood_is_said_and_what_was_noticed(tmp_path):
    random = np.random.default_rng(0)
    price = [f"${value:,.2f}" for value in random.uniform(1, 5000, 600)]
    price[5] = ""
    far = random.normal(5, 1, 600)
    far[7] = 1e12
    mixed = ["x" if value < 0.3 else f"{value:.3f}" for value in random.random(600)]
    path = table_of(tmp_path, price=price, far=far, mixed=mixed, y=random.normal(size=600))
    source = sources.table(path, group="group", target="y", shots=3, queries=3)
    severity, told = found(source, "reading")
    assert severity == "warning"
    assert "price: number, money in $, 1 missing" in told
    assert "y: target, number" in told
    assert "t.csv, line 9, column 'far': 1e+12 is more than 100 times as far from the median" in told
    share = np.mean([word != "x" for word in mixed])
    assert f"column 'mixed': it is treated as words, though {share:.0%} of its values are numbers" in told
    short = check_for_report(source).findings
    assert {finding.severity for finding in short} == {"warning"}
    assert sum("1e+12" in finding.sentence for finding in short) == 1
    assert source.describe()["columns"]["price"] == "number, money in $, 1 missing"
    spoilt = far.copy()
    with pytest.raises(ValueError, match="(?s)line 9, column 'y': .*would hide all else.*bad_rows: drop"):
        sources.table(table_of(tmp_path, x=price, y=spoilt), group="group", target="y", shots=3, queries=3)
    mostly = ["unknown" if value < 0.3 else f"{value:.3f}" for value in random.random(600)]
    with pytest.raises(ValueError, match=r"[67].% of the targets 'y' are numbers, and the others are not.*target_type"):
        sources.table(table_of(tmp_path, x=far, y=mostly), group="group", target="y", shots=3, queries=3)


@pytest.mark.parametrize("source", [pictures(), numbers(), sources.glyphs(), sources.sinusoids()])
def test_clean_tasks_have_no_findings(source):
    checked = check(source, num_tasks=30)
    notes = [finding.sentence for finding in checked.findings if finding.severity == "note"]
    assert checked.worst == "ok" or all("up to resizing" in note for note in notes), checked.findings
    assert SEVERITIES.index(checked.worst) <= 1  # a few digits of the fonts look alike in two faces
    assert {finding.check for finding in checked.findings} >= {"values", "two splits", "support and query"}


@pytest.mark.parametrize("target_type", ["classification", "regression"])
def test_tasks_of_which_each_has_columns_of_its_own_are_checked(target_type):
    source = sources.tabular_priors(rows=(8, 30), features=(2, 9), queries=4, target_type=target_type)
    assert check(source, num_tasks=40).worst in ("ok", "note")
    assert check_for_report(source, num_tasks=40).findings == []


def test_copies_in_two_splits_are_an_error_that_names_both():
    images = raw()
    images[EACH * 25 : EACH * 25 + 4] = images[:4]
    severity, sentence = found(pictures(images), "two splits")
    assert severity == "error"
    assert "4 of 80 test examples" in sentence
    assert "'member 25'" in sentence
    assert "'member 0'" in sentence


def test_one_copy_among_many_examples_is_a_warning():
    cut = {"train": range(2), "val": range(2, 4), "test": range(4, 32)}
    images = raw()
    images[-1] = images[0]
    assert found(pictures(images, cut, ways=2), "two splits")[0] == "warning"


def test_copies_within_a_class_are_found_in_the_class_and_in_its_tasks():
    images = raw()
    images[1::2] = images[::2]
    assert found(pictures(images), "copies")[0] == "warning"
    severity, sentence = found(pictures(images), "support and query")
    assert severity == "error"
    assert "shows the answer" in sentence


def test_copies_in_two_classes_cannot_be_told_apart():
    images = raw()
    images[EACH : EACH + 5] = images[:5]
    severity, sentence = found(pictures(images), "copies")
    assert severity == "warning"
    assert "No model can tell" in sentence


def test_rows_with_few_values_are_no_copies():
    random = np.random.default_rng(2)
    few = numbers(random.integers(0, 3, (32 * EACH, 2)).astype(float), random.integers(0, 2, (32 * EACH, 1)) * 1.0)
    assert found(few, "two splits")[0] == "note"
    assert found(few, "support and query")[0] == "note"


@pytest.mark.parametrize("num_answers", [2, 3, 12])
def test_rows_of_a_group_that_are_equal_by_chance_are_no_copies(num_answers):
    """Pupils of a class say how they like a subject on a scale: only rows of one class can be equal."""
    random = np.random.default_rng(4)
    answers = random.integers(0, num_answers, 32 * EACH)
    inputs = np.stack([random.normal(size=32).repeat(EACH), answers], 1)
    targets = random.integers(0, 2, (32 * EACH, 1)) * 1.0
    assert found(numbers(inputs, targets), "support and query")[0] == "note"
    assert found(numbers(inputs, targets), "copies")[0] is None
    inputs[:, 1] = random.normal(size=len(inputs))
    inputs[1::2], targets[1::2] = inputs[::2], targets[::2]  # these are copies, though there are but two targets
    assert found(numbers(inputs, targets), "support and query")[0] == "error"
    assert found(numbers(inputs, targets), "copies")[0] == "warning"


def test_rows_that_are_equal_by_chance_in_small_splits_are_no_copies():
    """Of six chicks that are 41 g heavy on day 0; one chick alone does not show that equal days have other weights."""
    day = np.tile(np.arange(12.0), 6)
    weight = np.round(41 + np.repeat([5.0, 7.0, 9.0, 11.0, 6.0, 8.0], 12) * day)
    rows = {split: {f"chick {n}": range(12 * n, 12 * n + 12) for n in of} for split, of in
            (("train", range(4)), ("val", [4]), ("test", [5]))}  # fmt: skip
    examples = ArrayDataset((day[:, None], weight[:, None]))
    source = GroupTasks(examples, rows, objective=objectives.mse, shots=4, queries=4)
    assert found(source, "two splits")[0] == "note"


@pytest.mark.parametrize("group", [None, "worker"])
def test_rows_that_several_tasks_show_are_no_sign_of_leakage(tmp_path, group):
    """Of few rows, each task shows most: the nearest row in a column of noise is the row itself."""
    random = np.random.default_rng(0)
    state = random.random(63) < 0.4
    frame = pl.DataFrame({
        "worker": np.repeat([f"w{n}" for n in range(7)], 9), "heat": random.normal(size=63),
        "code": 3.0 * state + 0.01 * random.normal(size=63), "state": np.where(state, "bad", "ok"),
    })  # fmt: skip
    frame.write_csv(tmp_path / "shop.csv")
    split = {"group": group, "split": {"ratio": [0.6, 0.2, 0.2]}} if group else {"ignore": ["worker"]}
    source = sources.table(tmp_path / "shop.csv", target="state", shots=4, queries=4, **split)
    severity, sentence = found(source, "leakage")
    assert severity == "warning"
    assert "'code' alone tells the target" in sentence
    assert "heat" not in sentence


def test_copied_rows_of_a_table_are_an_error():
    random = np.random.default_rng(3)
    inputs, targets = random.normal(size=(32 * EACH, 3)), random.normal(size=(32 * EACH, 1))
    inputs[-EACH:], targets[-EACH:] = inputs[:EACH], targets[:EACH]
    assert found(numbers(inputs, targets), "two splits")[0] == "error"
    inputs[1 - EACH :] += 1
    assert found(numbers(inputs, targets), "two splits")[0] == "warning", "one row of a few may be equal by chance"
    inputs[1 - EACH :] -= 1
    targets[-EACH:] += 1  # the same inputs with other targets are no copies
    assert found(numbers(inputs, targets), "two splits")[0] == "ok"


def test_blank_images_are_counted_and_are_no_copies():
    images = raw()
    images[::9] = 255
    severity, sentence = found(pictures(images), "blank")
    assert severity == "warning"
    assert "one value throughout" in sentence
    assert found(pictures(images), "two splits")[0] == "ok"


def test_a_column_that_is_the_target_is_an_error_and_one_that_ranks_it_a_warning(tmp_path):
    random = np.random.default_rng(4)
    target = random.normal(size=600)
    path = table_of(tmp_path, noise=random.normal(size=600), sold=target, cents=100 * target + 7, rank=np.exp(target))
    source = sources.table(path, group="group", target="sold", shots=4, queries=4)
    severity, sentence = found(source, "leakage")
    assert severity == "error"
    assert "'cents' is the target under another name" in sentence
    assert "'rank' alone ranks" in sentence
    assert "noise" not in sentence
    clean = sources.table(path, group="group", target="sold", ignore=["cents", "rank"], shots=4, queries=4)
    assert found(clean, "leakage")[0] == "ok"


def test_a_column_that_names_the_class_is_an_error(tmp_path):
    random = np.random.default_rng(5)
    groups = np.repeat(np.arange(60), 10)
    path = table_of(
        tmp_path, code=groups * 7 % 60, size=groups + random.normal(0, 1e-3, 600), x=random.normal(size=600)
    )
    source = sources.table(path, classes="group", kinds={"code": "category"}, ways=3, shots=2, queries=3)
    severity, sentence = found(source, "leakage")
    assert severity == "error"
    assert "'code' is the target under another name" in sentence
    assert "'size' alone tells" in sentence
    assert "'x'" not in sentence


def test_a_column_that_decides_a_shared_class_is_found(tmp_path):
    random = np.random.default_rng(6)
    value = random.normal(size=600)
    path = table_of(tmp_path, value=value, x=random.normal(size=600), busy=np.where(value > 0.4, "yes", "no"))
    source = sources.table(path, group="group", target="busy", shots=4, queries=4)
    severity, sentence = found(source, "leakage")
    assert severity == "warning"
    assert "'value'" in sentence
    assert "'x'" not in sentence


def test_a_column_leaks_by_the_order_of_its_values_alone():
    random = np.random.default_rng(7)
    y = [random.normal(size=(8, 1)) for _ in range(10)]
    for change in (np.exp, np.negative, lambda v: v**3):
        rows = [Rows(change(own), own, 4) for own in y]
        (leak,) = leaks(rows, {"a": [0]}, "numbers")
        assert leak.score == pytest.approx(1)
    flipped = [Rows(own * (-1) ** number, own, 4) for number, own in enumerate(y)]
    assert leaks(flipped, {"a": [0]}, "numbers") == []  # up in one task and down in the next: that is to be learned


def test_sorted_targets_are_told_and_worse_in_order_of_time():
    targets = np.random.default_rng(8).normal(size=(32, EACH, 1))
    targets.sort(1)
    assert found(numbers(targets=targets.reshape(-1, 1)), "order")[0] == "note"
    assert found(numbers(targets=targets.reshape(-1, 1), order="given"), "order")[0] == "warning"
    assert found(numbers(), "order")[0] is None


def test_constants_are_told(tmp_path):
    inputs = np.random.default_rng(9).normal(size=(32 * EACH, 3))
    inputs[:, 1] = 4
    severity, sentence = found(numbers(inputs), "columns")
    assert severity == "note"
    assert "'input 2'" in sentence
    path = table_of(tmp_path, x=inputs[:, 0].repeat(3)[:600], still=np.ones(600), y=np.arange(600) % 7)
    source = sources.table(path, group="group", target="y", shots=4, queries=4)
    assert "'still' is no input" in found(source, "columns")[1]
    assert found(numbers(targets=np.zeros((32 * EACH, 1))), "targets")[0] == "error"


def test_lopsided_classes_and_sizes_are_told(tmp_path):
    random = np.random.default_rng(10)
    path = table_of(tmp_path, x=random.normal(size=600), y=np.where(np.arange(600) % 20 == 0, "rare", "common"))
    source = sources.table(path, group="group", target="y", shots=4, queries=4)
    severity, sentence = found(source, "imbalance")
    assert severity == "warning"
    assert "always naming it" in sentence
    rows = {"train": {"a": range(200), "b": range(200, 205), "c": range(205, 210)}, "val": {}, "test": {}}
    rows["val"] = {f"v{n}": range(210 + 5 * n, 215 + 5 * n) for n in range(4)}
    rows["test"] = {f"t{n}": range(230 + 5 * n, 235 + 5 * n) for n in range(4)}
    severity, sentence = found(ClassTasks(raw(), rows, ways=2, shots=1, queries=3), "sizes")
    assert severity == "note"
    assert "5 to 200 examples" in sentence
    assert "test has only 4 classes" in sentence


def test_what_was_dropped_is_told():
    rows = pool()
    rows["train"]["member 0"] = rows["train"]["member 0"][:2]
    source = ClassTasks(raw(), rows, ways=3, shots=1, queries=4, on_too_few="drop")
    severity, sentence = found(source, "left out")
    assert severity == "note"
    assert "classes in train with fewer than 5 examples" in sentence


def test_a_missing_split_and_values_that_are_no_numbers_are_errors():
    severity, sentence = found(pictures(cut={"train": CUT["train"], "test": CUT["test"]}), "val tasks")
    assert severity == "error"
    assert "no 'val' split" in sentence
    inputs = np.random.default_rng(11).normal(size=(32 * EACH, 3))
    inputs[0] = np.nan
    assert found(numbers(inputs), "values")[0] == "error"


def test_every_image_is_decoded_and_a_damaged_one_named(tmp_path):
    write_images(tmp_path)
    source = sources.images(tmp_path / "pictures", size=8, colour="grey", ways=3, shots=1, queries=2)
    assert found(source, "images")[0] == "ok"
    (victim,) = source.classes("test")[source.class_names["test"][0]][:1].tolist()
    name = source.examples.files[victim].name
    (tmp_path / "pictures" / name).write_bytes(b"no image")
    again = sources.images(tmp_path / "pictures", size=8, colour="grey", ways=3, shots=1, queries=2)
    severity, sentence = found(again, "images")
    assert severity == "error"
    assert name in sentence
    assert {f.check for f in check(again).findings if f.severity == "error"} == {"images"}


def write_images(folder, count=40):
    random = np.random.default_rng(0)
    for number in range(count):
        (folder / "pictures" / f"c{number}").mkdir(parents=True)
        for place in range(4):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"c{number}" / f"{place}.png")


def test_a_mixture_names_the_source_and_compares_across_sources():
    good, bad = raw(0), raw(1)
    bad[EACH * 25 : EACH * 25 + 8] = good[:8]
    both = sources.mixture({"a": pictures(good), "b": pictures(bad)}, heldout={"test": ["b"]})
    checked = check(both, num_tasks=20)
    assert [(own.source, own.split) for own in checked.sizes] == [("a", "train"), ("a", "val"), ("b", "test")]
    assert found(both, "two splits")[0] == "error"


def test_frozen_tasks_are_compared_too(tmp_path):
    source = pictures()
    for split in ("train", "val", "test"):
        tasks.freeze(source, tmp_path / split, split=split, num_tasks=8)
    assert check(sources.episodes([tmp_path / split for split in ("train", "val", "test")])).worst == "ok"


def test_texts_are_compared_as_they_are_written(tmp_path):
    rows = [[f"say {word} {n}", f"word {word}"] for word in range(40) for n in range(6)]
    rows[-1][0] = rows[0][0]
    (tmp_path / "t.json").write_text(json.dumps({"train": rows}))
    options = {"ways": 3, "shots": 1, "queries": 4, "width": 16, "split": {"ratio": [0.4, 0.3, 0.3]}}
    source = sources.text(tmp_path / "t.json", **options)  # 16 features: different texts share theirs
    first, last = (
        next(s for s in ("train", "val", "test") if w in source.class_names[s]) for w in ("word 0", "word 39")
    )
    findings = [f for f in check(source).findings if f.check in ("two splits", "copies") and f.severity != "ok"]
    assert len(findings) == 1
    assert (findings[0].check == "copies") == (first == last)
    assert "'say 0 0'" in findings[0].sentence


def test_ratings_have_no_false_copies(tmp_path):
    random = np.random.default_rng(12)
    rows = [(f"u{u}", f"i{i}", random.integers(1, 6)) for u in range(60) for i in random.permutation(30)[:12]]
    pl.DataFrame(rows, schema=["user", "item", "rating"], orient="row").write_csv(tmp_path / "r.csv")
    checked = check(sources.ratings(tmp_path / "r.csv", shots=4, queries=4))
    assert not {f.severity for f in checked.findings} & {"warning", "error"}
    assert all(own.kind == "user" and set(own.counts) == {12} for own in checked.sizes)


def test_a_bounded_number_of_examples_is_looked_at_and_said():
    assert "all 256 examples" in check(pictures()).looked_at
    assert "60 of 256 examples" in check(pictures(), num_examples=60).looked_at
    with pytest.raises(ValueError, match="at least one example"):
        check(pictures(), num_examples=0)


RUN = """\
name: t
source: {kind: images, path: pictures, size: 16, colour: grey, ways: 3, shots: 1, queries: 2}
model: {kind: conv4, channels: 4}
learner: {kind: protonet}
target: accuracy >= 0.9
"""


def test_the_command_writes_json_and_a_page_and_fails_on_an_error(tmp_path, monkeypatch, capsys):
    from kshot.app import cli

    write_images(tmp_path)
    (tmp_path / "t.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["kshot", "data", "check", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    code, out, _ = call("t.yaml", "--json", "t.json", "--html", "t.html")
    assert code == 0
    assert "No example looked at occurs in two splits" in " ".join(out.split())
    report = json.loads((tmp_path / "t.json").read_text())
    assert sum(bar["count"] for bar in report["splits"][0]["histogram"]) == report["splits"][0]["count"]
    assert sum(own["examples"] for own in report["splits"]) == 160
    assert {finding["check"] for finding in report["findings"]} >= {"images", "values", "two splits"}
    assert report["source"]["classes"]["train"] == report["splits"][0]["count"]
    page = (tmp_path / "t.html").read_text()
    assert page.count("<img") == 2
    assert "<script" not in page
    (tmp_path / "pictures" / "c3" / "1.png").write_bytes(b"no image")
    code, out, _ = call("t.yaml", "--json", "t.json", "--html", "t.html")
    assert code == 2
    assert json.loads((tmp_path / "t.json").read_text())["worst"] == "error"
    assert call("missing.yaml")[0] == 2
    code, _, err = call("t.yaml", "--json", "pictures")
    assert code == 2
    assert "never written over" in err


def test_of_huge_tasks_the_first_examples_are_looked_at(monkeypatch):
    monkeypatch.setattr("kshot.checking.check.MOST_OF_TASK", 20)
    seen = []
    monkeypatch.setattr("kshot.checking.check.check_values", lambda part, drawn: seen.append(drawn) or [])
    check(sources.sinusoids(shots=30, queries=10), num_tasks=2)
    assert {len(batch.weight) for tasks_ in seen[0].values() for task in tasks_ for batch in task} == {20, 10}
