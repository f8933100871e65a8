"""OnTooFew language models: from the symbols so far to the logits of the next one, at every position at once.

Shape legend: n texts, L symbols of a text, V symbols of the vocabulary, E numbers of an embedding, H width.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kshot.annotations import FractionBelowOne, PositiveInt
from kshot.models.pretrained import Pretrained

Body = Literal["gru", "lstm", "transformer"]
"""What carries the past: a recurrent layer, or causal attention."""

LAYERS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class LanguageModel(nn.Module):
    """See `language_model`. `embedding` makes symbols vectors, `body` reads them in order, `head` scores the next."""

    def __init__(
        self, symbols: int, embedding: int, body: nn.Module, width: int, *, tied: bool, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        self.body, self.dropout = body, nn.Dropout(dropout)
        self.head = nn.Linear(width, embedding if tied else symbols)
        if tied:
            self.bias = nn.Parameter(torch.zeros(symbols))
        self.tied = tied

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbols (n, L), integers, to the logits (n, L, V) of the symbol after each; a position sees none after it."""
        return self.score(self.body(self.embed(symbols)))

    def embed(self, symbols: Tensor) -> Tensor:
        """What `body` reads: (n, L) to (n, L, E)."""
        if symbols.is_floating_point():
            raise ValueError(
                f"a language model reads the numbers of symbols, int64 (n, length), got {symbols.dtype} "
                f"{tuple(symbols.shape)}; kshot.sources.corpus gives them"
            )
        return self.dropout(self.embedding(symbols))

    def score(self, features: Tensor) -> Tensor:
        """What `body` gave, (n, L, H), to logits (n, L, V)."""
        scores = self.head(self.dropout(features))
        return nn.functional.linear(scores, self.embedding.weight, self.bias) if self.tied else scores


