"""Few-shot tasks from a user's own texts with labels: intents, topics, kinds of ticket."""

from __future__ import annotations

import hashlib
import logging
import reprlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from kshot import objectives
from kshot.annotations import EMPTY, FractionBelowOne, PositiveInt, PositiveIntPair
from kshot.data import library
from kshot.data.dataset import ArrayDataset, Dataset
from kshot.data.tables.table import Reading, ReadingOptions, Table
from kshot.data.text.features import Featuriser, character_ids, hashed_ngrams
from kshot.data.text.files import column_of, texts_of, values_of, words_of
from kshot.data.text.labelled import open_labelled
from kshot.data.text.sentence_encoder import SentenceEncoder
from kshot.data.text.vocabulary import Vocabulary
from kshot.data.text_files import read_json
from kshot.objectives import Objective
from kshot.tasks.class_tasks import ClassTasks, Imbalance
from kshot.tasks.pool import OnTooFew, Rows
from kshot.tasks.preprocessor import Support
from kshot.tasks.sampling import Size
from kshot.tasks.splitting import cut
from kshot.types import SPLITS, Split, Tree

if TYPE_CHECKING:
    import polars

log = logging.getLogger(__name__)

NGRAMS: dict[str, tuple[int, int]] = {"words": (1, 2), "characters": (2, 4)}
"""The smallest and the largest n-grams where nothing is said."""
WIDTH = 1024
"""Numbers that a text becomes where nothing is said, and no encoder has a length of its own."""

Features = Literal["words", "characters", "ids", "encoder", "tokens"]
RATIO = (0.7, 0.15, 0.15)
"""The shares of the classes in train, val and test where nothing else is said."""
SHOWN = 5  # cases told in a warning


