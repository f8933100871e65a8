"""Sampling of text from an adapted learner.

Shape legend: P symbols of the prompt, V symbols of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import NonNegativeFloat, PositiveFraction, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import Learner, evaluation_mode
from kshot.types import Tree


@check_arguments
def generate(
    learner: Learner,
    state: Tree,
    prompt: Tensor | np.ndarray | Sequence[int],
    *,
    length: PositiveInt,
    temperature: NonNegativeFloat = 1.0,
    top_p: PositiveFraction = 1.0,
    context: PositiveInt | None = None,
    never: Collection[int] = (0, 1),
    seed: int = 0,
) -> Tensor:
    r"""Continue a text by sampling from the predictions of an adapted learner.

    $$ x_{t+1} \sim q, \qquad q_v \propto p_v^{1 / \tau} [v \in N], \quad
       p = \mathrm{softmax}(\text{predict}(\text{state}, x_{t-C+1} \dots x_t)) $$

    where $N$ is the nucleus: the smallest set of most likely symbols with a total probability of at least `top_p`.

    Args:
        learner: learner for `objectives.next_token`: symbols (n, L) to logits (n, L, V). It is used in evaluation mode
            and then restored to its mode.
        state: its state, as returned by `adapt`.
        prompt: (P,) integers, at least one, such as the `encoding` of a corpus returns for a text.
        length: number of symbols to generate.
        temperature: $\tau$; values below 1 favour likely symbols, 0 takes the most likely one.
        top_p: above 0, up to 1 for all symbols.
        context: C, largest number of symbols read before each new one; None reads all, in time that grows with them.
        never: symbols that are not generated: by default padding and the unknown symbol, which no text contains.
        seed: random seed of the sampling.

    Returns:
        The generated symbols, (length,) int64.

    Raises:
        ValueError: an empty prompt, or an argument out of bounds.

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
        raise ValueError(f"prompt must be integers (P,), at least one, got {text.dtype} {tuple(text.shape)}")
    random = torch.Generator().manual_seed(seed)
    text = text.long()
    with evaluation_mode(learner):
        for _ in range(length):
            window = text if context is None else text[-context:]
            logits = learner.predict(state, window[None])[0, -1].double().cpu()
            logits[list(never)] = -torch.inf
            symbol = _sample(logits, temperature, top_p, random).to(text.device)
            text = torch.cat([text, symbol[None]])
    return text[len(prompt) :]


def _sample(logits: Tensor, temperature: float, top_p: float, random: torch.Generator) -> Tensor:
    """Draw one symbol, (), from logits (V,)."""
    if temperature == 0:
        return logits.argmax()
    probability, symbols = logits.softmax(0).sort(descending=True)
    likelier = probability.cumsum(0) - probability  # total probability of the more likely symbols
    nucleus = (probability.log() / temperature).masked_fill(likelier >= top_p, -torch.inf)
    return symbols[torch.multinomial(nucleus.softmax(0), 1, generator=random)[0]]
