"""Tiny data of every kind of source, and a source, model and learner of each kind, as keys of a run file."""

from __future__ import annotations

import json
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image

Options = dict[str, Any]

WORDS = ["please", "play", "stop", "louder", "pay", "freeze", "balance", "next", "order", "it"]
RATIO = {"ratio": [0.5, 0.25, 0.25], "exact": True}
FEW = {"shots": 2, "queries": 2}


def write_data(folder: Path) -> None:
    """Write the files that `SOURCES` names; those of 60 groups of 8 rows, 24 classes of 6 examples, 24 texts."""
    draw = random.Random(0)
    lines = ["g,day,x,z,y,w,c,l"]
    for row in range(480):
        numbers = ",".join(f"{draw.gauss(0, 1):.3f}" for _ in range(4))
        day = date(2024, 1, 1) + timedelta(row // 60)
        lines.append(f"s{row % 60},{day},{numbers},{'abc'[row // 60 % 3]},{draw.choice('ab')}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    texts = [{"text": f"{draw.choice(WORDS)} {WORDS[n % 10]} {n % 24}", "label": f"l{n % 24}"} for n in range(144)]
    (folder / "texts.json").write_text(json.dumps(texts))
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"{t['text']},{t['label']}\n" for t in texts))
    lines = ["day," + ",".join(f"s{n}" for n in range(12))]
    for step in range(80):
        values = (f"{draw.gauss(0, 1) + (step + n) % 7:.3f}" for n in range(12))
        lines.append(f"{date(2024, 1, 1) + timedelta(step)},{','.join(values)}")
    (folder / "series.csv").write_text("\n".join(lines) + "\n")
    lines = ["user,item,rating,time"]
    for user in range(40):
        lines += [f"u{user},i{item},{draw.randint(1, 5)},{user + item}" for item in draw.sample(range(24), 10)]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    (folder / "films").mkdir()
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(40):
        lines += [f"{user},{film},{draw.randint(1, 5)},{user + film}" for film in draw.sample(range(24), 10)]
    (folder / "films" / "ratings.csv").write_text("\n".join(lines) + "\n")
    lines = [f"{film},Film {film} ({1990 + film % 9}),Drama|War" for film in range(24)]
    (folder / "films" / "movies.csv").write_text("\n".join(["movieId,title,genres", *lines]) + "\n")
    write_images(folder / "pictures", classes=24, each=5)
    (folder / "letters").mkdir()
    for number in range(12):
        text = 8 * f"{'abcdef'[number % 6] * 3} abc is number {number}. "
        (folder / "letters" / f"{number}.txt").write_text(text)


def write_images(folder: Path, *, classes: int, each: int, size: int = 16) -> None:
    """Write a folder of grey images for each class."""
    draw = random.Random(1)
    for number in range(classes):
        (folder / f"c{number:02}").mkdir(parents=True)
        for picture in range(each):
            pixels = bytes(min(255, max(0, 9 * number + draw.randint(0, 40))) for _ in range(size * size))
            Image.frombytes("L", (size, size), pixels).save(folder / f"c{number:02}" / f"{picture}.png")


def write_encoder(folder: Path) -> None:
    """Write a sentence encoder of random weights."""
    import transformers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *map(str, range(10))]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(pieces), max_position_embeddings=12, **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces))
    made = {"tokenizer_class": "BertTokenizer", "model_max_length": 12, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(made))


def _table(**options: Any) -> Options:
    return {"kind": "table", "path": "rows.csv", "split": RATIO, **FEW, **options}


def _classes(kind: str, **options: Any) -> Options:
    return {"kind": kind, "ways": 3, "queries": 2, "shots": 2, **options}


