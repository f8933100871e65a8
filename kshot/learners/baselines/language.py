"""Baselines for running text: n-grams with back-off, of the training texts and of the text at hand.

Shape legend: n windows, L positions of a window, V symbols of the vocabulary, P positions of several windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import Fraction, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.text.vocabulary import PADDING
from kshot.learner import Learner
from kshot.objectives import Objective
from kshot.query_weight import current_query_weight
from kshot.tasks.mixture import Mixture
from kshot.tasks.read_log import Watched, during
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Tree

ORDERS, SHARES, ESCAPES = (5, 6, 7), (0.0, 0.1, 0.4, 0.7), (2.0, 4.0)
"""Settings among which validation tasks choose; see `NGrams`."""
POOL_SYMBOLS = 8_000_000  # of the training texts that are counted, so that a large corpus takes seconds
POOL_TASKS = 400  # that are counted where a source names no members
CELLS = 4_000_000  # P V, of the positions that are predicted at once
MAX_BITS = 62  # of an n-gram's number


def baselines(source: TaskSource) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines for running text, by name; {} for a source of other tasks.

    "n_grams" predicts each window by itself, and "n_grams_causal", which is comparable with a learner that goes on
    learning in the query, counts the windows of the query that it has read. The latter is prediction by partial
    matching, the model of the compressor PPM: its bits are those of the compressed text, up to the two bits that an
    arithmetic coder adds.

    Example:
        >>> import kshot
        >>> baselines(kshot.sources.sinusoids())
        {}
    """
    if source.objective.predicts != "tokens":
        return {}
    return {
        "n_grams": lambda: ngram_candidates(source, causal=False),
        "n_grams_causal": lambda: ngram_candidates(source, causal=True),
    }


def ngram_candidates(
    source: TaskSource,
    *,
    causal: bool,
    orders: Sequence[PositiveInt] = ORDERS,
    shares: Sequence[Fraction] = SHARES,
    escapes: Sequence[PositiveFloat] = ESCAPES,
) -> list[Learner]:
    """`NGrams` of the training texts of a source, for each order, share of the support alone and escape."""
    texts, symbols = training_texts(source), num_symbols(source)
    largest = max(1, int(MAX_BITS / math.log2(symbols)))
    orders = sorted({min(order, largest) for order in orders})
    counts = count_ngrams(_windows(texts), symbols, orders[-1])
    objective = source.objective
    return [
        NGrams(counts[:order], objective, symbols=symbols, share=share, escape=escape, causal=causal)
        for order, share, escape in product(orders, shares, escapes)
    ]


def num_symbols(source: TaskSource) -> int:
    """V: the size of the source's vocabulary, or one more than the largest symbol of 100 training tasks."""
    vocabulary = getattr(_inner(source), "vocabulary", None) or getattr(source.preprocessor, "vocabulary", None)
    if vocabulary is not None:
        return len(vocabulary)
    with during(source, "training"):
        tasks = [source.task("train", index) for index in range(100)]
    return 1 + max(int(tensor.max()) for task in tasks for batch in task for tensor in (batch.inputs, batch.targets))


class Windows(NamedTuple):
    """Windows of text after the symbols before them, inputs and targets (n, T + L); -1 is no symbol, not scored."""

    inputs: Tensor
    targets: Tensor


class Counts(NamedTuple):
    """The n-grams of a text, as numbers in rising order, and how often each occurs, (k,) each."""

    grams: Tensor
    times: Tensor


def training_texts(source: TaskSource) -> list[Batch]:
    """The texts of the training split, each as a batch of windows in order.

    Where a source names no members they are those of its first training tasks, in which a text may occur twice.
    """
    inner = _inner(source)
    with during(source, "training"):
        if isinstance(inner, Mixture):
            return [text for name in inner.shares["train"] for text in training_texts(inner.sources[name])]
        members, examples = inner.members("train"), getattr(inner, "examples", None)
        if examples is None or not members:
            tasks = [source.task("train", index) for index in range(POOL_TASKS)]
            return [batch for task in tasks for batch in task]
        return [Batch.of(*examples.take(np.sort(rows))) for rows in members.values()]


def _inner(source: TaskSource) -> TaskSource:
    return source.source if isinstance(source, Watched) else source


def _windows(texts: list[Batch]) -> list[Windows]:
    """The windows of texts, up to `POOL_SYMBOLS`, each after the one before it."""
    chosen, total = [], 0
    for text in texts:
        chosen.append(after_one_another(text, text.inputs.new_full((text.inputs.shape[1],), -1))[0])
        total += text.targets.numel()
        if total >= POOL_SYMBOLS:
            break
    return chosen


