"""Pretrained encoders of sentences: where their folder lies, what it says, and texts as features or tokens.

A folder is what Hugging Face and sentence-transformers save: config, tokenizer and weights as safetensors. It is read
where it lies. Nothing is fetched, and no code of a folder is run.

Shape legend: n texts, L tokens of a text, D features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kshot.data.cache import cached, is_cached
from kshot.data.dataset import ArrayDataset

log = logging.getLogger(__name__)

_VERSION = 1  # counts the changes to the features below: part of the cache's name
CHUNK = 2048  # texts that are kept in one file: what an interrupted run loses at most
BATCH = 64  # texts in one pass; of like lengths, so that little is padding
WORTH_SAYING = 1000  # texts; fewer are encoded in seconds

_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


class Pooling(NamedTuple):
    r"""How the vectors of a text's tokens become one.

    $$ f = \frac{\sum_t m_t h_t}{\sum_t m_t} \text{ (mean)}, \quad f \mapsto f / \lVert f \rVert \text{ (normalized)} $$

    Attributes:
        mode: mean, cls (the first token), max, mean_sqrt_len (the sum by the root of the length) or lasttoken.
        normalized: whether features have length 1.
    """

    mode: str = "mean"
    normalized: bool = False

    def __call__(self, hidden_nLD: Tensor, mask_nL: Tensor) -> Tensor:
        """The features (n, D) of the tokens' vectors, of which the mask counts those that are 1."""
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


_MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken")


class SentenceEncoder:
    r"""A pretrained encoder, used as it is: texts to features, computed once and kept in the cache.

    Features are pooled as the folder's files of sentence-transformers say, else by the mean over tokens. It is a
    featuriser: give it to `kshot.sources.text(features=…)`, or name its folder in a run file.

    Args:
        name: a local folder; `package:NAME` for one that an installed package holds; or the name of a model on the
            Hugging Face hub that is in the local cache, such as `sentence-transformers/all-MiniLM-L6-v2`.
        length: tokens that are read of a text, special ones included; by default what the folder says. A longer text
            is cut, and how many were is said.
        device: what the features are computed on.

    Attributes:
        folder: where it lies.
        length: as above.
        pooling: how tokens become features.
        sha256: of the folder's files that the features depend on.

    Raises:
        ValueError: no such folder, or one without config, tokenizer or weights as safetensors, or whose
            sentence-transformers modules are unknown.

    References:
        Reimers, Gurevych: Sentence-BERT, EMNLP 2019, arXiv:1908.10084.
    """

    def __init__(self, name: str | Path, *, length: int | None = None, device: torch.device | str = "cpu") -> None:
        self.name, self.device = str(name), device
        root = folder_of(self.name)
        modules = _json(root / "modules.json") or []
        self.folder = root / next((str(row["path"]) for row in modules if _kind(row) == "Transformer"), "")
        _check(self.folder)
        self.pooling = _pooling(root, modules)
        said = _json(root / "sentence_bert_config.json") or {}
        self._lower = bool(said.get("do_lower_case"))
        further = _json(root / "config_sentence_transformers.json") or {}
        self._prompt: str = (further.get("prompts") or {}).get(further.get("default_prompt_name")) or ""
        most = int(said.get("max_seq_length") or _most_tokens(self.folder))
        if length is not None and not 3 <= length <= most:
            raise ValueError(f"this encoder reads 3 … {most} tokens of a text, got width {length}: {self.folder}")
        self.length = length or most
        self._root = root

    @cached_property
    def sha256(self) -> str:
        files = sorted({*self.folder.iterdir(), self._root / "config_sentence_transformers.json"})
        digest = hashlib.sha256(repr((self.pooling, self._lower, self._prompt)).encode())
        for path in files:
            if path.is_file() and path.suffix in (".json", ".txt", ".model", ".safetensors"):
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def __call__(self, texts: Sequence[str]) -> ArrayDataset:
        """The features (n, D) of texts, from the cache where they are in it."""
        chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
        names = [self._cache_name(chunk) for chunk in chunks]
        missing = [chunk for chunk, name in zip(chunks, names) if not is_cached(name)]
        if (count := sum(map(len, missing))) >= WORTH_SAYING:
            log.warning("%s encodes %d texts, once: they are kept in the cache", self.name, count)

        def part(chunk: Sequence[str], name: str) -> np.ndarray:
            return cached(name, lambda: {"features": self.encode(chunk)})["features"]

        return ArrayDataset(np.concatenate([*map(part, chunks, names)]))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The features (n, D) of texts, float32, computed now.

        Raises:
            ValueError: a text without characters.
        """
        rows = self._tokens(texts)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        model = self.pooled()
        features: np.ndarray | None = None
        for start in range(0, len(order), BATCH):
            own = order[start : start + BATCH]
            batch = {name: torch.from_numpy(leaf).to(self.device) for name, leaf in _padded([rows[i] for i in own])}
            with torch.no_grad():
                found = model(**batch).float().cpu().numpy()
            if features is None:
                features = np.empty((len(rows), found.shape[1]), np.float32)
            features[own] = found
        if features is None:
            raise ValueError("there is no text to encode")
        return features

    def tokens(self, texts: Sequence[str]) -> ArrayDataset:
        """Texts as `{"input_ids": (n, L), "attention_mask": (n, L)}`, L the longest text's, `length` at most."""
        return ArrayDataset(dict(_padded(self._tokens(texts))))

    def pooled(self) -> Pooled:
        """The encoder as a module in evaluation mode, a new one each time."""
        return Pooled(self._transformer(), self.pooling).to(self.device).eval()

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        for row, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {row} holds no characters but spaces: leave it out, or give it words")
        texts = [self._prompt + (text.lower() if self._lower else text) for text in texts]
        tokenizer = self._tokenizer
        # A token has at most some dozens of characters: what is far behind the end need not be read.
        heads = [text[: 50 * self.length] for text in texts]
        rows: list[list[int]] = tokenizer(heads, truncation=True, max_length=self.length, verbose=False)["input_ids"]
        full = [row for row, ids in enumerate(rows) if len(ids) >= self.length]
        cut = [row for row in full if len(tokenizer(heads[row], verbose=False)["input_ids"]) > self.length]
        if cut:
            log.warning(
                "%s reads %d tokens of a text: %d of %d texts are longer and are cut, the first is text %d",
                self.name, self.length, len(cut), len(texts), cut[0],
            )  # fmt: skip
        return rows

    @cached_property
    def _tokenizer(self) -> Any:
        with _transformers() as hf, _explained(self.folder, "tokenizer"):
            return hf.AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)

    def _transformer(self) -> nn.Module:
        with _transformers() as hf, _explained(self.folder, "weights"):
            model, told = hf.AutoModel.from_pretrained(
                self.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        lost = [name for name in told["missing_keys"] if not name.startswith("pooler.")]  # which pooling here skips
        if lost:
            raise ValueError(f"the weights in {self.folder} lack {len(lost)} of its config's, such as {lost[0]}")
        return model

    def _cache_name(self, texts: Sequence[str]) -> str:
        key = hashlib.sha256(repr((_VERSION, self.sha256, self.length)).encode())
        for text in texts:
            content = text.encode()
            key.update(len(content).to_bytes(8, "little") + content)
        return f"encoded-{key.hexdigest()[:16]}"


class Pooled(nn.Module):
    """An encoder of `transformers` and its pooling: ids and mask (n, L) to features (n, D).

    Attributes:
        features: D.
        architecture: what `transformers` calls the encoder, such as bert.
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


def folder_of(name: str) -> Path:
    """Where an encoder lies: a folder, `package:NAME`, or a name of the Hugging Face hub that is in the local cache.

    Raises:
        ValueError: it is nowhere on this machine.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no folder {name}; what was trained on an encoder needs the same one, where it was")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise _missing_extra() from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, HFValidationError):
        raise ValueError(
            f"there is no encoder {name!r} on this machine: it is no folder and not in the local cache of the Hugging "
            f"Face hub. Fetch it once by `hf download {name}`, or give the path of a folder, or package:NAME for one "
            "that an installed package holds"
        ) from None


def _in_package(package: str) -> Path:
    found = find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"no package {package!r} is installed; package:NAME takes a name as it is imported")
    root = Path(found.submodule_search_locations[0])
    folders = sorted(path.parent for path in root.rglob("config.json") if any(path.parent.glob("*.safetensors")))
    if len(folders) != 1:
        raise ValueError(
            f"the package {package!r} must hold one folder with config.json and *.safetensors, it holds {len(folders)}"
            + (f": name one of {', '.join(map(str, folders))}" if folders else "")
        )
    return folders[0]


