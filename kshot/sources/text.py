"""Few-shot tasks from your own labelled texts, such as intents, topics or kinds of ticket."""

from __future__ import annotations

import hashlib
import logging
import reprlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kshot.annotations import EMPTY, PathText, PositiveInt, PositiveIntPair
from kshot.argument_checks import check_arguments
from kshot.data import library
from kshot.data.dataset import ArrayDataset
from kshot.data.tables.frames import TableLike, is_path
from kshot.data.tables.table import Reading, ReadingOptions, Table
from kshot.data.text.features import Featuriser
from kshot.data.text.files import column_of, texts_of, values_of, words_of
from kshot.data.text.labelled import open_labelled
from kshot.data.text.vocabulary import Vocabulary
from kshot.data.text_files import read_json
from kshot.sources.class_names import named
from kshot.sources.rows import group_rows
from kshot.sources.text_names import named_text_preprocessor
from kshot.sources.text_preprocessor import Features, text_preprocessor
from kshot.tasks.class_tasks import ClassOptions, ClassTasks
from kshot.tasks.names import NamedTasks
from kshot.tasks.source import if_any
from kshot.tasks.splitting import DEFAULT_SPLIT, cut_rows
from kshot.types import SPLITS, Split, Tree

if TYPE_CHECKING:
    import polars

log = logging.getLogger(__name__)

SHOWN = 5  # cases listed in a warning


