"""Language tasks from a user's own texts: adapt to an author, speaker, language or file, then predict on.

Shape legend: n windows, L characters of a window (length).
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import EMPTY, PositiveInt
from kshot.data import library
from kshot.data.library.archives import SUFFIXES as ARCHIVES
from kshot.data.library.archives import unpack
from kshot.data.tables.open import SUFFIXES, open_table
from kshot.data.tables.table import Reading, ReadingOptions
from kshot.data.text.features import SpanDataset
from kshot.data.text.files import column_of, files_of, texts_of, values_of, words_of
from kshot.data.text.markup import Markup, tidy
from kshot.data.text.tokenizer import Tokens
from kshot.data.text.vocabulary import PADDING, UNKNOWN, Vocabulary
from kshot.data.text_files import read_text
from kshot.objectives import Objective
from kshot.tasks.group_tasks import GroupTasks, Order
from kshot.tasks.pool import OnTooFew, Rows
from kshot.tasks.preprocessor import Support
from kshot.tasks.sampling import Size
from kshot.tasks.splitting import cut
from kshot.types import Batch, Split

BadRows = Literal["error", "drop"]
Unit = Literal["characters", "bytes", "tokens"]
How = Literal["keep", "drop"]

log = logging.getLogger(__name__)

NAMED_WITHIN = ("passage", "voice")
"""Tasks that a pattern names within the files: who speaks in one file, or in any of them."""
OF_FILES = ("file", "folder", *NAMED_WITHIN)
"""What a task of text files can be; anything else is a table's column."""
RATIO = (0.7, 0.15, 0.15)
"""The shares of the tasks in train, val and test where nothing else is said."""
IGNORED = -100
"""The target of a position that is not scored."""
UNREADABLE, UNNAMED = "files in another encoding", "characters before the first that the pattern names"
BYTES = Vocabulary(map(chr, range(256)))
"""The vocabulary of bytes: byte b has the id b + 2."""


