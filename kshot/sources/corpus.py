"""Language tasks from your own texts: adapt to an author, speaker, language or file, then predict their text.

Shape legend: n windows, L characters of a window (length).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import EMPTY, PositiveInt, Size
from kshot.argument_checks import check_arguments
from kshot.data import library
from kshot.data.tables.frames import TableLike
from kshot.data.tables.table import Reading, ReadingOptions
from kshot.data.text.features import SpanDataset
from kshot.data.text.files import files_of, notes_on_links
from kshot.data.text.vocabulary import PADDING, UNKNOWN, Tokens, Vocabulary
from kshot.data.text_files import read_text
from kshot.objectives import Objective
from kshot.sources.corpus_texts import OF_FILES, MarkupReader, texts_from_files, texts_from_table, unpacked
from kshot.sources.rows import BadRows, unit_name
from kshot.supplied import Seed
from kshot.tasks.group_tasks import GroupTasks, Order
from kshot.tasks.pool import OnTooFew
from kshot.tasks.preprocessor import Preprocessor, Support
from kshot.tasks.source import if_any
from kshot.tasks.splitting import DEFAULT_SPLIT, cut_rows
from kshot.types import Batch, Split

Unit = Literal["characters", "bytes", "tokens"]

UNITS = {"file": "file", "folder": "folder", "passage": "speaker", "voice": "speaker"}
"""The name of a unit, by what a task is."""

log = logging.getLogger(__name__)

IGNORED = -100
"""The target of a position that is not scored."""
BYTES = Vocabulary(map(chr, range(256)))
"""The vocabulary of bytes: byte b has the id b + 2."""


@check_arguments
def corpus(
    path: Path | str,
    *,
    task: str = "file",
    pattern: str | None = None,
    text: str = "text",
    files: str = "*.txt",
    markup: Literal["keep", "drop"] = "keep",
    without: Collection[str] | None = None,
    unit: Unit = "characters",
    tokenizer: Path | str | None = None,
    length: PositiveInt = 64,
    pretrain_length: PositiveInt | None = None,
    shots: Size = 8,
    queries: Size = 8,
    train_queries: Size | None = None,
    order: Order = "given",
    split: Mapping[str, Any] | None = None,
    on_too_few: OnTooFew = "error",
    bad_rows: BadRows = "error",
    follow_links: bool = False,
    reading: ReadingOptions = EMPTY,
    seed: Seed = 0,
) -> Corpus:
    r"""Predict each next character of a text after adapting to a part of it.

    A task is a file, a folder of files, a speaker in the files, or the name in a column of a table. Its texts are
    joined by line feeds, and cut into windows of L = `length` characters. With $x$ the text of a task,

    $$ \text{inputs}_i = x_{iL} \dots x_{iL+L-1}, \quad \text{targets}_i = x_{iL+1} \dots x_{iL+L}, $$

    so that each character but the first is predicted exactly once, and no query window contains targets of the support.
    The last window of a task is padded: inputs with 0, targets with -100, which `objectives.next_token` ignores.

    Both are int64 (shots, L) in the support and (queries, L) in the query: 0 is padding, 1 a character that no training
    task contains, 2 … are the characters of the training tasks, or the bytes of UTF-8.

    Args:
        path: a folder of text files, a zip or tar of one, one such file, or a table (CSV, TSV, NDJSON, Parquet), also
            of a data set of the library such as `tinyshakespeare/input.txt`.
        task: the unit of a task. Of files: "file", "folder" (of the file), or, if the files name their speakers,
            "passage" or "voice". The same name in two files is two speakers for "passage", one for "voice". Of a table:
            the column of names, such as author.
        pattern: a regular expression whose first group is the name of a task. For "file" and "folder" it is optional,
            and searched in the relative path: `-(\w+)\.txt$` makes `1789-Washington.txt` a text of Washington. For
            "passage" and "voice" it marks where a speaker begins, such as a line `^(.+):$`; matches belong to no text.
        text: the column of texts of a table; its rows are in order.
        files: the names of the files to read in a folder.
        markup, without: "keep" reads texts unchanged; "drop" removes the tags and comments of XML or HTML, with the
            text of the elements `without`, such as STAGEDIR, and decodes `&amp;` and the like, see
            `kshot.data.text.markup`. The pattern sees the tags: `<SPEAKER>([^<]+)</SPEAKER>`.
        unit, tokenizer: "characters", "bytes" of UTF-8, a vocabulary of 258 for any data, or "tokens" of a pretrained
            model in the folder `tokenizer`, see `kshot.models.causal_lm`. Metrics are bits per character or byte.
        length: L, of characters, bytes or tokens.
        pretrain_length: number of characters that pretraining reads from the start of a window, `length` by default.
            Learners that read several windows, as `dynamic_evaluation`, need a model trained on as many.
        shots, queries, train_queries: number of windows, an int or a range each.
        order: "given" takes consecutive windows, the support before the query; "random" any windows of the task.
        split: see `kshot.tasks.splitting`; by default the column split of a table, else by ratio 0.7, 0.15, 0.15.
        bad_rows: "error", or "drop" to leave out rows without a text or a task, and files in another encoding.
        follow_links: whether to follow links that lead out of the folder.
        reading: format of text files if not UTF-8 with commas: encoding, delimiter, …; see `Reading`.
        on_too_few, seed: as in `GroupTasks`.

    Raises:
        ValueError: an unusable file, column, row or pattern, and errors of `cut` and `GroupTasks`.

    Example:
        >>> folder = Path(getfixture("tmp_path"))
        >>> for name in ("ann", "bob"):
        ...     _ = (folder / f"{name}.txt").write_text(f"my name is {name}. " * 9)
        >>> source = corpus(folder, length=16, shots=2, queries=3, split={"ratio": [1, 0, 0]})
        >>> support = source.task("train", 0).support
        >>> support.inputs.shape, source.vocabulary.decode(support.inputs[0].tolist())
        (torch.Size([2, 16]), 'my name is bob. ')
    """
    if (unit == "tokens") != (tokenizer is not None):
        raise ValueError("tokenizer, the folder of a pretrained language model, must be given with unit: tokens only")
    if pretrain_length is not None and pretrain_length < length:
        raise ValueError(f"pretrain_length must be a window's {length} characters or more, got {pretrain_length}")
    if without and markup == "keep":
        raise ValueError(f"without names elements of markup that is dropped ({', '.join(without)}): set markup: drop")
    path = library.resolve_path(path)
    notes: list[str] = []
    format, parser = Reading(**(reading or {})), MarkupReader(without or ()) if markup == "drop" else None
    if task in OF_FILES:
        with unpacked(path) as folder:
            drop = bad_rows == "drop"
            names = [folder] if folder.is_file() else files_of(folder, files, follow_links=follow_links)
            read = texts_from_files(folder, task, pattern, names, parser, drop=drop, encoding=format.encoding)
            notes = notes_on_links(folder)
    else:
        read = texts_from_table(path, task, text, (split or {}).get("column"), parser, bad_rows, format)
    if parser is not None:
        parser.check(path)
    if split is None:
        split = {"column": "split"} if read.splits else DEFAULT_SPLIT
    joined = {name: "\n".join(texts) for name, texts in read.texts.items()}
    parts = cut_rows(joined, split, kind="group", values=read.splits)
    vocabulary: Vocabulary | Tokens = BYTES
    if unit == "characters":
        vocabulary = Vocabulary.fit(parts["train"].values())
    elif tokenizer is not None:
        vocabulary = Tokens(tokenizer)
    preprocessor = CorpusPreprocessor(unit, length, vocabulary)
    ids = {name: preprocessor.encode(content) for name, content in joined.items()}
    examples, task_of_window = windows_of(list(ids.values()), length)
    rows = {name: np.flatnonzero(task_of_window == number) for number, name in enumerate(ids)}
    tasks = Corpus(
        examples, {part: {name: rows[name] for name in names} for part, names in parts.items()},
        objective=preprocessor.objective, preprocessor=preprocessor,
        pretraining=examples.of_length(pretrain_length or length),
        unknown={part: _share_of_unknown([ids[name] for name in names]) for part, names in parts.items()},
        shots=shots, queries=queries, train_queries=train_queries, order=order, on_too_few=on_too_few, seed=seed,
        name=f"corpus of {path.name}", left_out=if_any(**read.left_out),
    )  # fmt: skip
    tasks.unit = UNITS.get(task) or unit_name(task)
    tasks.notes = notes
    for note in notes:
        log.warning("%s", note)
    return tasks


class Corpus(GroupTasks):
    """`GroupTasks` of windows of text, for models of `len(vocabulary)` symbols.

    `unknown` is the share of characters of each split that no training task contains.
    """

    preprocessor: CorpusPreprocessor

    def __init__(self, *args: Any, pretraining: WindowDataset, unknown: Mapping[Split, float], **options: Any) -> None:
        super().__init__(*args, **options)
        self._pretraining, self.vocabulary, self.unknown = pretraining, self.preprocessor.vocabulary, unknown

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """`size` random texts of `pretrain_length` symbols of all training groups."""
        return Batch.of(*self._pretraining.take(self._pretraining_rows(step, size)))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"unknown": self.unknown}


@dataclass(frozen=True)
class CorpusPreprocessor(Preprocessor):
    """Converts texts into windows of symbols, and back."""

    reads_tables = False

    unit: Unit
    length: int
    vocabulary: Vocabulary | Tokens

    @property
    def objective(self) -> Objective:
        if isinstance(self.vocabulary, Tokens):
            return objectives.next_token_of(self.vocabulary.characters)
        return objectives.next_token

    def encode(self, text: str) -> np.ndarray:
        """The ids (n,) of the symbols of a text, int32."""
        if self.unit == "bytes":
            text = text.encode().decode("latin-1")
        return self.vocabulary.encode(text).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become the replacement character."""
        if self.unit != "bytes":
            return self.vocabulary.decode(ids)
        return bytes(i - 2 if i > UNKNOWN else 63 for i in ids if i != PADDING).decode(errors="replace")

    def counted(self, targets: Tensor) -> Tensor:
        """The number of characters, or bytes, of each target (n, L); 0 for those that are not scored."""
        scored = (targets >= 0).long()
        if not isinstance(self.vocabulary, Tokens):
            return scored
        return torch.tensor(self.vocabulary.characters)[targets.clamp(min=0)] * scored

    def windows(self, path: Path) -> tuple[Tensor, Tensor]:
        """The windows of a text file, inputs and targets (n, L); ValueError if unreadable or below two characters."""
        text = read_text(path)
        if len(text) < 2:
            raise ValueError(f"{path} holds {len(text)} characters; there is nothing to predict in fewer than two")
        examples, task_of_window = windows_of([self.encode(text)], self.length)
        return examples.take(np.arange(len(task_of_window)))

    def support(self, path: Path | TableLike) -> Support:
        assert isinstance(path, Path)
        return Support(*self.windows(path), {})

    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tensor:
        assert isinstance(path, Path)
        return self.windows(path)[0]

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """The likeliest next symbol at each position, as a text for each window."""
        texts = [self.decode(ids) for ids in prediction.argmax(-1).tolist()]
        return {"window": list(range(1, len(texts) + 1)), "next": texts}

    def show_input(self, inputs: Tensor) -> str:
        return self.vocabulary.decode(inputs[inputs > 0].numpy())

    def show_target(self, target: Tensor) -> str:
        return self.vocabulary.decode(target[target >= 0].numpy())

    def describe(self) -> dict[str, Any]:
        return {"unit": self.unit, "length": self.length, "symbols": len(self.vocabulary)}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "corpus", "unit": self.unit, "length": self.length, **self.vocabulary.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CorpusPreprocessor:
        vocabulary = Tokens(data["tokenizer"]) if data["unit"] == "tokens" else Vocabulary(data["characters"])
        return cls(data["unit"], data["length"], vocabulary)