@check_arguments
def text(
    path: Path | str | TableLike,
    *,
    text: str = "text",
    label: str = "label",
    domain: str = "domain",
    features: Features | Featuriser = "words",
    encoder: str | None = None,
    ngrams: PositiveIntPair | None = None,
    width: PositiveInt | None = None,
    split: Mapping[str, Any] | None = None,
    names: Literal["labels"] | PathText | None = None,
    within: Literal["domain"] | None = None,
    out_of_scope_label: str | None = None,
    bad_rows: Literal["error", "drop"] = "error",
    follow_links: bool = False,
    reading: ReadingOptions = EMPTY,
    **options: ClassOptions,
) -> TextTasks | NamedTasks:
    """Classify your own texts.

    Texts are a table with a column of texts and one of labels; or files in one folder per class, `sports/1.txt`, or in
    folders of such folders, `news/sports/1.txt`, where the folders above a class form its domain and those named train,
    val and test are the splits; or a JSON file of pairs `[text, label]` or of objects, in one list or in one list per
    part, `{"train": [["hello", "greet"], …], …}`, where the part of each text becomes the column part.

    Args:
        path: the table, in a file or in memory, folder or JSON file; also a file of a data set of
            `kshot data list`, such as `clinc150/data_full.json`.
        text, label: the columns of texts and of classes.
        domain: the column with the domain of each class, for `within` and `split: {heldout: …}`; or a JSON file
            `{"banking": ["balance", …], …}` with the classes of each domain. Other classes are left out.
        features: inputs of the model. "words" and "characters" are hashed n-grams, see `hashed_ngrams`; "ids" are
            character numbers, see `character_ids`, in a vocabulary of the training classes; "encoder" are features of a
            pretrained frozen encoder, computed once and cached; "tokens" are token ids and mask, for an encoder that is
            itself the model. Or a function from texts to `Dataset`.
        encoder: for "encoder" and "tokens": a folder, `package:NAME` or a name of the hub, see `SentenceEncoder`.
        ngrams: smallest and largest n: (1, 2) of words and (2, 4) of characters by default.
        width: number of features, 1024 by default. Ids are truncated or padded to it. With an encoder, the number of
            tokens that are read of a text, by default that of the encoder.
        split: see `kshot.tasks.splitting`; by default the column split if there is one, else by ratio 0.7, 0.15, 0.15.
        names: "labels" adds the label of each class, as words, to the support set, in a row that is marked; a JSON file
            `{"greet": "the user says hello", …}` adds descriptions, one or a list for each class. It goes with features
            of words, characters or an encoder. `learners.named_means` and `tip_adapter` read the mark, see
            `kshot.tasks.with_names`.
        within: "domain" draws all classes of a task from one domain.
        out_of_scope_label: the label of texts that belong to no class, see `TaskSource.out_of_scope_inputs`. A column
            part or split that ends in val or test, such as oos_test, assigns them to these splits; else a hash does.
        bad_rows: "error", or "drop" to leave out rows without a text or a label, and files in another encoding.
        follow_links: whether to follow links that lead out of the folder.
        reading: format of text files if not UTF-8 with commas: encoding, delimiter, …; see `Reading`.
        options: arguments of `ClassTasks`.

    Raises:
        ValueError: an unusable file, column or row, a class in two domains, and errors of `cut` and `ClassTasks`.

    Example:
        >>> import json
        >>> path = Path(getfixture("tmp_path")) / "intents.json"
        >>> rows = [[f"{word} {i}", word] for word in ("play", "stop", "louder", "next") for i in range(9)]
        >>> _ = path.write_text(json.dumps({"train": rows}))
        >>> source = text(path, ways=2, shots=1, queries=5, split={"ratio": [1, 0, 0]}, width=64)
        >>> task = source.task("train", 0)
        >>> task.support.inputs.shape, task.query.inputs.shape
        (torch.Size([2, 64]), torch.Size([10, 64]))
    """
    if callable(features) and names is not None:
        raise ValueError("names are read as the texts are: they go with features: encoder, words or characters")
    preprocessor = None if callable(features) else text_preprocessor(features, encoder, ngrams, width)
    format = Reading(**(reading or {}))
    table = open_labelled(
        library.resolve_path(path) if is_path(path) else path, format, text, label, follow_links=follow_links
    )
    texts, labels = texts_of(table, text), words_of(table, label, "a text needs the name of its class")
    if split is None:
        split = {"column": "split"} if "split" in table.frame.columns else DEFAULT_SPLIT
    needs_domains = within is not None or domain != "domain" or not {"ratio", "column", "files"} & set(split)
    domains = _domains(table, domain, labels) if needs_domains else None
    good = table.settle(bad_rows)
    left_out = {"bad rows": table.dropped["rows"]}
    notes = [*getattr(table, "notes", ()), *_notes_on_bad_rows(table)]
    out_of_scope: dict[Split, list[str]] = {}
    if out_of_scope_label is not None:
        mask = (labels == out_of_scope_label).fill_null(False).to_numpy()
        out_of_scope = _out_of_scope(table, out_of_scope_label, texts, good & mask)
        good &= ~mask
    if domains is not None:
        unlisted = good & domains.is_null().to_numpy()
        left_out[f"texts of classes that {domain} does not list"] = int(unlisted.sum())
        good &= ~unlisted
    selected = np.flatnonzero(good)
    texts, labels = texts[selected], labels[selected]
    members = group_rows(labels, np.ones(len(labels), bool)).items()
    rows = {name: members[name] for name in sorted(members)}
    _warn_of_similar_names(table.path, rows)
    _warn_of_conflicts(table.path, texts, labels)
    domain_of = None if domains is None else _unique(table.path, values_of(labels, domains[selected]))
    if within is not None and domain_of is None:
        raise ValueError(f"{table.path}: within: {within} needs the domain of each class, and there is no {domain!r}")
    column = split.get("column")
    values = None if column is None else values_of(labels, column_of(table, column)[selected])
    classes = cut_rows(rows, split, values=values, domains=domain_of)
    strings = texts.to_list()
    out_of_scope_rows: dict[Split, range] = {}
    for part, more in out_of_scope.items():
        out_of_scope_rows[part] = range(len(strings), len(strings) + len(more))
        strings += more
    if preprocessor is None:
        assert callable(features)
        examples = features(strings)
    else:
        train = np.concatenate(list(classes["train"].values())).tolist() if features == "ids" else []
        characters = Vocabulary.fit(strings[row] for row in train).characters
        preprocessor = replace(preprocessor, characters=characters, text=text, label=label, reading=table.reading)
        examples = preprocessor.examples(strings, keep=True)
    source = TextTasks(
        examples, classes, texts=strings, out_of_scope=out_of_scope_rows, **options, same_classes="rows" in split,
        within=domain_of if within else None, name=f"texts of {table.path.name}", preprocessor=preprocessor,
        left_out=if_any(**left_out),
    )  # fmt: skip
    source.notes = notes
    for note in notes:
        log.warning("%s", note)
    if names is None or preprocessor is None:
        return source
    all_classes = [name for of_split in classes.values() for name in of_split]
    return named(source, named_text_preprocessor(preprocessor, names, all_classes), all_classes)