def corpus(
    path: Path | str,
    *,
    task: str = "file",
    pattern: str | None = None,
    text: str = "text",
    files: str = "*.txt",
    markup: How = "keep",
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
    reading: ReadingOptions = EMPTY,
    seed: int = 0,
) -> Corpus:
    r"""Predict each next character of somebody's text, after adapting to a little of it.

    A task is a file, a folder of files, a speaker in the files, or whoever a column of a table names. Its texts are
    laid end to end, a line feed between them, and cut into windows of `length` characters. With $x$ a task's text,

    $$ \text{inputs}_i = x_{iL} \dots x_{iL+L-1}, \quad \text{targets}_i = x_{iL+1} \dots x_{iL+L}, $$

    so that each character but the first is predicted exactly once, and no window of the query shows what a window of
    the support asks. The last window of a task is padded: its inputs with 0, its targets with -100, which
    `objectives.next_token` does not score.

    Inputs and targets are int64 (shots, L) in the support and (queries, L) in the query: 0 is padding, 1 a character
    that no training task holds, 2 … the characters of the training tasks, or the bytes of UTF-8.

    Args:
        path: a folder of text files, a zip or tar of one, one such file, or a table (CSV, TSV, NDJSON, Parquet). Where
            there is none, it is looked for in the library: `tinyshakespeare/input.txt` is a file of that set.
        task: what a task is. Of files: "file", "folder" (that the file lies in), or, where the files name who speaks,
            "passage" or "voice". The same name in two files is two speakers for "passage", and one for "voice". Of a
            table: the column that names it, such as author.
        pattern: a regular expression whose first group is the task's name. For "file" and "folder" it is looked for in
            the path from the folder on, and is optional: `-(\w+)\.txt$` makes `1789-Washington.txt` a text of
            Washington. For "passage" and "voice" it is found where a file names who speaks from there on, such as a
            line `^(.+):$`; the match itself is no part of anybody's text.
        text: a table's column with the texts; its rows are in order.
        files: the names of the files that are read from a folder.
        markup: "keep" reads texts as they are; "drop" leaves out the tags and comments of XML or HTML and decodes
            `&amp;` and its like, see `kshot.data.text.markup`. The pattern sees the tags:
            `<SPEAKER>([^<]+)</SPEAKER>` finds who speaks.
        without: of markup that is dropped, the elements whose text goes too, such as STAGEDIR and TITLE of a play.
        unit: "characters", or "bytes" of UTF-8, whose vocabulary of 258 is the same for all data, or "tokens" of a
            pretrained model, see `kshot.models.causal_lm`. Figures are bits per character, or byte, in each case.
        tokenizer: the folder of that model, whose byte-level tokenizer cuts the texts.
        length: characters (or bytes, or tokens) of a window.
        pretrain_length: characters of a text that pretraining reads, from where a window starts; a window's by default.
            Learners that read windows behind others, as `dynamic_evaluation`, want a model that has read as far.
        shots: support windows, an int or a range; so much of a task is known.
        queries: query windows, an int or a range.
        train_queries: the same in training tasks, `queries` by default.
        order: "given" takes neighbouring windows, the support before the query; "random" any windows of the task.
        split: how the tasks are cut into train, val and test, see `kshot.tasks.splitting`. By default as a table's
            column split says, or else by ratio 0.7, 0.15, 0.15.
        on_too_few: what becomes of a task with too few windows, see `GroupTasks`.
        bad_rows: "error", or "drop" to leave out rows without a text or a task, and files in another encoding.
        reading: how files are written, where it is not UTF-8 with commas: encoding, delimiter, …; see `Reading`.
        seed: names the sequence of tasks.

    Raises:
        ValueError: a file, a column or a row that cannot be used, a pattern that is none or names no task, and what
            `cut` and `GroupTasks` say.

    Example:
        >>> folder = Path(getfixture("tmp_path"))
        >>> for name in ("ann", "bob"):
        ...     _ = (folder / f"{name}.txt").write_text(f"my name is {name}. " * 9)
        >>> source = corpus(folder, length=16, shots=2, queries=3, split={"ratio": [1, 0, 0]})
        >>> support = source.task("train", 0).support
        >>> support.inputs.shape, source.vocabulary.decode(support.inputs[0].tolist())
        (torch.Size([2, 16]), 'my name is bob. ')
    """
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be {', '.join(get_args(Unit)[:-1])} or {get_args(Unit)[-1]}, got {unit!r}")
    if (unit == "tokens") != (tokenizer is not None):
        raise ValueError("unit: tokens, and it alone, takes a tokenizer: the folder of a pretrained language model")
    if length < 1:
        raise ValueError(f"length must be at least 1 character, got {length}")
    if pretrain_length is not None and pretrain_length < length:
        raise ValueError(f"pretrain_length must be a window's {length} characters or more, got {pretrain_length}")
    if markup not in ("keep", "drop"):
        raise ValueError(f"markup must be keep or drop, got {markup!r}")
    if without and markup == "keep":
        raise ValueError(f"without names elements of markup that is dropped ({', '.join(without)}): set markup: drop")
    path, how = library.resolve_path(path), Reading(**(reading or {}))
    read = _Words(without or ()) if markup == "drop" else None
    if task in OF_FILES:
        with _opened(path) as place:
            found = _of_files(place, task, pattern, files, read, bad_rows, how)
    else:
        found = _of_table(path, task, text, (split or {}).get("column"), read, bad_rows, how)
    if read is not None:
        read.check(path)
    if split is None:
        split = {"column": "split"} if found.splits else {"ratio": RATIO}
    parts = cut(found.texts, split, kind="group", values=found.splits)
    texts = {name: "\n".join(own) for name, own in found.texts.items()}
    vocabulary: Vocabulary | Tokens = BYTES
    if unit == "characters":
        vocabulary = Vocabulary.fit(texts[name] for name in parts["train"])
    elif tokenizer is not None:
        vocabulary = Tokens(tokenizer)
    preprocessor = CorpusPreprocessor(unit, length, vocabulary)
    ids = {name: preprocessor.encode(own) for name, own in texts.items()}
    examples, of_task = windows_of(list(ids.values()), length)
    rows = {name: np.flatnonzero(of_task == place) for place, name in enumerate(ids)}
    return Corpus(
        examples,
        {part: {name: rows[name] for name in names} for part, names in parts.items()},
        preprocessor=preprocessor,
        pretrain_length=pretrain_length or length,
        about={
            "unknown": {part: _unknown([ids[name] for name in names]) for part, names in parts.items()},
        },
        objective=preprocessor.objective,
        shots=shots,
        queries=queries,
        train_queries=train_queries,
        order=order,
        on_too_few=on_too_few,
        seed=seed,
        name=f"corpus of {path.name}",
        left_out={reason: count for reason, count in found.dropped.items() if count},
    )