def after_one_another(batch: Batch, tail: Tensor) -> tuple[Windows, Tensor]:
    """Windows in order, each after the T symbols before it, of which the first has the `tail`; and the last T symbols.

    Windows of weight 0 are not read: nothing of them is counted, and they are before none.
    """
    real = batch.weight > 0
    inputs, targets = batch.inputs[real], batch.targets[real]
    inputs = torch.where(inputs == PADDING, -1, inputs)  # no context
    flat, length, width = torch.cat([tail, inputs.flatten()]), inputs.shape[1], len(tail)
    wide = flat.unfold(0, width + length, length) if len(inputs) else flat.new_zeros(0, width + length)
    not_scored = targets.new_full((len(targets), width), -1)
    return Windows(wide, torch.cat([not_scored, targets.clamp(min=-1)], 1)), flat[len(flat) - width :]


def contexts(inputs: Tensor, symbols: int, order: int) -> list[Tensor]:
    r"""The number $\sum_{j < n - 1} x_{t-j} V^j$ of the n - 1 symbols up to each position, for n = 1 … `order`.

    -1 where there are fewer. Inputs (n, T) give tensors (n, T).
    """
    numbers = [torch.zeros_like(inputs)]
    for back in range(order - 1):
        shifted = torch.nn.functional.pad(inputs, (back, 0), value=-1)[:, : inputs.shape[1]]
        valid = (numbers[-1] >= 0) & (shifted >= 0)
        numbers.append(torch.where(valid, numbers[-1] + shifted * symbols**back, -1))
    return numbers


def count_ngrams(windows: Sequence[Windows], symbols: int, order: int) -> list[Counts]:
    """How often each n-gram occurs in windows, for n = 1 … `order`."""
    parts: list[list[Tensor]] = [[] for _ in range(order)]
    for inputs, targets in windows:
        for part, context in zip(parts, contexts(inputs, symbols, order)):
            scored = (targets >= 0) & (context >= 0)
            part.append(context[scored] * symbols + targets[scored])
    return [Counts(*torch.cat(part or [torch.empty(0).long()]).unique(return_counts=True)) for part in parts]