COLUMNS = ["x", "z"]
CORPUS = {"kind": "corpus", "path": "letters", "length": 8, **FEW, "split": RATIO}
RATINGS = {"kind": "ratings", "path": "ratings.csv", "shots": 3, "queries": 2, "split": RATIO}
CLICKS = {**RATINGS, "rating": None, "negatives": 1}
TEXTS = _classes("text", path="texts.json", split=RATIO)
SOURCES: dict[str, Options] = {
    "sinusoids": {"kind": "sinusoids", **FEW},
    "sinusoids, distribution": {"kind": "sinusoids", "target_type": "distribution", **FEW},
    "gaussian_processes": {"kind": "gaussian_processes", "shots": [2, 3], "queries": 3},
    "glyphs": _classes("glyphs"),
    "images": _classes("images", path="pictures", size=16, colour="grey", split=RATIO),
    "pixels": {"kind": "pixels", "shots": 4, "queries": 4},
    "tabular_priors": {"kind": "tabular_priors", "rows": [8, 8], "features": [2, 3], "queries": 4, "classes": [2, 3]},
    "tabular_priors of numbers": {
        "kind": "tabular_priors", "rows": [8, 8], "features": [2, 3], "queries": 4, "target_type": "regression",
    },
    "table of groups": _table(group="g", target="y", inputs=COLUMNS),
    "table of groups, several targets": _table(group="g", target=["y", "w"], inputs=COLUMNS),
    "table of groups, classes": _table(group="g", target="c", inputs=COLUMNS),
    "table of classes": _table(classes="g", inputs=COLUMNS, ways=3),
    "plain table": _table(target="y", inputs=COLUMNS, split={"rows": [0.5, 0.25, 0.25]}),
    "series": {
        "kind": "series", "path": "series.csv", "time": "day", "context_length": 6, "horizon": 2, **FEW, "split": RATIO,
    },
    "text": {**TEXTS, "features": "words", "width": 32},
    "text, tokens": {**TEXTS, "features": "tokens", "encoder": "encoder"},
    "corpus": CORPUS,
    "corpus of bytes": {**CORPUS, "unit": "bytes"},
    "ratings": RATINGS,
    "ratings, levels": {**RATINGS, "target_type": "ordinal"},
    "movielens": {**RATINGS, "kind": "movielens", "path": "films"},
    "clicks": CLICKS,
    "clicks with factors": {**CLICKS, "item_factors": 4},
    "mixture": {"kind": "mixture", "sources": {"a": _classes("glyphs"), "b": _classes("glyphs", on_too_few="drop")}},
    "mixture of texts": {"kind": "mixture", "sources": {name: {**CORPUS, "unit": "bytes"} for name in "ab"}},
}  # fmt: skip

MODELS: dict[str, Options | None] = {
    "none": None,
    "mlp": {"kind": "mlp", "hidden": [4]},
    "conv4": {"kind": "conv4", "channels": 4},
    "resnet12": {"kind": "resnet12", "widths": [2, 2, 2, 2]},
    "encoder": {"kind": "encoder", "rank": 2},
    "language_model": {"kind": "language_model", "width": 4, "heads": 2},
    "causal_lm": {"kind": "causal_lm", "rank": 2},
    "rating_mlp": {"kind": "rating_mlp", "embedding": 2, "hidden": [4]},
    "two_tower": {"kind": "two_tower", "width": 2, "hidden": 4},
    "factorisation": {"kind": "factorisation", "factors": 2, "hidden": 4},
}

INNER = {"inner_lr": 0.01}
SMALL: dict[str, Options] = {
    "choose": {
        "among": {"slow": {"kind": "maml", **INNER}, "fast": {"kind": "reptile", "inner_lr": 0.1}},
        "num_tasks": 2,
    },
    "cnaps": {"film": ["body.1"], "task_dim": 4},
    "attentive_np": {"width": 8, "heads": 2},
    "cnp": {"width": 8},
    "tanp": {"width": 8, "clusters": 2},
    "tnp_d": {"width": 8, "heads": 2, "layers": 1},
    "prior_fitted": {"cell_width": 8, "width": 8, "heads": 2, "cell_layers": 1, "layers": 1},
    "boosted_residual": {"trees": 3},
    "baseline_pp": {"inner_lr": 0.01, "steps": 2},
    "pmf": {"inner_lr": 0.01, "steps": 2},
    "transductive_fine_tune": {"inner_lr": 0.01, "steps": 2},
    "unicorn_maml": {"inner_lr": 0.01, "steps": 1},
    "imaml": {"inner_lr": 0.01, "steps": 2},
}


def learners() -> tuple[str, ...]:
    """The learners of kshot."""
    from kshot.app.schema import kinds

    return kinds("learner")


def learner(kind: str) -> Options:
    """A learner of a kind, small, with its required options."""
    from kshot.app.schema import describe, our_factory

    needed = {argument.name for argument in describe(our_factory("learner", kind)) if argument.required}
    return {"kind": kind, **(INNER if "inner_lr" in needed else {}), **SMALL.get(kind, {})}


def run_file(source: Options, model: Options | None, learner: Options, **more: Any) -> Options:
    """The content of a run file of seconds."""
    content = {
        "name": "tiny",
        "source": source,
        "learner": learner,
        "train": {"steps_per_round": 1, "tasks_per_step": 1},
        "target": "loss <= 1",
        "budget": {"rounds": 1},
        "evaluate": {"num_val_tasks": 2, "num_test_tasks": 2, "shots": []},
        "baselines": {"names": []},
    }
    return content | ({} if model is None else {"model": model}) | more
