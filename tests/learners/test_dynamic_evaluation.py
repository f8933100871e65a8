"""Language models, dynamic evaluation and generation: causal, exact, pure; and text by the command line."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import kshot
from kshot.app import cli
from kshot.data.text.vocabulary import Tokens, Vocabulary
from kshot.learners.generation import _sample
from kshot.objectives import from_name, name_of, next_token, next_token_of
from kshot.sources.corpus import BYTES, CorpusPreprocessor
from kshot.training.checkpoint import load_state
from kshot.training.step import MetaGradient
from kshot.types import Batch, Task, stack, tree_map

KINDS = ("gru", "lstm", "transformer")
SYMBOLS, LENGTH = 11, 6


def tiny(kind: str = "gru", **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kshot.models.language_model(SYMBOLS, kind, width=8, heads=2, context_length=3 * LENGTH, **options)


def text_task(seed: int = 0, windows: int = 4) -> Task:
    """Windows of a text in which each symbol is followed by its successor, or by chance."""
    random = torch.Generator().manual_seed(seed)
    text = torch.randint(2, SYMBOLS, (2 * windows * LENGTH + 1,), generator=random)
    text = torch.where(torch.rand(len(text), generator=random) < 0.7, 2 + torch.arange(len(text)) % 9, text)
    inputs, targets = text[:-1].view(-1, LENGTH), text[1:].view(-1, LENGTH)
    return Task(Batch.of(inputs[:windows], targets[:windows]), Batch.of(inputs[windows:], targets[windows:]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_position_sees_what_is_before_it_and_nothing_after(kind, tied):
    model = tiny(kind, layers=2, tied=tied)
    symbols = text_task().support.inputs
    changed = symbols.clone()
    changed[:, 3] = (changed[:, 3] + 1) % SYMBOLS
    before, after = model(symbols), model(changed)
    assert before.shape == (4, LENGTH, SYMBOLS)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert ((after - before)[:, 3:].abs().amax((0, 2)) > 1e-6).all()


def test_a_tied_model_has_one_matrix_of_symbols_and_its_logits_are_a_product_with_it():
    model = tiny("lstm", embedding=5)
    assert [tuple(p.shape) for p in model.parameters()].count((SYMBOLS, 5)) == 1
    assert sum(SYMBOLS in p.shape for p in model.parameters()) == 2  # the other is the bias
    symbols = text_task().support.inputs
    hidden = model.body.layers(model.embedding.weight[symbols])[0]
    expected = (hidden @ model.head.weight.T + model.head.bias) @ model.embedding.weight.T + model.bias
    torch.testing.assert_close(model(symbols), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body": "rnn"}, "body must be one of gru, lstm, transformer"),
        ({"symbols": 0}, "symbols must be at least 1"),
        ({"width": 0}, "width must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"body": "transformer", "width": 10, "heads": 4}, "heads that divide its width"),
        ({"body": "transformer", "width": 8, "embedding": 4}, "an embedding of this width"),
    ],
)
def test_what_makes_no_language_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kshot.models.language_model(**{"symbols": 5} | options)


def test_numbers_that_are_no_symbols_and_texts_too_long_are_refused():
    with pytest.raises(ValueError, match="needs integer symbols"):
        tiny()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="up to 18 symbols"):
        tiny("transformer")(torch.zeros(1, 19, dtype=torch.int64))


def in_doubles(task: Task) -> Task:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, task)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal_queries", [True, False])
def test_dynamic_evaluation_gives_the_same_gradient_in_every_mode(kind, causal_queries):
    learner = kshot.learners.dynamic_evaluation(tiny(kind), inner_lr=0.1, causal_queries=causal_queries).double()
    tasks = in_doubles(stack([text_task(seed) for seed in range(2)]))
    found = []
    for mode in ("loop", "vmap"):
        learner.zero_grad()
        gradient = MetaGradient(learner, mode)
        loss = gradient(tasks)
        assert not gradient.choice
        found.append([loss, *(p.grad.clone() for p in learner.parameters() if p.grad is not None)])
    assert len(found[0]) > len(list(learner.model.parameters()))  # the rates learn too
    for loop, vmap in zip(*found, strict=True):
        torch.testing.assert_close(loop, vmap, rtol=1e-8, atol=1e-10)


def test_dynamic_evaluation_of_second_order_is_exact():
    learner = kshot.learners.dynamic_evaluation(tiny(), inner_lr=0.1, order=2).double()
    task, parameters = in_doubles(text_task(windows=2)), dict(learner.named_parameters())

    def loss(*values):
        return torch.func.functional_call(learner, dict(zip(parameters, values)), (task,))

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()), fast_mode=True)


def test_dynamic_evaluation_is_gradient_descent_along_the_text():
    """Against torch.optim, a window at a time, each behind the one before it."""
    model, task = tiny("lstm"), text_task()
    learner = kshot.learners.dynamic_evaluation(model, inner_lr=0.5, rates="one")
    told = learner.predict(learner.adapt(task.support), task.query.inputs)
    other = tiny("lstm")
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(other.parameters(), 0.5)
    tail = torch.zeros(LENGTH, dtype=torch.int64)
    rows = [*zip(task.support.inputs, task.support.targets), *((row, None) for row in task.query.inputs)]
    expected = []
    for window, targets in rows:
        logits = other(torch.cat([tail, window])[None])[0, LENGTH:]
        if targets is None:
            expected.append(logits.detach())
            logits, targets = logits[:-1], window[1:]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
        tail = window
    torch.testing.assert_close(told, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal_queries", [True, False])
def test_dynamic_evaluation_is_pure_and_passes_over_padding(causal_queries):
    learner, task = kshot.learners.dynamic_evaluation(tiny(), inner_lr=0.3, causal_queries=causal_queries), text_task()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    state = learner.adapt(task.support)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    padded = Batch(*tree_map(lambda leaf: torch.cat([leaf, leaf[:2]]), tuple(task.support)))
    padded = padded._replace(weight=torch.tensor([1.0] * 4 + [0.0] * 2))
    again = learner.adapt(padded)
    assert torch.equal(again["tail"], state["tail"])
    torch.testing.assert_close(again["params"], state["params"])
    whole, part = (learner.predict(state, task.query.inputs[:count]) for count in (4, 2))
    torch.testing.assert_close(whole[:2], part)  # a window sees none after it
    turned = learner.predict(state, task.query.inputs.flip(0)).flip(0)
    assert torch.allclose(turned, whole, atol=1e-5) != causal_queries == learner.transductive


def test_an_audit_holds_reading_along_to_what_came_before(tmp_path):
    source = kshot.sources.corpus(
        phrases(tmp_path / "letters"), length=16, shots=3, queries=4, split=RUN["source"]["split"]
    )
    model = kshot.models.language_model(len(source.vocabulary), width=8)
    learner = kshot.learners.dynamic_evaluation(model, inner_lr=0.1)
    audits = {audit.name: audit for audit in kshot.evaluate(learner, source, num_tasks=3).audits}
    assert audits["other queries"].result.name == "PASSED"
    assert audits["query order"].result.name == "IDLE"

    class Ahead(type(learner)):
        """One that looks at the window after."""

        def predict(self, state, inputs):
            return super().predict(state, inputs) + super().predict(state, inputs.roll(-1, 0))

    learner.__class__ = Ahead
    with pytest.warns(kshot.evaluation.audit.run.UntrustedFigure, match="other queries"):
        kshot.evaluate(learner, source, num_tasks=3)


def test_without_passes_the_support_is_context_alone():
    model, task = tiny(), text_task()
    learner = kshot.learners.dynamic_evaluation(model, inner_lr=1.0, passes=0, causal_queries=False)
    told = learner.predict(learner.adapt(task.support), task.query.inputs)
    before = task.support.inputs[-1].expand(len(told), -1)
    torch.testing.assert_close(told, model(torch.cat([before, task.query.inputs], 1))[:, LENGTH:])
    for wrong in ({"passes": -1}, {"context_windows": -1}, {"rates": "each"}, {"rule": "newton"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kshot.learners.dynamic_evaluation(model, inner_lr=1.0, **wrong)


def test_draws_follow_temperature_and_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    random = torch.Generator().manual_seed(0)

    def shares(temperature, top_p):
        drawn = torch.stack([_sample(logits, temperature, top_p, random) for _ in range(3000)])
        return torch.bincount(drawn, minlength=4) / len(drawn)

    near = {"rtol": 0, "atol": 0.03}
    torch.testing.assert_close(shares(1.0, 1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]), **near)
    torch.testing.assert_close(shares(1.0, 0.7), torch.tensor([0.5, 0.3, 0.0, 0.0]) / 0.8, **near)
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    torch.testing.assert_close(shares(0.5, 1.0), squared / squared.sum(), **near)
    assert _sample(logits, 0.0, 1.0, random) == 0


def test_generation_is_a_function_of_its_seed_and_greedy_is_the_likeliest():
    learner, task = kshot.maml(tiny(), inner_lr=0.5, steps=3, objective=next_token), text_task()
    state = learner.adapt(task.support)

    def write(**options):
        return kshot.learners.generate(learner, state, task.query.inputs[0], **{"length": 12, "seed": 1} | options)

    assert torch.equal(write(), write())
    assert not torch.equal(write(), write(seed=2))
    assert (write(length=40) > 1).all()  # neither padding nor the unknown
    greedy, text = write(temperature=0), task.query.inputs[0]
    for symbol in greedy:
        logits = learner.predict(state, text[None])[0, -1]
        assert symbol == 2 + logits[2:].argmax()
        text = torch.cat([text, symbol[None]])
    assert torch.equal(write(temperature=0, context=3)[:1], write(temperature=0, length=1, context=3))
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"length": 0}, {"context": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            write(**wrong)
    with pytest.raises(ValueError, match="prompt must be integers"):
        kshot.learners.generate(learner, state, torch.tensor([], dtype=torch.int64), length=1)


def test_texts_become_symbols_and_text_again():
    preprocessor = CorpusPreprocessor("bytes", 8, BYTES)
    assert preprocessor.decode(preprocessor.encode("naïve ✓")) == "naïve ✓"
    assert preprocessor.decode(preprocessor.encode("✓")[:1]) == "\N{REPLACEMENT CHARACTER}"
    letters = CorpusPreprocessor("characters", 8, Vocabulary("abc"))
    assert CorpusPreprocessor.from_json(letters.to_json()) == letters != preprocessor
    assert letters.decode(letters.encode("cab")) == "cab"


def test_a_model_of_transformers_adapts_its_low_rank_adapters_alone(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed; it is in the extra 'text'"
    )
    pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    sizes = {"n_positions": 3 * LENGTH, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=SYMBOLS, **sizes)).save_pretrained(tmp_path / "gpt")
    model, task = kshot.models.causal_lm(tmp_path / "gpt", rank=2), text_task()
    learner = kshot.maml(model, inner_lr=1.0, steps=3, objective=next_token)
    state = learner.adapt(task.support)
    assert state["params"]
    assert all("lora" in name for name in state["params"])
    assert sum(value.numel() for value in state["params"].values()) == 2 * (8 + 24)  # of c_attn alone
    with torch.no_grad():
        before, after = (learner.adapt(task.support, steps=steps) for steps in (0, 20))
        losses = [
            learner.objective.loss(learner.predict(s, task.support.inputs), task.support) for s in (before, after)
        ]
    assert losses[1] < losses[0]
    assert kshot.learners.generate(learner, state, task.query.inputs[0], length=3, context=LENGTH).shape == (3,)
    learner(task).backward()
    assert all((p.grad is not None) == ("lora" in name) for name, p in model.named_parameters())
    whole = kshot.models.causal_lm(tmp_path / "gpt", rank=None)
    assert all(parameter.requires_grad for parameter in whole.parameters())
    with pytest.raises(ValueError, match="no config.json"):
        kshot.models.causal_lm(tmp_path / "none")
    (tmp_path / "gpt" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no readable causal language model"):
        kshot.models.causal_lm(tmp_path / "gpt")
    with pytest.raises(ValueError, match="rank"):
        kshot.models.causal_lm(tmp_path / "gpt", rank=0)


# ---- the command line


def small_gpt(folder: Path) -> Path:
    """A GPT-2 of random weights, with a byte-level tokenizer of its own, in a folder."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed; it is in the extra 'text'"
    )
    pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["abc is number one and the number two. größer "] * 9, trainer)
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=tokenizer.get_vocab_size(), **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


