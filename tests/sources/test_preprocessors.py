"""A run folder's preprocessor is rebuilt from its kind, and a file cannot choose what is imported."""

import pytest

from kshot.sources.corpus import BYTES, CorpusPreprocessor
from kshot.sources.preprocessors import KINDS, preprocessor_from_json


def test_known_kinds_are_rebuilt():
    kept = CorpusPreprocessor("bytes", 8, BYTES)
    assert preprocessor_from_json(kept.to_json()) == kept
    assert set(KINDS) == {"corpus", "ratings", "series", "table", "text"}


def test_classes_come_from_modules_of_the_run_file_alone():
    kept = CorpusPreprocessor("bytes", 8, BYTES)
    data = kept.to_json() | {"kind": "kshot.sources.corpus:CorpusPreprocessor"}
    assert preprocessor_from_json(data, modules=["kshot.sources.corpus"]) == kept
    for kind in (data["kind"], "os:system", "corpora"):
        with pytest.raises(ValueError, match="unknown preprocessor .*it names none"):
            preprocessor_from_json(data | {"kind": kind})