class NGrams(Learner):
    r"""N-gram models with back-off (Witten and Bell) of training texts and support, and of the support alone.

    $$ p(x \mid h) = (1 - s) \, p^{\text{all}}_N(x \mid h) + s \, p^{\text{support}}_N(x \mid h), \qquad
       p_n(x \mid h) = \frac{c(hx) + \epsilon \, u(h)\, p_{n-1}(x \mid h')}{c(h) + \epsilon \, u(h)}, \quad
       p_0 = 1 / V $$

    where $c$ counts, $u(h)$ is the number of distinct symbols seen after the context $h$, and $h'$ is $h$ without its
    first symbol.

    The state is `{"grams n": (k,), "count n": (k,), "tail": (N - 2,)}` for the orders n = 1 … N; the tail, the
    last symbols read, is empty unless `causal`.

    Args:
        pool: the counts of the training texts for each order, see `count_ngrams`.
        objective: loss and metrics of the tasks.
        symbols: V.
        share: s, of the model of the support alone, which suits a text unlike those of training.
        escape: $\epsilon$, how strongly a context with many different symbols backs off; 1 is Witten's and Bell's.
        causal: whether the query is a text in order, after the support, whose windows are counted once they are
            predicted: transductive, but causal. If False, each window is predicted by itself.

    Example:
        >>> from kshot import objectives
        >>> nothing = Counts(torch.empty(0).long(), torch.empty(0).long())
        >>> learner = NGrams([nothing] * 2, objectives.next_token, symbols=4, escape=1.0)
        >>> text = Batch.of(torch.tensor([[2, 3, 2, 3]]), torch.tensor([[3, 2, 3, 2]]))
        >>> learner.predict(learner.adapt(text), torch.tensor([[2]])).exp()
        tensor([[[0.0278, 0.0278, 0.1389, 0.8056]]])

    References:
        Witten, Bell: The zero-frequency problem, IEEE Transactions on Information Theory 1991 (method C). Cleary,
        Witten: Data Compression Using Adaptive Coding and Partial String Matching, IEEE Transactions on Communications
        1984.

    Deviations:
        Lower orders are mixed in, where PPM excludes them, and windows are counted as a whole, where PPM counts each
        symbol once it is read.
    """

    @check_arguments
    def __init__(
        self,
        pool: Sequence[Counts],
        objective: Objective,
        *,
        symbols: PositiveInt,
        share: Fraction = 0.5,
        escape: PositiveFloat = 2.0,
        causal: bool = False,
    ) -> None:
        super().__init__(objective)
        self.pool, self.order, self.symbols, self.share, self.escape = list(pool), len(pool), symbols, share, escape
        self.transductive = self.causal_queries = self.ordered = causal

    def _adapt(self, support: Batch) -> Tree:
        # Windows that are predicted by themselves may come in any order.
        width = max(self.order - 2, 0) if self.causal_queries else 0
        windows, tail = after_one_another(support, support.inputs.new_full((width,), -1))
        counts = count_ngrams([windows], self.symbols, self.order)
        state = {f"grams {n}": each.grams for n, each in enumerate(counts, 1)}
        return state | {f"count {n}": each.times for n, each in enumerate(counts, 1)} | {"tail": tail}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        own = [[Counts(state[f"grams {n}"], state[f"count {n}"]) for n in range(1, self.order + 1)]]
        tail, length = state["tail"], inputs.shape[1]
        if not self.causal_queries:
            at_once = max(1, CELLS // (length * self.symbols))
            return torch.cat([self._log_prob(chunk, own) for chunk in inputs.split(at_once)])
        predictions, read = [], list[Windows]()
        for window, weight in zip(inputs.split(1), current_query_weight(len(inputs), like=inputs.float()).split(1)):
            # The known targets of a window: the next symbol of each position, and of the last once the next is read.
            targets = torch.nn.functional.pad(window[:, 1:], (0, 1), value=-1)
            if read:
                read[-1].targets[:, -1] = torch.where(window[:, 0] == PADDING, -1, window[:, 0])
            extended, after = after_one_another(Batch(window, targets, torch.ones_like(weight)), tail)
            counts = [*own, count_ngrams(read, self.symbols, self.order)]
            predictions.append(self._log_prob(extended.inputs, counts)[:, -length:])
            if weight > 0:
                read.append(extended._replace(targets=torch.where(extended.targets == PADDING, -1, extended.targets)))
                tail = after
        return torch.cat(predictions)

    def _log_prob(self, inputs: Tensor, own: Sequence[Sequence[Counts]]) -> Tensor:
        """Log-probabilities (n, T, V) of the symbols after each position of inputs (n, T)."""
        all_PV = torch.full((inputs.numel(), self.symbols), 1 / self.symbols, device=inputs.device)
        own_PV = all_PV
        for order, context in enumerate(contexts(inputs, self.symbols, self.order)):
            context_U, number_P = context.flatten().unique(return_inverse=True)
            count_UV = all_PV.new_zeros(len(context_U), self.symbols)
            for counts in own:
                _add_counts(count_UV, context_U, counts[order])
            if self.share > 0:
                own_PV = self._back_off(count_UV, number_P, own_PV)
            _add_counts(count_UV, context_U, self.pool[order])
            all_PV = self._back_off(count_UV, number_P, all_PV)
        return torch.lerp(all_PV, own_PV, self.share).log().view(*inputs.shape, self.symbols)

    def _back_off(self, count_UV: Tensor, number_P: Tensor, shorter_PV: Tensor) -> Tensor:
        """Probabilities (P, V) from the counts after each distinct context, and those under shorter contexts."""
        total_U1, escape_U1 = count_UV.sum(1, keepdim=True), self.escape * (count_UV > 0).sum(1, keepdim=True)
        share_U1 = torch.where(total_U1 > 0, escape_U1 / (total_U1 + escape_U1).clamp(min=1), 1.0)
        seen_UV = (1 - share_U1) * count_UV / total_U1.clamp(min=1)
        return seen_UV[number_P] + share_U1[number_P] * shorter_PV


def _add_counts(count_UV: Tensor, context_U: Tensor, counts: Counts) -> None:
    """Add, in place, how often each symbol follows each context."""
    symbols = count_UV.shape[1]
    first = context_U.clamp(min=0) * symbols
    start, stop = torch.searchsorted(counts.grams, first), torch.searchsorted(counts.grams, first + symbols)
    size = torch.where(context_U >= 0, stop - start, 0)
    row = torch.arange(len(size), device=size.device).repeat_interleave(size)
    place = torch.arange(len(row), device=size.device) - (size.cumsum(0) - size)[row] + start[row]
    symbol = counts.grams[place] - first[row]
    count_UV.index_put_((row, symbol), counts.times[place].to(count_UV.dtype), accumulate=True)