def test_tokens_stand_for_all_characters_of_a_text(tmp_path):
    tokens = Tokens(small_gpt(tmp_path / "gpt"))

    @settings(max_examples=60, deadline=None)
    @given(TEXTS)
    @example("<|end|> größer 日本 \N{GRINNING FACE}")
    def check(text: str) -> None:
        assert tokens.num_characters(text) == len(text)
        assert tokens.decode(tokens.encode(text).tolist()) == text

    check()
    assert len(tokens.encode("abc is number")) < 13, "a token is more than a byte"
    assert tokens.encode("a").min() >= 2
    preprocessor = CorpusPreprocessor("tokens", 8, tokens)
    assert CorpusPreprocessor.from_json(preprocessor.to_json()) == preprocessor
    for content, sentence in (
        (None, "contains no tokenizer.json"),
        ("{}", "is not a readable tokenizer"),
        (
            json.dumps(json.loads((tmp_path / "gpt" / "tokenizer.json").read_text()) | {"decoder": None}),
            "not byte-level",
        ),
    ):
        place = tmp_path / "gpt" / "tokenizer.json"
        place.unlink() if content is None else place.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            Tokens(tmp_path / "gpt")


def test_bits_of_tokens_are_told_for_a_character():
    batch = Batch(torch.zeros(2, 3).long(), torch.tensor([[2, 3, 2], [3, -100, -100]]), torch.ones(2))
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    bits = -logits.log_softmax(-1) / math.log(2)
    total = bits[0, 0, 2] + bits[0, 1, 3] + bits[0, 2, 2] + bits[1, 0, 3]
    objective = next_token_of([0, 0, 5, 1])
    torch.testing.assert_close(objective.metrics(logits, batch)["bits_per_character"], total / 12)
    torch.testing.assert_close(objective.loss(logits, batch), total * math.log(2) / 4)
    assert from_name(name_of(objective)) == objective


