"""Names of classes that a source reads as further support rows: labels, or descriptions in a file."""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kshot.data.library import resolve_path
from kshot.data.text_files import read_json
from kshot.tasks.names import NamedTasks, with_names
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.source import TaskSource

LABELS = "labels"
"""The option `names` for classes that go by their labels."""
Descriptions = Mapping[str, list[str]]
"""Texts for some classes."""


class NamesClasses(Preprocessor):
    """A preprocessor that reads the names of classes as it reads examples.

    Attributes:
        descriptions: class -> texts; other classes, such as new ones of a user, go by their labels.
    """

    descriptions: Descriptions

    @abstractmethod
    def sentence(self, label: str) -> str:
        """The text for a class without descriptions."""

    @abstractmethod
    def features_of(self, texts: Sequence[str]) -> Tensor:
        """The features (n, D) of texts."""

    def names_of(self, classes: Iterable[str]) -> Tensor:
        """The features (classes, D) of names: the mean over the descriptions of a class, or those of its label."""
        texts = [self.descriptions.get(name) or [self.sentence(name)] for name in classes]
        found = self.features_of([text for of_one in texts for text in of_one])
        return torch.stack([part.mean(0) for part in found.split([len(of_one) for of_one in texts])])


def named(source: TaskSource, preprocessor: NamesClasses, classes: Sequence[str]) -> NamedTasks:
    """The tasks of a source with the names of its classes as support rows."""
    tasks = with_names(source, dict(zip(classes, preprocessor.names_of(classes))))
    tasks.preprocessor = preprocessor
    return tasks


def descriptions_of(names: str, classes: Iterable[str]) -> Descriptions:
    """The descriptions that the option `names` gives of classes: none by "labels", else those of a JSON file.

    Raises:
        ValueError: errors of `read_descriptions`.
    """
    return {} if names == LABELS else read_descriptions(resolve_path(names), classes)


def read_descriptions(path: Path, classes: Iterable[str]) -> dict[str, list[str]]:
    """Read a JSON file of descriptions, `{"greet": "the user says hello", "pay": ["…", "…"]}`: class -> texts.

    Classes that the file lacks go by their labels.

    Raises:
        ValueError: another structure, an empty description, or a class that is not in the data.
    """
    content, known = read_json(path), set(classes)
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold the descriptions of classes, as in {{"greet": "the user says hello"}}')
    found: dict[str, list[str]] = {}
    for name, given in content.items():
        texts = [given] if isinstance(given, str) else given
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(each, str) and each.strip() for each in texts)
        ):
            raise ValueError(
                f"{path}: class {name!r} needs a description, or a list of them, got {reprlib.repr(given)}"
            )
        if name not in known:
            raise ValueError(f"{path}: the data has no class {name!r}; classes are called as in the data")
        found[name] = texts
    return found
