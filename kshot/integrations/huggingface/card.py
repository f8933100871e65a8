"""The model card of a trained run: its figures beside the baselines, what the data were, and how it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from kshot.app.trained import TrainedRun
from kshot.evaluation.report.conclusion import conclude
from kshot.evaluation.report.parts import Table
from kshot.evaluation.report.sections import INFERENCE, result_table
from kshot.evaluation.report.verdict import inference_of, trust_of, verdict_of
from kshot.types import SPLITS

TAGS = ["kshot", "meta-learning", "few-shot-learning"]
SIZES = ("ways", "shots", "queries", "image_size", "num_val_tasks", "num_test_tasks")
"""Entries of a report's protocol that are numbers of its tasks."""
GIVEN = {
    "images": ("my-photos", '["new.png"]', "a folder with a folder for each class"),
    "corpus": ("a-text.txt", '"another.txt"', "a text of the new author"),
}
"""For kinds of source: a support set, inputs, and what the support set is."""
TABLE = ("support.csv", '"inputs.csv"', "the columns of the training table, with the targets")

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}
{% if about %}
{{ about }}
{% endif %}
This learner was meta-trained with kshot: it adapts to a new task from a few examples, without training.

| learner | model | source | outer steps |
| --- | --- | --- | --- |
| {{ learner }} | {{ model }} | {{ source }} | {{ steps }} |

## How to use it

It needs kshot {{ version }} with the extra `hub`.{{ needs }}

```python
from kshot.integrations.huggingface import HubRun

run = HubRun.from_pretrained("{{ repo_id }}"{{ options }}).run
adapted = run.adapt("{{ support }}")  # {{ support_about }}
print(run.predict(adapted, {{ inputs }}))
```

## Test figures

{{ result }}

## Data

{{ data }}

## Licence

{{ licence }}
"""


def model_card(run: TrainedRun, license: str | None, repo_id: str = "") -> ModelCard:
    """The card of a run, for a repository or, if that is empty, a folder. It holds no row of the user's data."""
    spec, report = run.spec, run.report or {}
    support, inputs, about = GIVEN.get(spec.source.kind, TABLE)
    encoder = getattr(run.preprocessor, "encoder", "") or run.shapes.get("encoder")
    needs = f" It also needs the pretrained encoder `{encoder}`, which is not part of this folder." if encoder else ""
    if modules := sorted(set(_modules(spec.model_dump()))):
        needs += f" Its run file imports {', '.join(f'`{each}`' for each in modules)}, which this folder does not hold."
    return ModelCard.from_template(
        ModelCardData(license=license, library_name="kshot", tags=TAGS),
        template_str=TEMPLATE,
        name=spec.name,
        about=spec.about,
        learner=spec.learner.kind,
        model=spec.model.kind if spec.model else "none",
        source=spec.source.kind,
        steps=run.num_steps,
        version=version("kshot"),
        needs=needs,
        repo_id=repo_id or "path/of/this/folder",
        options=", allow_import=True" * bool(modules),
        support=support,
        support_about=about,
        inputs=inputs,
        result="\n\n".join(_result(report)) if report.get("test") else "The run has no report with test figures.",
        data="\n".join(_data(run, report.get("protocol") or {})),
        licence=license or "The author gave none: ask before you use the weights.",
    )


def _modules(value: Any) -> Iterator[str]:
    """The modules outside kshot that a run file names."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _modules(each)
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and ":" in kind and not kind.startswith("kshot."):
        yield kind.partition(":")[0]


def _result(report: Mapping[str, Any]) -> Iterator[str]:
    """What the report concludes: figures beside baselines, and sentences."""
    yield conclude(report).sentence
    yield _markdown(result_table(report))
    yield verdict_of(report)
    yield from INFERENCE[inference_of(report)]
    yield f"Audits: {trust_of(report).sentence}."
    selection = (report.get("protocol") or {}).get("selection")
    yield "Intervals are of 95 %." + f" Protocol: {selection}." * bool(selection)


def _markdown(table: Table) -> str:
    rows = [[column.title for column in table.columns], ["---"] * len(table.columns)]
    rows += [[str(cell) for cell in row.cells] for row in table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _data(run: TrainedRun, protocol: Mapping[str, Any]) -> Iterator[str]:
    """The kind and the sizes of the data, and of the tasks."""
    yield f"- source: {run.spec.source.kind}"
    yield f"- inputs of one example: {run.shapes['inputs']}; targets: {run.shapes['targets']}"
    for name, value in protocol.items():
        if isinstance(value, dict) and value and {*value} <= {*SPLITS}:
            if all(isinstance(each, int) for each in value.values()):
                yield f"- {name}: " + ", ".join(f"{count:,} {split}" for split, count in value.items())
        elif name in SIZES:
            yield f"- {name.replace('_', ' ')}: {value}"
