"""Tasks from a table: each group of its rows is a task (`group`), or its classes are told apart N at a time (`classes`).

Shape legend: n rows, F features, D targets, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.objectives import Objective
from kshot.tasks.columns import Columns, Values, moments, read_columns
from kshot.tasks.drawing import Size
from kshot.tasks.encoding import Support
from kshot.tasks.fewshot import ClassTasks, Imbalance
from kshot.tasks.groups import GroupTasks
from kshot.tasks.pools import Small
from kshot.tasks.reading import Reading, Table, open_table
from kshot.tasks.splitting import cut
from kshot.types import Split, Tree

BadRows = Literal["error", "drop"]


def table(
    path: Path | str,
    *,
    group: str | None = None,
    target: str | Sequence[str] | None = None,
    classes: str | None = None,
    ask: Literal["regression", "classification"] | None = None,
    inputs: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    time: str | None = None,
    domain: str | None = None,
    split: Mapping[str, Any] | None = None,
    ways: Size = 5,
    shots: Size = 10,
    queries: Size = 10,
    train_queries: Size | None = None,
    imbalance: Imbalance | None = None,
    label_noise: float = 0.0,
    small: Small = "error",
    reading: Mapping[str, Any] | None = None,
    bad_rows: BadRows = "error",
    seed: int = 0,
) -> GroupTasks | ClassTasks:
    r"""Tasks from a CSV, TSV, NDJSON or Parquet file.

    With `group` and `target`, a task is a group, such as a store, patient or school: predict the target of its rows
    from `shots` of them. A target of numbers is regressed, standardised by training rows,
    $y' = (y - \mu_{\text{train}}) / \sigma_{\text{train}}$, with figures told in its own units; one of words or booleans
    is classified, with the same classes in all tasks. With `classes`, a task tells `ways` values of that column apart.

    Inputs are float32 (n, F). Numbers are standardised by training rows, and a missing one is their mean, with a
    feature that says so; words are one-hot up to 32 of them and random codes beyond, with a place for unknown ones;
    dates are linear and cyclic.

    Args:
        path: the file.
        group: the column whose value names the group of a row.
        target: the column to predict, or several columns of numbers.
        classes: the column whose values are told apart, instead of `group` and `target`.
        ask: "regression" or "classification"; by default what the target's column holds.
        inputs: the columns to predict from; by default all others.
        ignore: columns to leave aside.
        kinds: what columns hold, where it is not what they look like: number, boolean, category, date, or a format of
            dates such as "%d/%m/%Y".
        time: a column of dates or numbers; a group's support then comes before its query.
        domain: a column that says where a group or class belongs: for `split: {heldout: …}`, and the classes of a task
            are all of one domain.
        split: how groups or classes are cut, see `splitting`; by default 70, 15 and 15 % by a hash of the name.
        ways: classes of a task.
        shots: support rows of a task, or of each class.
        queries: query rows of a task, or of each class.
        train_queries: the same in training tasks.
        imbalance, label_noise: as in `ClassTasks`; for `classes` only.
        small: what becomes of groups or classes that are too small: error, drop or shrink.
        reading: how a file of text is written: delimiter, encoding, decimal, missing; see `Reading`.
        bad_rows: "error", or "drop" to leave rows out that lack a group or a target, or hold what they should not.
        seed: names the sequence of tasks.

    Raises:
        ValueError: what is wrong with the file or a value in it, with line and column; a column that is missing; groups
            that are too small.

    Example:
        >>> path = Path(getfixture("tmp_path")) / "scores.csv"
        >>> rows = [f"school {s},{hours},{50 + s + 3 * hours}" for s in range(40) for hours in range(12)]
        >>> _ = path.write_text("school,hours,score\n" + "\n".join(rows))
        >>> source = table(path, group="school", target="score", shots=5, queries=5)
        >>> task = source.task("train", 0)
        >>> task.support.inputs.shape, task.support.targets.shape
        (torch.Size([5, 1]), torch.Size([5, 1]))
    """
    if (group is None) == (classes is None):
        raise ValueError("a table needs group (a task is a group) or classes (a task tells classes apart), one of the two")
    names = [] if target is None else [target] if isinstance(target, str) else list(target)
    if group is not None and not names:
        raise ValueError("a table with group needs a target: the column to predict")
    if classes is not None and (names or ask or time):
        raise ValueError("a table with classes takes no target, ask or time: the classes themselves are predicted")
    key = group if group is not None else str(classes)
    split = split or {"ratio": [0.7, 0.15, 0.15]}
    aside = [key, *names, *([split["column"]] if "column" in split else []), *([domain] if domain else [])]
    needed = None if inputs is None else [*aside, *inputs, *([time] if time else [])]
    found = open_table(path, Reading(**(reading or {})), columns=needed, ignore=ignore if inputs is None else ())
    found.need(*aside, *([time] if time else []))
    chosen = [name for name in found.frame.columns if name not in aside] if inputs is None else list(inputs)
    given = dict(kinds or {})
    found.need(*given)
    raw = read_columns(found, {name: given.get(name) or found.kind(name) for name in chosen})
    targets, encoded = _targets(found, names, ask, given) if names else (None, {"label": key})
    keys = found.keys(key)
    found.missing(key, keys.is_null().to_numpy(), "a row needs one")
    order = _order(found, time, given) if time else None
    keep = found.settle(bad_rows)
    members = group_rows(keys, keep, order)
    parts = cut_members(members, found, split, domain, kind="group" if group else "class")
    train = np.zeros(len(found), bool)
    for rows in parts["train"].values():
        train[rows] = True
    columns = Columns.fit(raw, train, asked=inputs or ())
    if targets is not None and "mean" in encoded:
        encoded |= standardise(targets, train)
    encoding = TableEncoding(columns=columns, reading=found.reading, **encoded)
    examples = TableExamples(columns, columns.encode(raw), targets)
    common: dict[str, Any] = {"shots": shots, "queries": queries, "train_queries": train_queries, "small": small}
    common |= {"seed": seed, "name": "table"}
    source: GroupTasks | ClassTasks
    if group is not None:
        ordered: Any = "given" if time else "random"
        source = GroupTasks(examples, parts, objective=encoding.objective, order=ordered, **common)
    else:
        within = domains_of(members, found, domain) if domain else None
        options: dict[str, Any] = {"ways": ways, "imbalance": imbalance, "label_noise": label_noise, "within": within}
        source = ClassTasks(examples, parts, **options, **common)
    source.encoding = encoding
    if found.dropped["rows"]:
        source.dropped[f"bad rows, the first: {found.dropped['first'][0]}"] = found.dropped["rows"]
    return source
