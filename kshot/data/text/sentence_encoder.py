"""Pretrained sentence encoders: reading their folder, and texts as features or tokens.

A folder is what Hugging Face and sentence-transformers save: config, tokenizer and weights as safetensors. It is read
in place; nothing is downloaded, and no code of the folder is executed.

Shape legend: n texts, L tokens of a text, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kshot.data.cache import cached_each, is_cached, texts_key
from kshot.data.dataset import ArrayDataset
from kshot.data.pretrained import LOCAL, config, digest_of, folder_of, named_errors, transformers_library

log = logging.getLogger(__name__)

_VERSION = 1  # of the features below; part of the name of cached files
CHUNK = 2048  # texts in one cached file: the most that an interrupted run loses
BATCH = 64  # texts in one forward pass, of similar lengths to avoid padding
WORTH_LOGGING = 1000  # texts; fewer are encoded in seconds

_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken")


class Pooling(NamedTuple):
    r"""Combination of the vectors of a text's tokens into one.

    $$ f = \frac{\sum_t m_t h_t}{\sum_t m_t} \text{ (mean)}, \quad f \mapsto f / \lVert f \rVert \text{ (normalized)} $$

    Attributes:
        mode: mean, cls (first token), max, mean_sqrt_len (sum divided by the square root of the length) or lasttoken.
        normalized: whether features are scaled to length 1.
    """

    mode: str = "mean"
    normalized: bool = False

    def __call__(self, hidden_nLD: Tensor, mask_nL: Tensor) -> Tensor:
        """The features (n, D) of the vectors of tokens, where the mask is 1."""
        mask_nL1 = mask_nL[..., None].to(hidden_nLD.dtype)
        count_n1 = mask_nL1.sum(1).clamp_min(1)
        if self.mode == "cls":
            feat_nD = hidden_nLD[:, 0]
        elif self.mode == "max":
            feat_nD = hidden_nLD.masked_fill(mask_nL1 == 0, torch.finfo(hidden_nLD.dtype).min).amax(1)
        elif self.mode == "lasttoken":
            last_n = mask_nL.shape[1] - 1 - mask_nL.flip(1).argmax(1)
            feat_nD = hidden_nLD.take_along_dim(last_n[:, None, None], 1).squeeze(1)
        else:
            feat_nD = (hidden_nLD * mask_nL1).sum(1) / (count_n1.sqrt() if self.mode == "mean_sqrt_len" else count_n1)
        return normalize(feat_nD, dim=1) if self.normalized else feat_nD


class SentenceEncoder:
    r"""A frozen pretrained encoder: texts to features, computed once and cached.

    Features are pooled as the folder's sentence-transformers files specify, else by the mean over tokens. The encoder
    is a featuriser: pass it to `kshot.sources.text(features=…)`, or name its folder in a run file.

    Args:
        name: a local folder; `package:NAME` for one in an installed package; or the name of a model in the local cache
            of the Hugging Face hub, such as `sentence-transformers/all-MiniLM-L6-v2`.
        length: maximum number of tokens of a text, including special ones; by default that of the folder. Longer texts
            are truncated, and their number is logged.
        device: on which features are computed.

    Attributes:
        folder, pooling: of the transformer; how tokens become features.
        sha256: of the files that the features depend on.

    Raises:
        ValueError: no such folder, one without config, tokenizer or safetensors weights, or with unknown modules of
            sentence-transformers.

    References:
        Reimers, Gurevych: Sentence-BERT, EMNLP 2019, arXiv:1908.10084.
    """

    def __init__(self, name: str | Path, *, length: int | None = None, device: torch.device | str = "cpu") -> None:
        self.name, self.device = str(name), device
        self._root = root = folder_of(self.name)
        modules = config(root / "modules.json") or []
        self.folder = root / next((str(row["path"]) for row in modules if _kind(row) == "Transformer"), "")
        _check(self.folder)
        self.pooling = _pooling(root, modules)
        options = config(root / "sentence_bert_config.json") or {}
        self._lower = bool(options.get("do_lower_case"))
        defaults = config(root / "config_sentence_transformers.json") or {}
        self._prompt: str = (defaults.get("prompts") or {}).get(defaults.get("default_prompt_name")) or ""
        limit = int(options.get("max_seq_length") or _max_tokens(self.folder))
        if length is not None and not 3 <= length <= limit:
            raise ValueError(f"this encoder reads 3 … {limit} tokens of a text, got width {length}: {self.folder}")
        self.length = length or limit

    @cached_property
    def sha256(self) -> str:
        files = {*self.folder.iterdir(), self._root / "config_sentence_transformers.json"}
        kept = (path for path in files if path.is_file() and path.suffix in (".json", ".txt", ".model", ".safetensors"))
        return digest_of(kept, self.pooling, self._lower, self._prompt)

    def __call__(self, texts: Sequence[str]) -> ArrayDataset:
        """The features (n, D) of texts, from the cache if it has them."""
        chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
        names = [f"encoded-{texts_key((_VERSION, self.sha256, self.length), chunk)}" for chunk in chunks]
        num_missing = sum(len(chunk) for chunk, name in zip(chunks, names) if not is_cached(name))
        if num_missing >= WORTH_LOGGING:
            log.warning("%s encodes %d texts, once: their features are cached", self.name, num_missing)
        found = cached_each(names, lambda number: {"features": self.encode(chunks[number])})
        return ArrayDataset(np.concatenate([arrays["features"] for arrays in found]))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Compute the features (n, D) float32 of texts, of which none may be blank, without the cache."""
        if not texts:
            raise ValueError("there is no text to encode")
        rows = self._tokenize(texts)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        model = self.pooled()
        features = np.empty((len(rows), model.features), np.float32)
        for start in range(0, len(order), BATCH):
            index = order[start : start + BATCH]
            batch = {
                name: torch.from_numpy(ids).to(self.device) for name, ids in _padded([rows[i] for i in index]).items()
            }
            with torch.no_grad():
                features[index] = model(**batch).float().cpu().numpy()
        return features

    def tokens(self, texts: Sequence[str]) -> ArrayDataset:
        """Texts as `{"input_ids": (n, L), "attention_mask": (n, L)}`, with L of the longest text, at most `length`."""
        return ArrayDataset(_padded(self._tokenize(texts)))

    def pooled(self) -> Pooled:
        """A new module of the encoder and its pooling, in evaluation mode."""
        with transformers_library() as transformers, named_errors(self.folder, "weights"):
            model, report = transformers.AutoModel.from_pretrained(
                self.folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **LOCAL
            )
        missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]  # unused: `Pooling` pools
        if missing:
            raise ValueError(f"the weights in {self.folder} lack {len(missing)} of its config, such as {missing[0]}")
        return Pooled(model, self.pooling).to(self.device).eval()

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        for row, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {row} is blank: leave it out")
        # A token has at most some dozens of characters: text far behind the end need not be tokenised.
        heads = [(self._prompt + (text.lower() if self._lower else text))[: 50 * self.length] for text in texts]
        tokenize = partial(self._tokenizer, verbose=False)
        rows: list[list[int]] = tokenize(heads, truncation=True, max_length=self.length)["input_ids"]
        full = [row for row, ids in enumerate(rows) if len(ids) >= self.length]
        cut = [row for row in full if len(tokenize(heads[row])["input_ids"]) > self.length]
        if cut:
            log.warning(
                "%s reads %d tokens of a text: %d of %d texts are longer and are truncated, the first is text %d",
                self.name, self.length, len(cut), len(texts), cut[0],
            )  # fmt: skip
        return rows

    @cached_property
    def _tokenizer(self) -> Any:
        with transformers_library() as transformers, named_errors(self.folder, "tokenizer"):
            return transformers.AutoTokenizer.from_pretrained(self.folder, **LOCAL)


