"""Small causal language models, and pretrained ones: the logits of the next symbol at every position.

Shape legend: n texts, L symbols of a text, V symbols of the vocabulary, E, H widths of embedding and layers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kshot.annotations import FractionBelowOne, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.models.pretrained import Pretrained, with_lora
from kshot.supplied import ContextLength, LanguageModelFolder, NumReserved, NumSymbols

Body = Literal["gru", "lstm", "transformer"]

LAYERS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class LanguageModel(nn.Module):
    """See `language_model`."""

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
        """Integer symbols (n, L) to the logits (n, L, V) of the next symbol at each position."""
        return self.score(self.body(self.embed(symbols)))

    def embed(self, symbols: Tensor) -> Tensor:
        """Symbols (n, L) to the input (n, L, E) of the body."""
        if symbols.is_floating_point():
            raise ValueError(
                f"a language model needs integer symbols (n, length), got {symbols.dtype} "
                f"{tuple(symbols.shape)}; kshot.sources.corpus returns them"
            )
        return self.dropout(self.embedding(symbols))

    def score(self, features: Tensor) -> Tensor:
        """Features (n, L, H) of the body to logits (n, L, V)."""
        scores = self.head(self.dropout(features))
        return nn.functional.linear(scores, self.embedding.weight, self.bias) if self.tied else scores


class Recurrent(nn.Module):
    """Recurrent layers, (n, L, E) to (n, L, H), with an initial state of zero."""

    def __init__(self, kind: str, embedding: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = LAYERS[kind](embedding, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0]


class CausalTransformer(nn.Module):
    """Blocks of causal attention with learned position embeddings and pre-layer normalisation."""

    def __init__(self, width: int, layers: int, heads: int, context_length: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.position):
            raise ValueError(
                f"this transformer reads up to {len(self.position)} symbols, got {x.shape[1]}; use a larger "
                "context_length, or cut texts into shorter windows"
            )
        x = x + self.position[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Block(nn.Module):
    """A block of causal attention and a perceptron: (n, L, H) to (n, L, H)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(self.attention_norm(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (n, heads, L, H / heads)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.projection(attended.transpose(1, 2).reshape(n, length, width)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


@check_arguments
def language_model(
    symbols: Annotated[NumSymbols, Ge(1)],
    body: Body = "lstm",
    *,
    width: PositiveInt = 128,
    layers: PositiveInt = 1,
    embedding: PositiveInt | None = None,
    tied: bool = True,
    heads: PositiveInt = 4,
    context_length: Annotated[ContextLength, Ge(1)] = 256,
    dropout: FractionBelowOne = 0.0,
) -> LanguageModel:
    r"""A small causal language model to train from scratch: symbols (n, L) to logits (n, L, V).

    $$ h_t = \text{body}(e_{x_1}, \dots, e_{x_t}), \qquad p(x_{t+1} \mid x_1 \dots x_t) = \mathrm{softmax}(W h_t + b),
       \quad W = E A \text{ if tied} $$

    Args:
        symbols: V, size of the vocabulary: `len(tasks.vocabulary)` of a corpus.
        body: "gru" or "lstm", for texts of any length, or "transformer", for at most `context_length` symbols.
        width, layers: H, width of the layers, and their number.
        embedding: E, width of the embedding; by default half of `width`, or `width` for a transformer.
        tied: whether the output layer shares the weights of the embedding, after a linear map A (H, E).
        heads, context_length: of a transformer: attention heads, a divisor of `width`, and maximal number of symbols.
        dropout: dropout of embeddings, features and between layers, in training mode.

    Returns:
        A module with the submodules `embedding`, `body` and `head`.

    Raises:
        ValueError: for a transformer, `heads` does not divide `width`, or `embedding` differs from `width`.

    Example:
        >>> language_model(symbols=30, body="lstm", width=16)(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 30])

    References:
        Press, Wolf: Using the Output Embedding to Improve Language Models, EACL 2017, arXiv:1608.05859 (tied, with the
        map A); Xiong et al., arXiv:2002.04745 (pre-LN).
    """
    is_transformer = body == "transformer"
    embedding = (width if is_transformer else max(width // 2, 1)) if embedding is None else embedding
    if is_transformer and (width % heads or embedding != width):
        raise ValueError(
            f"a transformer needs heads that divide its width and an embedding of this width, got {heads} heads, "
            f"width {width} and embedding {embedding}"
        )
    network = (
        CausalTransformer(width, layers, heads, context_length, dropout)
        if is_transformer
        else Recurrent(body, embedding, width, layers, dropout)
    )
    return LanguageModel(symbols, embedding, network, width, tied=tied, dropout=dropout)


RESERVED_LOGIT = -1e4  # of the reserved symbols, which are never predicted


class CausalLM(Pretrained):
    """A causal model of `transformers` as a language model: symbols (n, L) to logits (n, L, V)."""

    def __init__(self, model: nn.Module, reserved: int, folder: Path) -> None:
        super().__init__()
        self.model, self.reserved = model, reserved
        digest = hashlib.sha256()
        for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        self.set_origin(str(folder), digest.hexdigest())

    def forward(self, symbols: Tensor) -> Tensor:
        max_length = getattr(self.model.config, "max_position_embeddings", None)
        if max_length is not None and symbols.shape[1] > max_length:
            raise ValueError(
                f"this model reads up to {max_length} tokens, got {symbols.shape[1]}; cut texts into shorter windows"
            )
        if not self.reserved:
            return self.model(input_ids=symbols, use_cache=False).logits
        mask = (symbols >= self.reserved).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)  # texts are padded at the start
        tokens = (symbols - self.reserved).clamp(min=0)
        logits = self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return nn.functional.pad(logits, (self.reserved, 0), value=RESERVED_LOGIT)


@check_arguments
def causal_lm(folder: LanguageModelFolder, *, rank: PositiveInt | None = 8, reserved: NumReserved = 0) -> CausalLM:
    r"""A pretrained causal language model from a local folder of `transformers`; nothing is downloaded.

    With a rank, the layers that `peft` chooses for the architecture get LoRA adapters (see `models.pretrained`), and
    only these are trained, adapted and saved in states.

    Args:
        folder: folder with `config.json` and safetensors.
        rank: r, rank of LoRA; None trains all weights.
        reserved: number of symbols before the model's tokens: 2 for `kshot.sources.corpus` with `unit="tokens"`,
            for padding and unknown symbols, which are not attended to and never predicted.

    Returns:
        A module for any learner of `objectives.next_token`; symbols are token ids plus `reserved`.

    Raises:
        ValueError: `transformers` or `peft` is not installed, or the folder has no causal model.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; expected a folder of save_pretrained()")
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ValueError("causal_lm needs transformers, which is not installed: pip install 'kshot[text]'") from None
    try:
        # eager attention, since fused kernels have no second derivative
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} has no readable causal language model: {reason}") from None
    if rank is not None:
        model = with_lora(model, rank, task_type="CAUSAL_LM")
    return CausalLM(model, reserved, Path(folder))