class Recurrent(nn.Module):
    """Recurrent layers, (n, L, E) to (n, L, H), the state zero before the first symbol or as it was left."""

    def __init__(self, kind: str, embedding: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = LAYERS[kind](embedding, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0]


class CausalTransformer(nn.Module):
    """Blocks of causal attention with a learned vector for each place, normalised before each part (pre-LN)."""

    def __init__(self, width: int, layers: int, heads: int, context_length: int, dropout: float) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.place):
            raise ValueError(
                f"this transformer reads up to {len(self.place)} symbols, got {x.shape[1]}; make it with a larger "
                "context_length, or cut texts into shorter windows"
            )
        x = x + self.place[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Block(nn.Module):
    """Causal attention, then a perceptron: (n, L, H) to (n, L, H)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.told = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mixed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.read(self.before(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (n, heads, L, H / heads)
        read = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.told(read.transpose(1, 2).reshape(n, length, width)))
        return x + self.dropout(self.mixed(self.between(x)))


def language_model(
    symbols: int,
    body: Body = "lstm",
    *,
    width: PositiveInt = 128,
    layers: PositiveInt = 1,
    embedding: PositiveInt | None = None,
    tied: bool = True,
    heads: PositiveInt = 4,
    context_length: int = 256,
    dropout: FractionBelowOne = 0.0,
) -> LanguageModel:
    r"""A small causal language model, for kshot to train itself: symbols (n, L) to logits (n, L, V).

    $$ h_t = \text{body}(e_{x_1}, \dots, e_{x_t}), \qquad p(x_{t+1} \mid x_1 \dots x_t) = \mathrm{softmax}(W h_t + b),
       \quad W = E A \text{ where tied} $$

    Args:
        symbols: V, of the vocabulary: `len(tasks.vocabulary)` of a corpus.
        body: "gru" or "lstm", which read a text of any length, or "transformer", which reads `context` symbols of it.
        width: H, of the layers.
        layers: how many.
        embedding: E, numbers of a symbol's vector; half the width by default, all of it for a transformer.
        tied: whether the embedding is the output layer too, behind a linear map A (H, E). It then adapts as one.
        heads: of a transformer's attention; a divisor of the width.
        context_length: the most symbols that a transformer reads.
        dropout: of embeddings, features and what passes between layers, while training.

    Returns:
        A module with the parts `embedding`, `body` and `head`.

    Raises:
        ValueError: another body; fewer than one symbol, number, layer or place; heads that do not divide the width; a
            transformer whose embedding is not as wide as its layers; a dropout outside 0 … 1.

    Example:
        >>> model = language_model(symbols=30, body="lstm", width=16)
        >>> model(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 30])

    References:
        Press, Wolf: Using the Output Embedding to Improve Language Models, EACL 2017, arXiv:1608.05859 (tied, with the
        map A); Xiong et al., arXiv:2002.04745 (pre-LN).
    """
    if body not in get_args(Body):
        raise ValueError(f"body must be one of {', '.join(get_args(Body))}, got {body!r}")
    of_attention = body == "transformer"
    embedding = (width if of_attention else max(width // 2, 1)) if embedding is None else embedding
    for name, count in {
        "symbols": symbols, "width": width, "layers": layers, "embedding": embedding, "heads": heads,
        "context_length": context_length,
    }.items():  # fmt: skip
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout}")
    if of_attention and (width % heads or embedding != width):
        raise ValueError(
            f"a transformer's heads divide its width, and its embedding is as wide: got {heads} heads, width {width}, "
            f"embedding {embedding}"
        )
    network: nn.Module
    if of_attention:
        network = CausalTransformer(width, layers, heads, context_length, dropout)
    else:
        network = Recurrent(body, embedding, width, layers, dropout)
    return LanguageModel(symbols, embedding, network, width, tied=tied, dropout=dropout)


class CausalLM(Pretrained):
    """A causal model of `transformers` as a language model: symbols (n, L) to logits (n, L, V)."""

    def __init__(self, model: nn.Module, reserved: int, folder: Path) -> None:
        super().__init__()
        self.model, self.reserved = model, reserved
        digest = hashlib.sha256()
        for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        self.came_from(str(folder), digest.hexdigest())

    def forward(self, symbols: Tensor) -> Tensor:
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and symbols.shape[1] > most:
            raise ValueError(
                f"this model reads up to {most} tokens, got {symbols.shape[1]}; cut texts into shorter windows"
            )
        if not self.reserved:
            return self.model(input_ids=symbols, use_cache=False).logits
        real = (symbols >= self.reserved).long()
        place = (real.cumsum(-1) - 1).clamp(min=0)  # a text begins behind its padding
        own = (symbols - self.reserved).clamp(min=0)
        logits = self.model(input_ids=own, attention_mask=real, position_ids=place, use_cache=False).logits
        return nn.functional.pad(logits, (self.reserved, 0), value=NEVER)


NEVER = -1e4  # a logit of what no text holds


def causal_lm(folder: Path | str, *, rank: PositiveInt | None = 8, reserved: int = 0) -> CausalLM:
    r"""A pretrained causal language model in a local folder, as `transformers` saves it; nothing is downloaded.

    With a rank, LoRA: each weight $W$ that `peft` chooses for the kind of model becomes $W + 2 B A$. $A$ (r, inputs)
    and $B$ (outputs, r), which starts at 0, alone adapt and learn, and so are all that a state holds.

    Args:
        folder: with `config.json` and safetensors.
        rank: r; None adapts all weights.
        reserved: how many symbols come before the model's own tokens: the 2 of `kshot.sources.corpus` with
            `unit="tokens"`, padding and the unknown, which are not attended to and never predicted.

    Returns:
        A module for any learner of `objectives.next_token`; symbols are the numbers of the model's own tokens,
        or `reserved` more.

    Raises:
        ValueError: `transformers` or `peft` isn't installed, no folder, no causal model in it, a rank below 1.

    References:
        Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None for all weights, got {rank}")
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: it has no config.json; give the folder of save_pretrained()")
    try:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ValueError(f"causal_lm needs {error.name}, which is not installed: pip install 'kshot[text]'") from None
    try:
        # Attention written out: fused kernels have no second derivative.
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, attn_implementation="eager"
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} holds no causal language model that can be read: {reason}") from None
    if rank is not None:
        with warnings.catch_warnings():  # of peft's own use of transformers
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
            options = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM")
            return CausalLM(get_peft_model(model, options), reserved, Path(folder))
    return CausalLM(model, reserved, Path(folder))