class Corpus(GroupTasks):
    """`GroupTasks` over windows of text.

    Attributes:
        vocabulary: what the ids stand for; a model needs `len(vocabulary)` symbols.
        about: what a report says of the texts; "unknown" is the share of characters that no training task holds.
    """

    def __init__(
        self,
        examples: WindowDataset,
        groups: Mapping[Split, Mapping[str, Rows]],
        *,
        preprocessor: CorpusPreprocessor,
        pretrain_length: int,
        about: Mapping[str, Any],
        **options: Any,
    ) -> None:
        super().__init__(examples, groups, preprocessor=preprocessor, **options)
        self._long = examples.of_length(pretrain_length)
        self.vocabulary, self.about = preprocessor.vocabulary, dict(about)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """`size` random texts of `pretrain_length` symbols of all training groups."""
        return Batch.of(*self._long.take(self.pretraining_rows(step, size)))

    def describe(self) -> dict[str, Any]:
        return super().describe() | self.about


class CorpusPreprocessor(NamedTuple):
    """How a text becomes windows of symbols, and back; a run keeps it."""

    unit: Unit
    length: int
    vocabulary: Vocabulary | Tokens

    @property
    def objective(self) -> Objective:
        """What the tasks ask."""
        if isinstance(self.vocabulary, Tokens):
            return objectives.next_token_of(self.vocabulary.characters)
        return objectives.next_token

    def encode(self, text: str) -> np.ndarray:
        """The numbers (n,) of a text's symbols, int32."""
        if self.unit == "bytes":
            text = text.encode().decode("latin-1")
        return self.vocabulary.encode(text).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of symbols; bytes that are no UTF-8 become the replacement character."""
        if self.unit != "bytes":
            return self.vocabulary.decode(ids)
        return bytes(i - 2 if i > UNKNOWN else 63 for i in ids if i != PADDING).decode(errors="replace")

    def counted(self, targets: Tensor) -> Tensor:
        """How many characters, or bytes, each target (n, L) stands for; 0 for one that is not scored."""
        scored = (targets >= 0).long()
        if not isinstance(self.vocabulary, Tokens):
            return scored
        return torch.tensor(self.vocabulary.characters)[targets.clamp(min=0)] * scored

    def windows(self, path: Path) -> tuple[Tensor, Tensor]:
        """The windows of a file of text: inputs and targets, both (n, L).

        Raises:
            ValueError: a file that cannot be read, is not UTF-8, or holds fewer than two characters.
        """
        text = read_text(path)
        if len(text) < 2:
            raise ValueError(f"{path} holds {len(text)} characters; there is nothing to predict in fewer than two")
        examples, of_task = windows_of([self.encode(text)], self.length)
        return examples.take(np.arange(len(of_task)))

    def support(self, path: Path) -> Support:
        return Support(*self.windows(path), {})

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tensor:
        return self.windows(path)[0]

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """The likeliest next symbol at each position, as a text for each window."""
        return {
            "window": list(range(1, len(prediction) + 1)),
            "next": [self.decode(ids) for ids in prediction.argmax(-1).tolist()],
        }

    def describe(self) -> dict[str, Any]:
        return {"unit": self.unit, "length": self.length, "symbols": len(self.vocabulary)}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "corpus", "unit": self.unit, "length": self.length, **self.vocabulary.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CorpusPreprocessor:
        made = Tokens(data["tokenizer"]) if data["unit"] == "tokens" else Vocabulary(data["characters"])
        return cls(data["unit"], data["length"], made)


def windows_of(texts: list[np.ndarray], length: int) -> tuple[WindowDataset, np.ndarray]:
    """The windows of texts, each cut by itself; and the number of each window's text."""
    sizes = np.array([len(own) for own in texts])
    counts = -(-np.maximum(sizes - 1, 0) // length)  # windows of each text
    first = np.cumsum(counts) - counts
    of_text = np.repeat(np.arange(len(sizes)), counts)
    ends = np.cumsum(sizes)
    starts = (ends - sizes)[of_text] + length * (np.arange(len(of_text)) - first[of_text])
    return WindowDataset(SpanDataset(np.concatenate(texts), starts, ends[of_text], length + 1)), of_text


class WindowDataset:
    """Windows of L + 1 symbols as (inputs, targets), both (..., L): the first L, and those that follow them."""

    def __init__(self, windows: SpanDataset) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def of_length(self, length: int) -> WindowDataset:
        """The same windows, each reaching on in its text to `length` symbols."""
        windows = self.windows
        return WindowDataset(SpanDataset(windows.flat, windows.starts, windows.stops, length + 1))

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        window = self.windows.take(rows)
        inputs, following = window[..., :-1], window[..., 1:]
        scored = following != PADDING
        return torch.where(scored, inputs, PADDING), torch.where(scored, following, IGNORED)


@contextmanager
def _opened(path: Path) -> Iterator[Path]:
    """The folder that an archive holds, for as long as it is read; anything else is itself."""
    if not (path.is_file() and path.name.endswith(ARCHIVES)):
        yield path
        return
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "unpacked"
        unpack(path, folder)
        alone = list(folder.iterdir())
        yield alone[0] if len(alone) == 1 and alone[0].is_dir() else folder


class _Words:
    """Reads the words of marked-up texts, and notes their elements."""

    def __init__(self, without: Collection[str]) -> None:
        self.without, self.elements = without, set[str]()

    def __call__(self, content: str, where: object) -> Markup:
        try:
            read = Markup(content, self.without)
        except ValueError as error:
            raise ValueError(f"{where}, {error}") from None
        self.elements |= read.elements
        return read

    def check(self, path: Path) -> None:
        """Raise `ValueError` if an element to be left out stands nowhere."""
        missing = [name for name in self.without if name.lower() not in self.elements]
        if missing:
            known = ", ".join(sorted(self.elements)[:30]) or "none"
            raise ValueError(f"without: {path} has no element {', '.join(missing)}; it has {known}")


class _Found(NamedTuple):
    """The texts of each task in order; the values of the column that says its split; what was left out."""

    texts: dict[str, list[str]]
    splits: dict[str, set[str]] | None
    dropped: dict[str, int]


def _of_table(
    path: Path, task: str, text: str, column: str | None, read: _Words | None, bad_rows: BadRows, reading: Reading
) -> _Found:
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; its tasks are a file, folder, passage or voice each, and {task!r} is none of these"
        )
    import polars as pl

    table = open_table(path, reading)
    texts, names = texts_of(table, text), words_of(table, task, "a text needs the name of its task")
    kept = np.flatnonzero(table.settle(bad_rows))
    groups = pl.DataFrame({"name": names[kept], "text": texts[kept]}).group_by("name", maintain_order=True).agg("text")
    if column is None and "split" in table.frame.columns:
        column = "split"
    splits = None if column is None else values_of(names[kept], column_of(table, column)[kept])
    found: dict[str, list[str]] = dict(groups.iter_rows())
    if read is not None:
        found = {name: [read(each, f"{path}, a text of {name}").all() for each in own] for name, own in found.items()}
    return _Found(found, splits, {"bad rows": table.dropped["rows"]})


