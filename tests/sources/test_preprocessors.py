"""A run folder's preprocessor is rebuilt from its kind, and a file cannot choose what is imported."""

import json

import pytest
import torch

from kshot import sources
from kshot.sources.corpus import BYTES, CorpusPreprocessor
from kshot.sources.preprocessors import KINDS, preprocessor_from_json


def test_known_kinds_are_rebuilt():
    kept = CorpusPreprocessor("bytes", 8, BYTES)
    assert preprocessor_from_json(kept.to_json()) == kept
    assert set(KINDS) == {
        "corpus",
        "images",
        "masks",
        "multilabel_images",
        "named_images",
        "named_text",
        "ratings",
        "series",
        "table",
        "text",
    }


def test_classes_come_from_modules_of_the_run_file_alone():
    kept = CorpusPreprocessor("bytes", 8, BYTES)
    data = kept.to_json() | {"kind": "kshot.sources.corpus:CorpusPreprocessor"}
    assert preprocessor_from_json(data, modules=["kshot.sources.corpus"]) == kept
    for kind in (data["kind"], "os:system", "corpora"):
        with pytest.raises(ValueError, match="unknown preprocessor .*it names none"):
            preprocessor_from_json(data | {"kind": kind})


def grouped(path, targets):
    rows = [f"school {n % 30},{n % 7},{targets(n)}" for n in range(360)]
    path.write_text("\n".join(["school;hours;score", *(row.replace(",", ";") for row in rows)]))
    return sources.table(path, group="school", target="score", shots=3, queries=3)


def test_a_support_file_of_two_groups_is_refused_by_name(tmp_path):
    preprocessor = grouped(tmp_path / "t.csv", lambda n: n % 11).preprocessor
    (tmp_path / "two.csv").write_text("school,hours,score\nElm,1,2\nOak,2,3\n")
    with pytest.raises(ValueError, match="a support set is of one school, and these rows are of 2: 'Elm', 'Oak'"):
        preprocessor.support(tmp_path / "two.csv")
    (tmp_path / "one.csv").write_text("school,hours,score\nElm,1,2\nElm,2,3\n")
    (tmp_path / "none.csv").write_text("hours,score\n1,2\n2,3\n")
    one, none = (preprocessor.support(tmp_path / name) for name in ("one.csv", "none.csv"))
    assert torch.equal(one.inputs, none.inputs)


def test_a_support_file_is_read_in_the_style_of_the_training_file(tmp_path):
    source = grouped(tmp_path / "t.csv", lambda n: f"${1000 + n}.50").preprocessor
    (tmp_path / "s.csv").write_text('hours,score\n1,"$1,234"\n2,"1,234.50"\n')
    targets = source.support(tmp_path / "s.csv").targets[:, 0]
    mean, std = source.mean[0], source.std[0]
    assert (targets * std + mean).tolist() == pytest.approx([1234, 1234.5])
    kept = preprocessor_from_json(json.loads(json.dumps(source.to_json())))
    assert torch.equal(kept.support(tmp_path / "s.csv").targets[:, 0], targets)


def test_missing_inputs_of_a_query_are_replaced_as_in_training_and_told(tmp_path, caplog):
    preprocessor = grouped(tmp_path / "t.csv", lambda n: n % 11).preprocessor
    (tmp_path / "q.csv").write_text("hours\n1\nNA\n")
    inputs = preprocessor.inputs(tmp_path / "q.csv", {})
    assert inputs[1].tolist() == [0.0]  # the training mean, standardised
    assert "1 missing values of 'hours' are replaced by the training mean" in caplog.text
