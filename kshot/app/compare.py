"""`kshot compare`: leaderboards of run folders on the terminal, as CSV, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kshot.app.terminal import print_table
from kshot.evaluation.compare import compare
from kshot.evaluation.per_task import write
from kshot.evaluation.report.leaderboard import SEPARATE, board_table, boards_csv, boards_page, heading, note


def compare_runs(folders: Sequence[Path], csv_file: Path | None, html_file: Path | None, console: Console) -> None:
    """Rank run folders, print the leaderboards, and write the files that were requested.

    Raises:
        ValueError: a folder without a finished run, or a file to write inside one of the folders.
    """
    compared = {folder.resolve() for folder in folders}
    for file in (csv_file, html_file):
        if file and compared & {file.resolve(), *file.resolve().parents}:
            raise ValueError(f"{file} is inside a folder that is compared; choose another place")
    boards = compare(folders)
    for board in boards:
        console.print(heading(board), style="bold", highlight=False, markup=False)
        console.print(f"episodes {board.episodes_sha256[:16]}…", style="dim", highlight=False)
        print_table(console, board_table(board), (0, 2, 3, 4, 5, 6))
        if text := note(board):
            console.print(text, style="dim", highlight=False)
        console.print()
    if len(boards) > 1:
        console.print(f"{len(boards)} sets of episodes. {SEPARATE}")
    if csv_file:
        write(csv_file, boards_csv(boards))
    if html_file:
        write(html_file, boards_page(boards))