def _of_files(
    path: Path,
    task: str,
    pattern: str | None,
    files: str,
    read: _Words | None,
    bad_rows: BadRows,
    reading: Reading,
) -> _Found:
    try:
        expression = re.compile(pattern, re.MULTILINE) if pattern is not None else None
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
    if path.is_file() and path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".txt":
        raise ValueError(f"{path} is a table; name the column that tells whose a text is by task, such as task: author")
    if expression is None and task in NAMED_WITHIN:
        raise ValueError(f"task: {task} needs a pattern that names who speaks from there on, such as '^(.+):$'")
    root = path.parent if path.is_file() else path
    found: dict[str, list[str]] = defaultdict(list)
    dropped = {UNREADABLE: 0, UNNAMED: 0}
    for file in [path] if path.is_file() else files_of(path, files):
        try:
            content = read_text(file, reading.encoding)
        except ValueError as error:
            if bad_rows != "drop":
                raise
            log.warning("left out: %s", error)
            dropped[UNREADABLE] += 1
            continue
        marked = None if read is None else read(content, file)
        within = file.relative_to(root)
        if expression is None or task not in NAMED_WITHIN:
            place = within if task == "file" else within.parent
            own = content if marked is None else marked.all()
            found[_name(place.as_posix(), expression, file)].append(own)
            continue
        whose = f"{within.as_posix()}/" if task == "passage" and path != file else ""
        for name, passage in _passages(content, expression, file, marked):
            if name is None:
                dropped[UNNAMED] += len(passage)
            elif passage:
                found[whose + name].append(passage)
    if not found:
        why = (
            f"the pattern {pattern!r} names nobody who says anything" if task in NAMED_WITHIN else "no file can be read"
        )
        raise ValueError(f"{path}: {why}, so that there are no tasks")
    return _Found(dict(found), None, dropped)