class WindowDataset:
    """Windows of L + 1 symbols as (inputs, targets), both (..., L): the first L, and the last L."""

    def __init__(self, windows: SpanDataset) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def of_length(self, length: int) -> WindowDataset:
        """Windows of the same starts, each extended in its text to `length` symbols."""
        windows = self.windows
        return WindowDataset(SpanDataset(windows.flat, windows.starts, windows.stops, length + 1))

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        window = self.windows.take(rows)
        inputs, following = window[..., :-1], window[..., 1:]
        scored = following != PADDING
        return torch.where(scored, inputs, PADDING), torch.where(scored, following, IGNORED)


def windows_of(texts: list[np.ndarray], length: int) -> tuple[WindowDataset, np.ndarray]:
    """The windows of texts, none across two texts, and the number of the text of each window."""
    sizes = np.array([len(ids) for ids in texts])
    counts = -(-np.maximum(sizes - 1, 0) // length)  # windows of each text
    text_of_window = np.repeat(np.arange(len(sizes)), counts)
    rank = np.arange(len(text_of_window)) - (counts.cumsum() - counts)[text_of_window]
    ends = sizes.cumsum()[text_of_window]
    starts = ends - sizes[text_of_window] + length * rank
    return WindowDataset(SpanDataset(np.concatenate(texts), starts, ends, length + 1)), text_of_window


def _share_of_unknown(ids: list[np.ndarray]) -> float:
    """The share of symbols that are unknown."""
    return float(np.mean(np.concatenate(ids) == UNKNOWN)) if sum(map(len, ids)) else 0.0
