"""N-grams of running text against a plain count of them, and against the compression of a text."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

import kshot
from kshot import Batch, objectives
from kshot.learner import predict_query
from kshot.learners.baselines import language
from kshot.learners.baselines.language import Counts, NGrams, count_ngrams, ngram_candidates, training_texts
from kshot.testing import learner_checks
from kshot.testing.tasks import SYMBOLS

NOTHING = Counts(torch.empty(0).long(), torch.empty(0).long())


def windows(text, length=4):
    """The windows of a text as a batch."""
    rows = [text[start : start + length + 1] for start in range(0, len(text) - length, length)]
    inputs = torch.tensor([row[:-1] for row in rows])
    return Batch.of(inputs, torch.tensor([row[1:] for row in rows]))


def random_text(size, seed, symbols=6):
    """A text in which each symbol depends on the one before it."""
    random = np.random.default_rng(seed)
    text = [2]
    for _ in range(size - 1):
        text.append(2 + (2 * text[-1] + int(random.integers(2))) % (symbols - 2))
    return text


class Plain:
    """The formula of `NGrams`, word for word: dictionaries of counts of all texts."""

    def __init__(self, texts, symbols, order, escape):
        self.symbols, self.order, self.escape, self.counts = symbols, order, escape, defaultdict(Counter)
        for text in texts:
            for end in range(1, len(text)):
                for size in range(min(order, end + 1)):
                    self.counts[tuple(text[end - size : end])][text[end]] += 1

    def probability(self, context, symbol):
        probability = 1 / self.symbols
        for size in range(min(self.order, len(context) + 1)):
            seen = self.counts.get(tuple(context[len(context) - size :]))
            if seen:
                escape = self.escape * len(seen)
                probability = (seen[symbol] + escape * probability) / (seen.total() + escape)
        return probability


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_probabilities_are_those_of_plain_counts(order, share):
    training, support, query = random_text(41, 0), random_text(21, 1), random_text(5, 2)
    pool = count_ngrams(language._windows([windows(training)]), 6, order)
    learner = NGrams(pool, objectives.next_token, symbols=6, share=share, escape=2.0)
    inputs = torch.tensor([query])
    found = learner.predict(learner.adapt(windows(support)), inputs).exp()[0]
    torch.testing.assert_close(found.sum(1), torch.ones(5))
    alone = [support[start : start + 5] for start in range(0, 20, 4)]  # each window by itself
    both, own = Plain([training, *alone], 6, order, 2.0), Plain(alone, 6, order, 2.0)
    for position in range(5):
        context = query[: position + 1]
        for symbol in range(6):
            expected = (1 - share) * both.probability(context, symbol) + share * own.probability(context, symbol)
            assert float(found[position, symbol]) == pytest.approx(expected, rel=1e-4)


def test_causal_queries_continue_the_support_and_are_counted_once_predicted():
    support, query = random_text(21, 1), random_text(13, 2)
    query[0] = support[-1]
    learner = NGrams([NOTHING] * 3, objectives.next_token, symbols=6, share=0.0, escape=1.0, causal=True)
    batch = windows(query)
    found = predict_query(learner, learner.adapt(windows(support)), batch).exp()
    plain = Plain([[*support, *query[1:9]]], 6, 3, 1.0)  # before the last window
    for position in range(4):
        context = [*support, *query[1 : 9 + position]]
        assert float(found[2, position, query[9 + position]]) == pytest.approx(
            plain.probability(context, query[9 + position]), rel=1e-4
        )


@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_weight_0_and_padding_are_not_read(causal):
    text = random_text(17, 3)
    learner = NGrams([NOTHING] * 3, objectives.next_token, symbols=6, causal=causal)
    short = windows(text)
    long = Batch(*(torch.cat([leaf, leaf[:1] * 0]) for leaf in short))
    padded = short._replace(
        inputs=torch.nn.functional.pad(short.inputs, (0, 2)),
        targets=torch.nn.functional.pad(short.targets, (0, 2), value=-100),
    )
    expected = predict_query(learner, learner.adapt(short), short)
    torch.testing.assert_close(predict_query(learner, learner.adapt(long), long)[:4], expected)
    torch.testing.assert_close(learner.adapt(padded)["count 1"], learner.adapt(short)["count 1"])


CHECKS = {
    f"{causal}, {name}": check
    for causal in (False, True)
    for name, check in learner_checks(
        lambda ways, causal=causal: NGrams([NOTHING] * 3, objectives.next_token, symbols=SYMBOLS, causal=causal)
    )
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_contract(check):
    check()


@pytest.fixture
def source(tmp_path):
    words = ["the cat sat on the mat. ", "a dog ran in the fog. ", "we like the red rose. ", "you see the blue sea. "]
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text("".join(words[(number * i) % 4] for i in range(30)))
    return kshot.sources.corpus(tmp_path, length=20, shots=3, queries=4, split={"ratio": [0.4, 0.3, 0.3]})


def bits(learner, source):
    return kshot.evaluate(learner, source, split="val", num_tasks=5, audit=False).metrics["bits_per_character"].mean


def test_candidates_count_the_training_texts_only_and_beat_the_unigrams_by_far(source):
    watched = kshot.tasks.watched(source)
    made = language.baselines(watched)
    assert set(made) == {"n_grams", "n_grams_causal"}
    candidates = made["n_grams"]()
    assert {split for _, split in watched.reads} <= {"train"}
    unigrams = ngram_candidates(source, causal=False, orders=(1,), shares=(0.0,))[0]
    assert min(bits(each, source) for each in candidates) < 0.5 * bits(unigrams, source)
    assert int(candidates[0].pool[0].times.sum()) == sum(
        int((text.targets >= 0).sum()) for text in training_texts(source)
    )


def test_a_source_without_members_is_counted_through_its_tasks(source):
    frozen = kshot.tasks.mixture({"a": source, "b": source})
    assert len(training_texts(frozen)) == 2 * len(training_texts(source))
    source.members = lambda split: {}
    assert len(training_texts(source)) == 2 * language.POOL_TASKS


def test_orders_are_limited_to_numbers_of_64_bits():
    text = Batch.of(torch.tensor([[50_000, 3]]), torch.tensor([[3, 50_000]]))
    counts = count_ngrams(language._windows([text]), 50_001, int(language.MAX_BITS / math.log2(50_001)))
    assert all((each.grams >= 0).all() for each in counts)
    assert counts[1].grams.tolist() == sorted([50_000 * 50_001 + 3, 3 * 50_001 + 50_000])


def test_tasks_of_other_kinds_have_none_of_them():
    assert language.baselines(kshot.sources.sinusoids()) == {}
