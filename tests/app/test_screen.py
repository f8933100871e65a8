"""Names and texts of users act on nothing: neither on the terminal nor in a spreadsheet."""

import csv
import io

import numpy as np
import pytest
from rich.table import Table

from kshot.app.screen import Screen, visible
from kshot.evaluation.per_task import Scores, read_tasks, write_tasks
from kshot.evaluation.units import Units
from kshot.files import csv_text

NASTY = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb\x00"


def test_control_characters_are_shown_and_not_sent():
    file = io.StringIO()
    screen = Screen(file=file, force_terminal=True, width=200)
    table = Table()
    table.add_column(NASTY)
    table.add_row(NASTY)
    screen.print(NASTY, markup=False, highlight=False)
    screen.print(f"[bold]{NASTY}[/]", highlight=False)
    screen.print(table)
    shown = file.getvalue()
    assert not {"\x07", "\x9b", "\u202e", "\x00"} & set(shown)
    assert "\x1b[2J" not in shown
    assert shown.count(r"a\x1b[2J") == 4
    assert "\x1b[1m" in shown  # the bold of kshot itself


@pytest.mark.parametrize("text", ["plain", "Ærø, 北京, 👩‍👩‍👧", "two\nlines\tand a tab"])
def test_other_texts_are_left_as_they_are(text):
    assert visible(text) == text


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "'quoted", "plain", "a,b"]
    rows = list(csv.reader(io.StringIO(csv_text([[name, -1.5] for name in names]))))
    assert [row[0] for row in rows] == [*(f"'{name}" for name in names[:6]), *names[6:]]
    assert {row[1] for row in rows} == {"-1.5"}
    scores = Scores(["aa", "bb"], {"mse": [float("nan"), 2.0]}, Units(np.array([0, 1]), "patient", ["=cmd", "b"]))
    write_tasks(tmp_path / "tasks.csv", scores, {}, "mse")
    read, _ = read_tasks(tmp_path / "tasks.csv")
    assert read.units.names == ["'=cmd", "b"]
    assert str(read.per_task["mse"]) == "[nan, 2.0]"