def _check(folder: Path) -> None:
    """Raise `ValueError` unless a folder holds what an encoder needs."""
    if _json(folder / "config.json") is None:
        raise ValueError(f"{folder} is no encoder: it holds no config.json")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ValueError(
            f"{folder} holds no tokenizer ({', '.join(_TOKENIZERS[:2])}, …): save the one that the encoder was trained "
            "with into it, by tokenizer.save_pretrained(folder)"
        )
    if not any(folder.glob("*.safetensors")):
        other = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".h5", ".ckpt"))
        raise ValueError(
            f"{folder} holds no weights as *.safetensors"
            + (f", but {other[0]}, which would have to be unpickled and is never loaded" if other else "")
            + ": save them by model.save_pretrained(folder)"
        )


def _pooling(root: Path, modules: list[dict[str, Any]]) -> Pooling:
    """What the folder's modules of sentence-transformers say; the mean where it has none."""
    mode, normalized = "mean", False
    for row in modules:
        kind = _kind(row)
        if kind == "Pooling":
            said = _json(root / row["path"] / "config.json") or {}
            modes = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
                     for key, on in said.items() if key.startswith("pooling_mode_") and on is True]  # fmt: skip
            modes = modes or [said.get("pooling_mode", "mean")]
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


def _most_tokens(folder: Path) -> int:
    """The tokens that an encoder reads, by its tokenizer, its positions, or 512."""
    said = (_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    if isinstance(said, int) and said < 1_000_000:  # a huge number stands for none
        return said
    return int((_json(folder / "config.json") or {}).get("max_position_embeddings") or 512)


def _json(path: Path) -> Any:
    """What a JSON file holds; None where there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _padded(rows: Sequence[Sequence[int]]) -> Iterator[tuple[str, np.ndarray]]:
    """Ids padded with 0 behind their end, and the mask of what is not padding; (n, L) each."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    yield "input_ids", ids
    yield "attention_mask", mask.astype(np.int64)


@contextmanager
def _explained(folder: Path, what: str) -> Iterator[None]:
    """Say of whatever a folder's files raise which folder it was."""
    try:
        yield
    except Exception as error:  # whatever a library raises on files that are not what they should be
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"the {what} in {folder} cannot be loaded: {type(error).__name__}: {first}") from error


@contextmanager
def _transformers() -> Iterator[Any]:
    """The library, kept from drawing bars and telling what it makes of a folder; its errors are told."""
    try:
        import transformers
        from transformers.utils import logging as told
    except ImportError:
        raise _missing_extra() from None
    bars, level = told.is_progress_bar_enabled(), told.get_verbosity()
    told.disable_progress_bar()
    told.set_verbosity_error()
    try:
        yield transformers
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def _missing_extra() -> ValueError:
    return ValueError("pretrained encoders need transformers, which is not installed: pip install 'kshot[text]'")