class Pooled(nn.Module):
    """An encoder of `transformers` and its pooling: ids and mask (n, L) to features (n, D).

    Attributes:
        features: D.
        architecture: the encoder's name in `transformers`, such as bert.
    """

    def __init__(self, transformer: Any, pooling: Pooling) -> None:
        super().__init__()
        self.features: int = transformer.config.hidden_size
        self.architecture: str = transformer.config.model_type
        self.transformer: nn.Module = transformer
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        return self.pooling(output.last_hidden_state, attention_mask)


def _check(folder: Path) -> None:
    """Raise ValueError unless a folder holds the files of an encoder."""
    if config(folder / "config.json") is None:
        raise ValueError(f"{folder} is not an encoder: it holds no config.json")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ValueError(
            f"{folder} holds no tokenizer ({', '.join(_TOKENIZERS[:2])}, …): save that of the encoder into it, by "
            "tokenizer.save_pretrained(folder)"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".h5", ".ckpt"))
        raise ValueError(
            f"{folder} holds no weights as *.safetensors"
            + (f", but {pickles[0]}, which would have to be unpickled and is never loaded" if pickles else "")
            + ": save them by model.save_pretrained(folder)"
        )


def _pooling(root: Path, modules: list[dict[str, Any]]) -> Pooling:
    """The pooling that the folder's modules of sentence-transformers specify; the mean if there are none."""
    mode, normalized = "mean", False
    for row in modules:
        kind = _kind(row)
        if kind == "Pooling":
            options = config(root / row["path"] / "config.json") or {}
            modes = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
                     for key, on in options.items() if key.startswith("pooling_mode_") and on is True]  # fmt: skip
            modes = modes or [options.get("pooling_mode", "mean")]
            if len(modes) != 1 or modes[0] not in _MODES:
                raise ValueError(f"{root} pools by {' and '.join(modes)}; kshot knows one of {', '.join(_MODES)}")
            mode = modes[0]
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer":
            raise ValueError(
                f"{root} has a module {kind!r} of sentence-transformers, which kshot does not know, only Transformer, "
                "Pooling and Normalize. In Python, features may be any function from texts to examples"
            )
    return Pooling(mode, normalized)


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rsplit(".", 1)[-1]


def _max_tokens(folder: Path) -> int:
    """The tokens that an encoder reads, by its tokenizer or its positions, else 512."""
    length = (config(folder / "tokenizer_config.json") or {}).get("model_max_length")
    if isinstance(length, int) and length < 1_000_000:  # larger numbers mean "unlimited"
        return length
    return int((config(folder / "config.json") or {}).get("max_position_embeddings") or 512)


def _padded(rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Ids padded with 0 at their end, and the mask of those that are not padding, (n, L) each."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