class TextTasks(ClassTasks):
    """`ClassTasks` of texts; `out_of_scope` are the rows of the texts of each split that belong to no class."""

    texts: Sequence[str]
    _hashes: ArrayDataset | None

    def __init__(self, *args: Any, texts: Sequence[str], out_of_scope: Mapping[Split, range], **options: Any) -> None:
        super().__init__(*args, **options)
        self.texts, self.out_of_scope, self._hashes = texts, out_of_scope, None

    def out_of_scope_inputs(self, split: Split, index: int, count: int) -> Tree:
        rows = self.out_of_scope.get(split)
        if not rows:
            return super().out_of_scope_inputs(split, index, count)
        random = np.random.default_rng([self.seed, len(SPLITS) + 1, SPLITS.index(split), index])
        return self.examples.take(random.permutation(rows)[:count])

    @property
    def raw(self) -> TextTasks:
        if self._hashes is None:
            digests = (hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in self.texts)
            self._hashes = ArrayDataset(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32).copy())
        other = copy(self)
        other.examples = self._hashes
        return other

    def describe(self) -> dict[str, Any]:
        counts = {split: len(rows) for split, rows in self.out_of_scope.items()}
        return super().describe() | if_any(out_of_scope=counts)


def _notes_on_bad_rows(table: Table) -> list[str]:
    """A sentence that names the texts that are left out, if any are."""
    count, first = table.dropped["rows"], table.dropped["first"][:SHOWN]
    more = f"; and {count - len(first):,} more" if count > len(first) else ""
    return [f"{table.path}: {count:,} texts are left out: {'; '.join(first)}{more}"] if count else []


def _domains(table: Table, domain: str, labels: polars.Series) -> polars.Series | None:
    """The domain of each row, null for classes that the file does not list; None if there are no domains."""
    if domain.lower().endswith(".json"):
        listed = _listed_domains(library.resolve_path(domain), labels.drop_nulls().unique().sort().to_list())
        return labels.replace_strict(listed, default=None)
    if domain == "domain" and domain not in table.frame.columns:
        return None
    return words_of(table, domain, "a class needs a domain")


def _listed_domains(path: Path, labels: Sequence[str]) -> dict[str, str]:
    """Class to domain, from a JSON file of domain to classes."""
    content = read_json(path)
    lists = list(content.values()) if isinstance(content, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise ValueError(f'{path} must hold the classes of each domain, as in {{"banking": ["balance", "transfer"]}}')
    domains: dict[str, str] = {}
    for domain, names in content.items():
        for name in names:
            if domains.setdefault(name, domain) != domain:
                raise ValueError(f"{path}: class {name!r} is in the domains {domains[name]!r} and {domain!r}; keep one")
    if not domains.keys() & set(labels):
        listed = ", ".join(list(domains)[:5])
        raise ValueError(f"{path} lists none of the classes of the data, such as {labels[0]!r}, but {listed}")
    return domains


def _out_of_scope(table: Table, label: str, texts: polars.Series, mask: np.ndarray) -> dict[Split, list[str]]:
    """The texts of a mask, those of the label, in val and test."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        raise ValueError(f"{table.path} has no text with the label {label!r} of out_of_scope_label")
    selected = texts[rows].to_list()
    column = next((name for name in ("split", "part") if name in table.frame.columns), None)
    values = [""] * len(selected) if column is None else column_of(table, column).fill_null("")[rows].to_list()
    parts: dict[Split, list[str]] = {"val": [], "test": []}
    for text, value in zip(selected, values):
        if not value.endswith(SPLITS):
            value = "val" if hashlib.sha256(text.encode()).digest()[0] < 128 else "test"
        parts["test" if value.endswith("test") else "val"].append(text)
    return parts


def _unique(path: Path, values: Mapping[str, set[str]]) -> dict[str, str]:
    for name, domains in values.items():
        if len(domains) > 1:
            listed = " and ".join(sorted(domains))
            raise ValueError(f"{path}: class {name!r} has texts in the domains {listed}; keep one")
    return {name: next(iter(domains)) for name, domains in values.items()}


def _warn_of_similar_names(path: Path, names: Iterable[str]) -> None:
    """Warn of classes that differ in case or spaces only."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(unicodedata.normalize("NFC", name).casefold().split())].append(name)
    what = "labels that differ in case or spaces only are different classes; rename them if they are the same"
    _warn(what, path, [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1])


def _warn_of_conflicts(path: Path, texts: polars.Series, labels: polars.Series) -> None:
    """Warn of texts with two labels."""
    import polars as pl

    frame = pl.DataFrame({"text": texts, "label": labels}).unique(maintain_order=True)
    groups = frame.group_by("text", maintain_order=True).agg("label").filter(pl.col("label").list.len() > 1)
    cases = [f"{reprlib.repr(text)} is {' and '.join(map(repr, names))}" for text, names in groups.iter_rows()]
    _warn("texts with more than one label, which no model can tell", path, cases)


def _warn(what: str, path: Path, cases: Sequence[str]) -> None:
    if cases:
        more = f"; and {len(cases) - SHOWN:,} more" if len(cases) > SHOWN else ""
        log.warning("%s: %s: %s%s", path, what, "; ".join(cases[:SHOWN]), more)