@pytest.mark.parametrize("learner", ["maml", "dynamic_evaluation"])
def test_a_model_of_transformers_runs_adapts_and_writes_by_the_command_line(tmp_path, command_in, learner):
    small_gpt(tmp_path / "gpt")
    phrases(tmp_path / "letters")
    command = command_in(tmp_path)
    source = RUN["source"] | {"unit": "tokens", "tokenizer": "gpt", "length": 8}
    options = {"inner_lr": 0.1, "steps": 1} if learner == "maml" else {"inner_lr": 0.1, "rates": "one"}
    run = RUN | {"source": source, "model": {"kind": "causal_lm", "rank": 2}, "pretrain": None}
    run |= {"learner": {"kind": learner, **options}, "baselines": {"names": [], "num_test_tasks": 2}}
    Path("run.yaml").write_text(yaml.safe_dump(run))
    code, out, err = command("run", "run.yaml", "--out", "run")
    assert code == 1, out + err
    report = yaml.safe_load(Path("run/report.json").read_text())
    assert report["trusted"] is True
    Path("page.txt").write_text(6 * "abc is number 1. ")
    assert command("adapt", "run", "--support", "page.txt", "--out", "page.safetensors")[0] == 0
    state, _ = load_state(Path("page.safetensors"))
    assert all("lora" in name for name in state["params"])
    code, out, err = command("predict", "run", "--state", "page.safetensors", "--inputs", "page.txt")
    rows = list(csv.DictReader(io.StringIO(out)))
    first = Tokens("gpt").encode("abc is number 1. ")[0]
    assert sum(int(row["characters"]) for row in rows) == 6 * 17 - Tokens("gpt").characters[first]
    assert "bits per character over" in err
    code, out, _ = command("generate", "run", "--state", "page.safetensors", "--prompt", "größer", "--length", 5)
    assert code == 0
    assert out.startswith("größer")
    (weights,) = Path("run/checkpoints").rglob("weights.safetensors")
    assert all("lora" in name or "extra_state" in name for name in load_file(weights)), (
        "what is frozen stays where it is"
    )
    with Path("gpt/config.json").open("a") as stream:
        stream.write(" ")
    assert "has changed since" in command("generate", "run", "--state", "page.safetensors", "--prompt", "abc")[2]
    run["source"] = RUN["source"]
    Path("run.yaml").write_text(yaml.safe_dump(run))
    assert "give the source unit: tokens" in command("run", "run.yaml", "--out", "other")[2]