def _name(place: str, expression: re.Pattern[str] | None, file: Path) -> str:
    """The name of the task that a file belongs to."""
    if expression is None:
        if place == ".":
            raise ValueError(f"{file} lies in no folder that could name its task; move it into one, or set task: file")
        return place
    match = expression.search(place)
    if match is None:
        raise ValueError(
            f"{file}: the pattern {expression.pattern!r} is not found in {place!r}; narrow files or widen it"
        )
    return _group(match, file)


def _passages(
    content: str, expression: re.Pattern[str], file: Path, marked: Markup | None
) -> Iterator[tuple[str | None, str]]:
    """The passages of a file: who is named before each, at first nobody."""
    name, start = None, 0
    for match in expression.finditer(content if marked is None else marked.searched()):
        yield name, _passage(content, start, match.start(), marked)
        name, start = _group(match, file, marked=marked is not None), match.end()
    yield name, _passage(content, start, len(content), marked)


def _passage(content: str, start: int, stop: int, marked: Markup | None) -> str:
    return content[start:stop].strip("\n") if marked is None else marked.between(start, stop)


def _group(match: re.Match[str], file: Path, *, marked: bool = False) -> str:
    """The name in a match: its first group, or all of it."""
    name = match[1] if match.re.groups else match[0]
    if marked and name is not None:
        name = tidy(unescape(name))
    if name is None or not name.strip():
        raise ValueError(f"{file}: the pattern {match.re.pattern!r} is found in {match[0]!r}, but names nobody there")
    return name.strip()


def _unknown(ids: list[np.ndarray]) -> float:
    """The share of symbols that are unknown."""
    return float(np.mean(np.concatenate(ids) == UNKNOWN)) if sum(map(len, ids)) else 0.0
