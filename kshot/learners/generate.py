"""Text from an adapted learner: one symbol after another, each drawn from what it predicts.

Shape legend: P symbols of the prompt, V symbols of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from kshot.learner import Learner
from kshot.types import Tree


def generate(
    learner: Learner,
    state: Tree,
    prompt: Tensor | np.ndarray | Sequence[int],
    *,
    length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    context: int | None = None,
    never: Collection[int] = (0, 1),
    seed: int = 0,
) -> Tensor:
    r"""Go on with a text as the learner, adapted to somebody, predicts that it would.

    $$ x_{t+1} \sim q, \qquad q_v \propto p_v^{1 / \tau} [v \in N], \quad
       p = \mathrm{softmax}(\text{predict}(\text{state}, x_{t-C+1} \dots x_t)) $$

    with $N$ the nucleus: the fewest likeliest symbols that together have a probability of at least `top_p`.

    Args:
        learner: of `objectives.next_token`: symbols (n, L) to logits (n, L, V); used in evaluation mode, and left as
            it was.
        state: what it adapted to.
        prompt: (P,) integers, at least one: what the `encoding` of a corpus makes of a text.
        length: symbols to add.
        temperature: $\tau$; 0 takes the likeliest symbol each time, below 1 is bolder in what is likely anyway.
        top_p: from above 0 to 1, where all symbols may come.
        context: C, the most symbols that are read before each; None reads all, which takes time with their number.
        never: symbols that are not drawn: by default padding and the unknown, which no text holds.
        seed: of the draws.

    Returns:
        The symbols added, (length,) int64.

    Raises:
        ValueError: an empty prompt, a length or a context below 1, a temperature below 0, a `top_p` outside 0 … 1.

    Example:
        >>> from kshot import objectives
        >>> model = kshot.models.language_model(symbols=12, width=8)
        >>> learner = kshot.maml(model, inner_lr=0.1, objective=objectives.next_token)
        >>> state = learner.adapt(kshot.Batch.of(torch.ones(2, 5).long(), torch.ones(2, 5).long()))
        >>> generate(learner, state, torch.tensor([2, 3]), length=4).shape
        torch.Size([4])

    References:
        Holtzman et al.: The Curious Case of Neural Text Degeneration, ICLR 2020, arXiv:1904.09751 (top-p).
    """
    text = torch.as_tensor(prompt)
    if text.ndim != 1 or not len(text) or text.is_floating_point():
        raise ValueError(f"a prompt is at least one symbol, integers (P,), got {text.dtype} {tuple(text.shape)}")
    for name, count in (("length", length), ("context", context)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, which takes the likeliest symbol, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, which lets all symbols come, got {top_p}")
    random = torch.Generator().manual_seed(seed)
    text = text.long()
    was_training = learner.training
    learner.eval()
    try:
        with torch.no_grad():
            for _ in range(length):
                read = text if context is None else text[-context:]
                logits = learner.predict(state, read[None])[0, -1].double().cpu()
                logits[list(never)] = -torch.inf
                drawn = _drawn(logits, temperature, top_p, random).to(text.device)
                text = torch.cat([text, drawn[None]])
    finally:
        learner.train(was_training)
    return text[len(prompt) :]


def _drawn(logits: Tensor, temperature: float, top_p: float, random: torch.Generator) -> Tensor:
    """One symbol, (), from logits (V,)."""
    if temperature == 0:
        return logits.argmax()
    chance, symbols = logits.softmax(0).sort(descending=True)
    before = chance.cumsum(0) - chance  # of the symbols likelier than each
    kept = (chance.log() / temperature).masked_fill(before >= top_p, -torch.inf)
    return symbols[torch.multinomial(kept.softmax(0), 1, generator=random)[0]]