def test_padding_before_a_text_changes_nothing_of_what_a_model_of_transformers_reads(tmp_path):
    model = kshot.models.causal_lm(small_gpt(tmp_path / "gpt"), rank=None, reserved=2).eval()
    text = torch.tensor([[5, 9, 4, 7]])
    padded = torch.cat([torch.zeros(1, 3).long(), text, torch.zeros(1, 2).long()], 1)
    plain, behind = model(text), model(padded)
    torch.testing.assert_close(behind[:, 3:7], plain)
    assert (plain[..., :2] <= -1e4).all()
    torch.testing.assert_close(model.model(input_ids=text - 2).logits, plain[..., 2:])
    with pytest.raises(ValueError, match="reads up to 64 tokens, got 65; cut texts into shorter windows"):
        model(torch.full((1, 65), 5))


def phrases(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(12 * f"{'abcdef'[number % 6] * 3} abc is number {number}. ")
    return folder


RUN = {
    "name": "letters",
    "source": {
        "kind": "corpus", "path": "letters", "length": 16, "shots": 3, "queries": 3,
        "split": {"ratio": [0.6, 0.2, 0.2], "seed": 3},
    },
    "model": {"kind": "language_model", "body": "gru", "width": 8},
    "learner": {"kind": "maml", "inner_lr": 0.2, "steps": 2},
    "pretrain": {"steps": 3, "batch": 8},
    "train": {"steps_per_round": 2, "tasks_per_step": 2},
    "target": "bits_per_character <= 0.1",
    "budget": {"rounds": 1},
    "evaluate": {"num_val_tasks": 2, "num_test_tasks": 3, "shots": [1, 3], "num_shots_tasks": 2},
    "baselines": {"steps": [1, 2], "inner_lrs": [0.1], "num_val_tasks": 2, "num_test_tasks": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with texts, a run on them, and a state that it adapted to."""
    folder = tmp_path_factory.mktemp("language")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    phrases(folder / "letters")
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    (folder / "page.txt").write_text(6 * "abc is number 1. ")
    for code, words in (
        (1, ["run", "run.yaml", "--out", "run"]),
        (None, ["adapt", "run", "--support", "page.txt", "--out", "page.safetensors"]),
    ):
        patch.setattr(sys, "argv", ["kshot", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (code, 0)
    patch.undo()
    return folder


@pytest.fixture
def command(trained, command_in):
    return command_in(trained)


@pytest.fixture
def command_in(capsys, monkeypatch):
    """The command line in a folder: code, output, errors."""

    def into(folder: Path):
        monkeypatch.chdir(folder)
        return call

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kshot", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return into


def test_a_run_on_text_stands_beside_its_pretrained_model_as_it_is_and_fine_tuned(trained):
    report = yaml.safe_load((trained / "run" / "report.json").read_text())
    assert set(report["baselines"]) == {"n_grams", "n_grams_causal", "scratch", "fine_tune", "pretrained"}
    assert report["protocol"]["symbols"] > 10
    assert [each["shots"] for each in report["shots"]] == [1, 3]
    assert report["trusted"] is True


def test_kshot_predict_tells_the_bits_of_each_window(command, trained):
    code, out, err = command("predict", "run", "--state", "page.safetensors", "--inputs", "page.txt")
    rows = list(csv.DictReader(io.StringIO(out)))
    text = (trained / "page.txt").read_text()
    assert code == 0
    assert sum(int(row["characters"]) for row in rows) == len(text) - 1
    mean = sum(float(row["bits"]) for row in rows) / (len(text) - 1)
    assert err.startswith(f"{mean:.3f}")
    assert "bits per character over" in err


def test_kshot_generate_goes_on_with_a_prompt(command):
    words = ["generate", "run", "--state", "page.safetensors", "--prompt", "abc is", "--length", 20]
    code, out, _ = command(*words)
    assert code == 0
    assert out.startswith("abc is")
    assert len(out.rstrip("\n")) == 26
    assert command(*words)[1] == out
    assert command(*words, "--temperature", 0, "--seed", 1)[1] == command(*words, "--temperature", 0, "--seed", 2)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "ab\udc99"], "the prompt is not valid UTF-8"),
        (["--prompt", "Ω"], "'Ω', which no training text"),
        (["--temperature", "-1"], "temperature must be at least 0"),
        (["--top-p", "1.2"], "top_p must be above 0 and at most 1"),
    ],
)
def test_kshot_generate_says_what_is_wrong(command, words, message):
    whole = ["generate", "run", "--state", "page.safetensors", "--prompt", "abc", "--length", 3, *words]
    code, _, err = command(*whole)
    assert code == 2
    assert message in err


def test_a_text_of_nothing_and_a_state_of_another_run_are_refused(command, trained):
    (trained / "empty.txt").write_text("")
    code, _, err = command("adapt", "run", "--support", "empty.txt", "--out", "none.safetensors")
    assert code == 2
    assert "holds 0 characters" in err
    from kshot.training.checkpoint import load_state, save_state

    state, meta = load_state(trained / "page.safetensors")
    save_state(trained / "other.safetensors", state, meta | {"weights_sha256": "0" * 64})
    for words in (["generate", "run", "--prompt", "abc"], ["predict", "run", "--inputs", "page.txt"]):
        code, _, err = command(*words, "--state", "other.safetensors")
        assert code == 2
        assert "was not adapted from the weights" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"kind": "mlp"}}, "which model causal_lm or language_model takes"),
        ({"learner": {"kind": "protonet"}}, "predicts classes of each task's own"),
    ],
)
def test_what_fits_no_text_is_refused(command, trained, tmp_path, change, message):
    (trained / "wrong.yaml").write_text(yaml.safe_dump(RUN | {"pretrain": None} | change))
    code, _, err = command("run", "wrong.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert message in err


def test_an_archive_is_read_as_the_folder_in_it(tmp_path):
    folder = phrases(tmp_path / "letters")
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"letters/{path.name}")
    plain, zipped = (
        kshot.sources.corpus(path, length=16, shots=3, queries=3, split=RUN["source"]["split"])
        for path in (folder, f"{folder}.zip")
    )
    for ours, theirs in zip(plain.task("train", 5).support, zipped.task("train", 5).support):
        assert torch.equal(ours, theirs)
