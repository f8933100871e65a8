"""Commands that can be resumed: how they end when they are interrupted, or asked to end by a signal."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from kshot.app.errors import INTERRUPTED, STOPPED
from kshot.app.folder import run_folder
from kshot.app.processes import is_launched, is_member, is_silent
from kshot.files import is_empty


@contextmanager
def resumable(out: Path | None, stem: str, *, resume: bool) -> Iterator[Path]:
    """A context in which SIGTERM and SIGUSR1 end a training after the present step, and anything else at once.

    Then, and after Ctrl-C, it says how to resume, and raises `typer.Exit` with the exit code. A second signal ends the
    process at once; one of several processes leaves that to those that started it, which pass signals on repeatedly.

    Args:
        out, stem: folder of the command, and the name of a new one in runs/ if that is None.
        resume: whether the command continues what is in the folder.

    Yields:
        the folder.

    Raises:
        ValueError: a new folder, in which nothing can be resumed.
    """
    from kshot.training.stopping import Stopped, stopping

    if resume and out is None:
        raise ValueError("--resume needs the folder of the run: --out DIR")
    with run_folder(out, stem) as folder:
        try:
            with stopping(again=signal.SIG_IGN if is_member() else signal.SIG_DFL):
                yield folder
        except KeyboardInterrupt:
            _say("Interrupted", out, folder)
            raise typer.Exit(INTERRUPTED) from None
        except Stopped as asked:
            _say(f"Ended by {asked}", out, folder)
            raise typer.Exit(STOPPED) from None


def _say(what: str, out: Path | None, folder: Path) -> None:
    if is_silent() or is_launched():
        return
    words = ["kshot", *(word for word in sys.argv[1:] if word != "--resume")]
    words += [] if out else ["--out", str(folder)]
    how = "Nothing was written. Start again by" if is_empty(folder) else "Resume by"
    words += [] if is_empty(folder) else ["--resume"]
    typer.echo(f"\n{what}. {how}: {shlex.join(words)}", err=True)