def text(
    path: Path | str,
    *,
    text: str = "text",
    label: str = "label",
    domain: str = "domain",
    features: Features | Featuriser = "words",
    encoder: str | None = None,
    ngrams: PositiveIntPair | None = None,
    width: PositiveInt | None = None,
    ways: Size = 5,
    shots: Size = 1,
    queries: Size = 15,
    train_ways: Size | None = None,
    train_queries: Size | None = None,
    split: Mapping[str, Any] | None = None,
    within: Literal["domain"] | None = None,
    out_of_scope_label: str | None = None,
    imbalance: Imbalance | None = None,
    label_noise: FractionBelowOne = 0.0,
    on_too_few: OnTooFew = "error",
    bad_rows: Literal["error", "drop"] = "error",
    reading: ReadingOptions = EMPTY,
    seed: int = 0,
) -> TextTasks:
    """Tell the classes of your own texts apart.

    The texts stand in a table with a column of texts and one of labels; in one folder a class, `sports/1.txt`, or in
    folders of such folders, `news/sports/1.txt`, where the folders above a class are its domain and those called train,
    val and test are the splits; or in a JSON file of pairs `[text, label]` or of objects, in one list or in one list a
    part, `{"train": [["hello", "greet"], …], …}`, the part of each text being the column part.

    Args:
        path: the table (CSV, TSV, NDJSON, Parquet), folder or JSON file; also a file of a data set that
            `kshot data list` knows, such as `clinc150/data_full.json`.
        text: the column with the texts.
        label: the column with their classes.
        domain: the column with the domain of each class, for `within` and `split: {heldout: …}`; or a JSON file
            `{"banking": ["balance", …], …}` with the classes of each domain. Classes that the file doesn't list are
            left out.
        features: what the model gets of a text. "words" and "characters" are hashed n-grams, see `hashed_ngrams`;
            "ids" are the numbers of its characters, see `character_ids`, in a vocabulary of the training classes.
            "encoder" are the features of a pretrained encoder, frozen, computed once and kept in the cache; "tokens"
            what such an encoder reads, ids and mask, for one that is itself the model. Or any function from texts to
            `Dataset`.
        encoder: a folder, `package:NAME` or a name of the Hugging Face hub, see `SentenceEncoder`; for "encoder" and
            "tokens".
        ngrams: the smallest and the largest n: (1, 2) of words and (2, 4) of characters by default.
        width: numbers that a text becomes, 1024 by default. Ids are cut or padded to it. With an encoder, the tokens
            that are read of a text, by default as many as the encoder's folder says.
        ways: classes of a task; an int, or a range (low, high), drawn for each task.
        shots: support texts of each class, an int or a range.
        queries: query texts of each class, an int or a range.
        train_ways, train_queries: classes and query examples of training tasks, by default as many as of others.
        split: how the classes are cut into train, val and test, see `kshot.tasks.splitting`. By default as a column
            split says, or else by ratio 0.7, 0.15, 0.15.
        within: "domain" takes all classes of a task from one domain.
        out_of_scope_label: the label of texts that belong to no class, see `TextTasks.out_of_scope_inputs`. They're cut
            into val and test as the ends of a column part or split say, such as oos_test, else by a hash of each.
        imbalance: how shots differ between the classes of a task, see `ClassTasks`.
        label_noise: the share of wrong support labels, see `ClassTasks`.
        on_too_few: what becomes of a class with too few texts, see `ClassTasks`.
        bad_rows: "error", or "drop" to leave out rows without a text or a label, and files in another encoding.
        reading: how files are written, where it is not UTF-8 with commas: encoding, delimiter, …; see `Reading`.
        seed: names the sequence of tasks.

    Raises:
        ValueError: a file, a column or a row that cannot be used, a class in two domains, and what `cut` and
            `ClassTasks` say.

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
    preprocessor = None if callable(features) else _preprocessor(features, encoder, ngrams, width)
    how = Reading(**(reading or {}))
    table = open_labelled(library.resolve_path(path), how, text, label)
    texts, labels = texts_of(table, text), words_of(table, label, "a text needs the name of its class")
    if split is None:
        split = {"column": "split"} if "split" in table.frame.columns else {"ratio": RATIO}
    wanted = within is not None or domain != "domain" or not {"ratio", "column", "files"} & set(split)
    domains = _domains(table, domain, labels) if wanted else None
    good = table.settle(bad_rows)
    dropped = {"bad rows": table.dropped["rows"]}
    strangers: dict[Split, list[str]] = {}
    if out_of_scope_label is not None:
        alien = (labels == out_of_scope_label).fill_null(False).to_numpy()
        strangers = _strangers(table, out_of_scope_label, texts, good & alien)
        good &= ~alien
    if domains is not None:
        unlisted = good & domains.is_null().to_numpy()
        dropped[f"texts of classes that {domain} does not list"] = int(unlisted.sum())
        good &= ~unlisted
    kept = np.flatnonzero(good)
    texts, labels = texts[kept], labels[kept]
    rows = _rows(labels)
    _warn_of_twins(table.path, rows)
    _warn_of_disputed(table.path, texts, labels)
    domain_of = None if domains is None else _one_each(table.path, values_of(labels, domains[kept]))
    if within is not None and domain_of is None:
        raise ValueError(f"{table.path}: within: {within} needs the domain of each class, and there is no {domain!r}")
    column = split.get("column")
    values = None if column is None else values_of(labels, column_of(table, column)[kept])
    classes = {
        part: {name: rows[name] for name in names}
        for part, names in cut(rows, split, values=values, domains=domain_of).items()
    }
    strings = texts.to_list()
    beyond: dict[Split, range] = {}
    for part, own in strangers.items():
        beyond[part] = range(len(strings), len(strings) + len(own))
        strings += own
    if preprocessor is None:
        assert callable(features)
        examples = features(strings)
    else:
        known = np.concatenate(list(classes["train"].values())).tolist() if features == "ids" else []
        characters = Vocabulary.fit(strings[row] for row in known).characters
        preprocessor = preprocessor._replace(characters=characters, text=text, label=label, reading=how)
        examples = preprocessor.examples(strings, keep=True)
    return TextTasks(
        examples,
        classes,
        texts=strings,
        out_of_scope=beyond,
        ways=ways,
        shots=shots,
        queries=queries,
        train_ways=train_ways,
        train_queries=train_queries,
        within=domain_of if within else None,
        imbalance=imbalance,
        label_noise=label_noise,
        on_too_few=on_too_few,
        seed=seed,
        name=f"texts of {table.path.name}",
        preprocessor=preprocessor,
        left_out={reason: count for reason, count in dropped.items() if count},
    )


class TextTasks(ClassTasks):
    """`ClassTasks` that knows its texts, and those that belong to no class.

    Attributes:
        texts: row i of the examples is made of text i.
        out_of_scope: for each split the rows of texts out of scope.
    """

    def __init__(
        self,
        examples: Dataset,
        classes: Mapping[Split, Mapping[str, Rows]],
        *,
        texts: Sequence[str],
        out_of_scope: Mapping[Split, Sequence[int]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(examples, classes, **options)
        self.texts, self.out_of_scope = texts, out_of_scope or {}

    def out_of_scope_inputs(self, split: Split, index: int, count: int) -> Tree:
        rows = self.out_of_scope.get(split)
        if not rows:
            return super().out_of_scope_inputs(split, index, count)
        chosen = np.random.default_rng([self.seed, len(SPLITS) + 1, SPLITS.index(split), index]).permutation(rows)
        return self.examples.take(chosen[:count])

    def describe(self) -> dict[str, Any]:
        beyond = (
            {"out_of_scope": {split: len(rows) for split, rows in self.out_of_scope.items()}}
            if self.out_of_scope
            else {}
        )
        return super().describe() | beyond


class TextPreprocessor(NamedTuple):
    """How texts become inputs; a run keeps it, so that it can read texts of your own.

    Attributes:
        features: words, characters, ids, encoder or tokens.
        width: numbers that a text becomes; with an encoder, the tokens that are read of it.
        ngrams: the smallest and the largest n.
        encoder: where it lies, as it was named.
        sha256: of the encoder's files.
        characters: those that ids know.
        text: the column with the texts.
        label: the column with their classes.
        reading: how files are written.
    """

    features: Features
    width: int
    ngrams: tuple[int, int] | None = None
    encoder: str | None = None
    sha256: str | None = None
    characters: str = ""
    text: str = "text"
    label: str = "label"
    reading: Reading = Reading()

    @property
    def objective(self) -> Objective:
        return objectives.classification

    def examples(self, texts: Sequence[str], *, keep: bool = False) -> Dataset:
        """Texts as examples, row by row; `keep` puts what takes time to make into the cache."""
        if self.features == "ids":
            return character_ids(texts, vocabulary=Vocabulary(self.characters), width=self.width)
        if self.features == "encoder":
            encoder = self.opened()
            return encoder(texts) if keep else ArrayDataset(encoder.encode(texts))
        if self.features == "tokens":
            return self.opened().tokens(texts)
        assert self.ngrams is not None
        return hashed_ngrams(texts, of=self.features, ngrams=self.ngrams, width=self.width, keep=keep)

    def opened(self) -> SentenceEncoder:
        """The encoder, if it is still the one that it was."""
        assert self.encoder is not None
        found = SentenceEncoder(self.encoder, length=self.width)
        if found.sha256 != self.sha256:
            raise ValueError(
                f"the encoder {self.encoder} has changed since: its files hash to {found.sha256[:16]}…, not "
                f"{str(self.sha256)[:16]}…; features of another encoder mean something else"
            )
        return found

    def support(self, path: Path) -> Support:
        """Texts with their classes, in any form that `text` opens."""
        table = open_labelled(path, self.reading, self.text, self.label)
        labels = words_of(table, self.label, "a support text needs its class")
        return Support(self._inputs(table), labels.to_list(), {})

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tree:
        """Texts to predict for; labels aren't needed."""
        return self._inputs(open_labelled(path, self.reading, self.text, self.label))

    def answers(self, prediction: Tree, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """Nothing: what is predicted are the classes of the support."""
        return {}

    def describe(self) -> dict[str, Any]:
        if self.encoder is not None:
            return {"features": self.features, "encoder": self.encoder, "width": self.width}
        sizes = {"symbols": len(self.characters) + 2} if self.features == "ids" else {"ngrams": list(self.ngrams or ())}
        return {"features": self.features, "width": self.width, **sizes}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "text", **self._asdict(), "reading": self.reading._asdict()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TextPreprocessor:
        fields = {name: data[name] for name in cls._fields if name in data}
        ngrams = tuple(data["ngrams"]) if data["ngrams"] else None
        return cls(**fields | {"ngrams": ngrams, "reading": Reading(**data["reading"])})

    def _inputs(self, table: Table) -> Tree:
        texts = texts_of(table, self.text)
        table.settle("error")
        return self.examples(texts.to_list()).take(np.arange(len(texts)))


def _preprocessor(
    features: Features, encoder: str | None, ngrams: Sequence[int] | None, width: int | None
) -> TextPreprocessor:
    """What was asked of the features, checked, with defaults put in."""
    if features not in get_args(Features):
        raise ValueError(f"features must be one of {', '.join(get_args(Features))}, got {features!r}")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1 number, got {width}")
    if features in ("encoder", "tokens"):
        if encoder is None or ngrams is not None:
            raise ValueError(
                f"features: {features} needs an encoder, a folder or package:NAME, and no ngrams; got {encoder!r}"
            )
        opened = SentenceEncoder(encoder, length=width)
        return TextPreprocessor(features, opened.length, encoder=encoder, sha256=opened.sha256)
    if encoder is not None:
        raise ValueError(f"encoder goes with features: encoder or tokens, got features: {features}")
    if ngrams is None:
        return TextPreprocessor(features, width or WIDTH, NGRAMS.get(features))
    if features == "ids" or len(ngrams) != 2 or not 1 <= ngrams[0] <= ngrams[1]:
        raise ValueError(
            f"ngrams are the smallest and the largest n, such as [1, 2], of words or characters; got {list(ngrams)} "
            f"with features: {features}"
        )
    return TextPreprocessor(features, width or WIDTH, (ngrams[0], ngrams[1]))


def _domains(table: Table, domain: str, labels: polars.Series) -> polars.Series | None:
    """The domain of each row, null where a file does not list it; None where there are no domains."""
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
    if not all(isinstance(own, list) and all(isinstance(name, str) for name in own) for own in lists):
        raise ValueError(f'{path} must hold the classes of each domain, as in {{"banking": ["balance", "transfer"]}}')
    found: dict[str, str] = {}
    for domain, own in content.items():
        for name in own:
            if found.setdefault(name, domain) != domain:
                raise ValueError(
                    f"{path}: class {name!r} stands in the domains {found[name]!r} and {domain!r}; keep one"
                )
    if not found.keys() & set(labels):
        raise ValueError(
            f"{path} lists none of the classes of the data, such as {labels[0]!r}, but {', '.join(list(found)[:5])}"
        )
    return found


def _strangers(table: Table, label: str, texts: polars.Series, chosen: np.ndarray) -> dict[Split, list[str]]:
    """The chosen texts, those of a label, cut into val and test."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        raise ValueError(f"{table.path} has no text under the label {label!r}, which is to be outside of all classes")
    own = texts[rows].to_list()
    column = next((name for name in ("split", "part") if name in table.frame.columns), None)
    said = [""] * len(own) if column is None else column_of(table, column).fill_null("")[rows].to_list()
    found: dict[Split, list[str]] = {"val": [], "test": []}
    for text, place in zip(own, said):
        part = next((each for each in SPLITS if place.endswith(each)), None)
        if part is None:
            part = "val" if hashlib.sha256(text.encode()).digest()[0] < 128 else "test"
        found["test" if part == "test" else "val"].append(text)
    return found


def _rows(labels: polars.Series) -> dict[str, np.ndarray]:
    """The rows of each class, in the order of the names."""
    import polars as pl

    frame = pl.DataFrame({"label": labels, "row": np.arange(len(labels))})
    groups = frame.group_by("label", maintain_order=True).agg("row").sort("label")
    return {name: rows.to_numpy() for name, rows in zip(groups["label"], groups["row"])}


def _one_each(path: Path, values: Mapping[str, set[str]]) -> dict[str, str]:
    for name, own in values.items():
        if len(own) > 1:
            raise ValueError(f"{path}: class {name!r} has texts in the domains {' and '.join(sorted(own))}; keep one")
    return {name: next(iter(own)) for name, own in values.items()}


def _warn_of_twins(path: Path, names: Iterable[str]) -> None:
    """Say so where classes differ in case or spaces only."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike["".join(unicodedata.normalize("NFC", name).casefold().split())].append(name)
    twins = [" and ".join(map(repr, own)) for own in alike.values() if len(own) > 1]
    if twins:
        log.warning(
            "%s: labels that differ in case or spaces only are classes of their own; make them one if they are: %s",
            path, _first(twins),
        )  # fmt: skip


def _warn_of_disputed(path: Path, texts: polars.Series, labels: polars.Series) -> None:
    """Say so where a text stands under two labels."""
    import polars as pl

    frame = pl.DataFrame({"text": texts, "label": labels}).unique(maintain_order=True)
    groups = frame.group_by("text", maintain_order=True).agg("label").filter(pl.col("label").list.len() > 1)
    cases = [f"{reprlib.repr(text)} is {' and '.join(map(repr, own))}" for text, own in groups.iter_rows()]
    if cases:
        log.warning("%s: texts under more than one label, which no model can tell: %s", path, _first(cases))


def _first(cases: Sequence[str]) -> str:
    more = f"; and {len(cases) - SHOWN:,} more" if len(cases) > SHOWN else ""
    return "; ".join(cases[:SHOWN]) + more
