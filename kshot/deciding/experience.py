"""Experience: the plans that were tried on any data, in a database that many runs and machines share.

A run must not depend on it. A database that is locked, missing, read-only, damaged or of another version costs a
warning: the run goes on, and what it tries is kept in memory, and written if the database can be used later.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from kshot import bounded
from kshot.bounded import home_expanded
from kshot.deciding.trial import Cost, Figure, Lines, Trial, parse_trials, read_trials, write_trials

__all__ = ["Cost", "Experience", "Figure", "Lines", "Trial", "shipped_trials"]

logger = logging.getLogger(__name__)

VARIABLE = "KSHOT_EXPERIENCE"
"""The environment variable: a file, or a URL of SQLAlchemy."""
SCHEMA = 1
"""Version of the tables; a database of another version is left as it is."""
SHIPPED = "experience.jsonl.xz"
"""The file of trials that comes with kshot."""
WAIT, ATTEMPTS = 0.3, 6
"""Seconds that SQLite waits for a lock, and attempts of each transaction."""

_tables = sa.MetaData()
_schema = sa.Table("kshot_schema", _tables, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
_trials = sa.Table(
    "kshot_trials",
    _tables,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(100), nullable=False),
    sa.Column("data_set", sa.String(100), nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("content", sa.Text, nullable=False),
)
_LEFT = "; it is left as it is, and `kshot experience forget --all` moves it aside"
_Result = TypeVar("_Result")


class _Unusable(Exception):
    """A database that cannot be used; `replaceable` if `forget(everything=True)` may move its file aside."""

    def __init__(self, reason: str, *, replaceable: bool = False) -> None:
        super().__init__(reason)
        self.replaceable = replaceable


class Experience:
    """The trials of a database, those that come with kshot, and those that could not be written.

    Args:
        url: a file of SQLite, or any URL of SQLAlchemy, such as "postgresql://host/name"; by default the environment
            variable `KSHOT_EXPERIENCE`, otherwise a file in the user's data folder. "sqlite://" is one in memory.

    Attributes:
        url: the database.
        problem: why the database could not be used last time, in a sentence; None if it could. It is logged as a
            warning, once.

    Example:
        >>> experience = Experience("sqlite://")
        >>> experience.add(Trial({"kind": "regression"}, {"learner": {"kind": "maml"}}, [], None, Cost(1.0)))
        >>> [trial.plan for trial in experience.trials(shipped=False)]
        [{'learner': {'kind': 'maml'}}]
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url or os.environ.get(VARIABLE) or _default_file()
        self.problem: str | None = None
        self._engine: sa.Engine | None = None
        self._waiting: dict[str, Trial] = {}
        self._warned: set[str] = set()

    @property
    def place(self) -> str:
        """The database for messages, without a password."""
        try:
            url = _parsed(self.url)
        except sa.exc.ArgumentError:
            return "the given URL"
        return str(url.database) if url.database and _is_sqlite(url) else url.render_as_string(hide_password=True)

    def add(self, trial: Trial) -> None:
        """Keep a trial; one of the same content is kept once."""
        self._waiting[trial.sha256] = trial
        self._write()

    def trials(self, *, kind: str | None = None, shipped: bool = True) -> list[Trial]:
        """All trials, or those of one kind of task, with those that come with kshot unless `shipped` is False."""
        query = sa.select(_trials.c.sha256, _trials.c.created, _trials.c.content).order_by(
            _trials.c.created, _trials.c.sha256
        )
        rows: list[Any] = self._attempt(lambda connection: list(connection.execute(query)), [])
        found = {trial.sha256: trial for trial in shipped_trials()} if shipped else {}
        damaged = 0
        for row in rows:
            try:
                trial = Trial.from_json(
                    bounded.parse_json(row.content) | {"sha256": row.sha256, "created": row.created}
                )
            except (ValueError, TypeError, AttributeError):
                damaged += 1
            else:
                found[trial.sha256] = trial
        if damaged:
            self._warn(f"{damaged} of {len(rows)} trials in {self.place} are damaged and left out")
        found |= self._waiting
        return [trial for trial in found.values() if kind in (None, trial.kind)]

    def export(self, path: Path | str) -> int:
        """Write all trials but those that come with kshot to a file of JSON lines, .jsonl, .jsonl.gz or .jsonl.xz.

        Returns:
            The number of trials.

        Raises:
            ValueError: another kind of file, or a place that cannot be written.
        """
        return write_trials(Path(path), self.trials(shipped=False))

    def import_(self, path: Path | str) -> int:
        """Add the trials of a file of `export`; lines that are no trial are left out, with a warning for each.

        Returns:
            The number of trials that were not known.

        Raises:
            OSError, ValueError: the file cannot be read, see `kshot.deciding.trial.read_trials`.
        """
        trials, problems = read_trials(Path(path))
        for problem in problems:
            logger.warning("%s", problem)
        return self.merge(trials)

    def merge(self, trials: Iterable[Trial]) -> int:
        """Add trials, and return the number of those that were not known."""
        before = len(self._waiting)
        self._waiting |= {trial.sha256: trial for trial in trials}
        written = self._write()
        return len(self._waiting) - before if written is None else written

    def forget(
        self,
        *,
        kind: str | None = None,
        data_set: str | None = None,
        before: str | None = None,
        everything: bool = False,
    ) -> int:
        """Delete the trials that meet all conditions, of one kind or data set, or created before a time.

        With `everything`, all are deleted, and an SQLite file that is damaged or of another version is moved aside: it
        gets a suffix, and nothing of it is deleted. Trials that come with kshot stay.

        Returns:
            The number of trials that were deleted.

        Raises:
            ValueError: there is no condition.
        """
        columns = {"kind": kind, "data_set": data_set}
        conditions = [_trials.c[name] == value for name, value in columns.items() if value is not None]
        conditions += [_trials.c.created < before] if before is not None else []
        if everything == bool(conditions):
            raise ValueError("name the trials to forget by kind, data_set or before, or everything=True, not both")
        if everything:
            self._move_aside()
        statement = sa.delete(_trials).where(*conditions)
        deleted = self._attempt(lambda connection: connection.execute(statement).rowcount, 0)
        gone = [
            key
            for key, trial in self._waiting.items()
            if kind in (None, trial.kind)
            and data_set in (None, trial.data_set)
            and (before is None or trial.created < before)
        ]
        for key in gone:
            del self._waiting[key]
        return deleted + len(gone)

    def _write(self) -> int | None:
        """Write what waits; the number of trials that were not known, or None if the database cannot be used."""
        waiting = dict(self._waiting)
        written = self._attempt(lambda connection: _insert(connection, waiting), None)
        if written is not None:
            for key in waiting:
                self._waiting.pop(key, None)
        return written

    def _attempt(self, work: Callable[[sa.Connection], _Result], otherwise: _Result) -> _Result:
        """The result of a transaction; `otherwise`, with a warning, if the database cannot be used."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._engine is None:
                    self._engine = _opened(self.url)
                with self._engine.begin() as connection:
                    result = work(connection)
            except (sa.exc.SQLAlchemyError, sqlite3.Error, _Unusable, OSError, ImportError) as error:
                self._engine = None  # the file may have been replaced
                if attempt < ATTEMPTS and _may_pass(error):
                    time.sleep(random.uniform(0, 0.02 * attempt))
                    continue
                self._warn(f"the experience in {self.place} is not used: {_reason(error)}")
                return otherwise
            self.problem = None
            return result
        raise AssertionError("the last attempt returns")

    def _warn(self, problem: str) -> None:
        self.problem = problem
        if problem not in self._warned:
            self._warned.add(problem)
            logger.warning("%s", problem)

    def _move_aside(self) -> None:
        """Rename the file of a database that cannot be read, with those that SQLite keeps beside it."""
        try:
            _opened(self.url)
        except _Unusable as error:
            if not error.replaceable:
                return
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError, ImportError):
            return
        else:
            return
        suffix = time.strftime(".aside-%Y%m%d-%H%M%S", time.gmtime())
        path = Path(str(_parsed(self.url).database))
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            file = path.with_name(name)
            if file.exists():
                file.rename(path.with_name(f"{path.name}{suffix}{name.removeprefix(path.name)}"))
        logger.warning("%s could not be read, and is now %s", path, path.with_name(f"{path.name}{suffix}"))


@cache
def shipped_trials() -> tuple[Trial, ...]:
    """The trials that come with kshot; none, with a warning, if their file is missing or damaged."""
    try:
        packed = (resources.files("kshot.deciding") / SHIPPED).read_bytes()
        trials, problems = parse_trials(bounded.unpacked(packed, "xz", SHIPPED), SHIPPED)
    except Exception as error:  # the packers have errors of their own
        logger.warning("the experience that comes with kshot cannot be read, install kshot again: %s", error)
        return ()
    for problem in problems:
        logger.warning("%s", problem)
    return tuple(trials)


def _default_file() -> str:
    from platformdirs import user_data_path

    return str(user_data_path("kshot", appauthor=False) / "experience.sqlite")


def _parsed(text: str) -> sa.URL:
    """The URL that a text is, or of the SQLite file that it names."""
    if "://" in text:
        try:
            return sa.make_url(text)
        except ValueError as error:  # a port that is no number
            raise sa.exc.ArgumentError(str(error)) from None
    return sa.URL.create("sqlite", database=str(home_expanded(text).absolute()))


def _is_sqlite(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _opened(text: str) -> sa.Engine:
    """A database whose tables are those of this version, made if there are none; otherwise `_Unusable`."""
    url = _parsed(text)
    if not _is_sqlite(url):
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            _prepare(connection)
        return engine
    in_memory = url.database in (None, "", ":memory:")
    path = Path(url.database or "")
    if not in_memory and not str(url.database).startswith("file:"):  # a URI, which only opens what is there
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            bounded.open_file(path).close()  # SQLite would wait for a FIFO
    pool = {"poolclass": sa.StaticPool} if in_memory else {"poolclass": sa.NullPool}
    engine = sa.create_engine(url, connect_args={"timeout": WAIT, "check_same_thread": False}, **pool)
    sa.event.listen(engine, "connect", _configure)
    try:
        with engine.connect() as connection:
            (said,) = connection.exec_driver_sql("PRAGMA quick_check(1)").scalars()
            if said != "ok":
                raise _Unusable(f"it is damaged ({said.splitlines()[-1]}){_LEFT}", replaceable=True)
            names = sa.inspect(connection).get_table_names()
            if names and _schema.name not in names:
                raise _Unusable("it is a database of another program; choose another file")
            with suppress(sa.exc.DBAPIError):  # one that is read-only, or locked, is used as it is
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        with engine.begin() as connection:
            _prepare(connection)
    except (sa.exc.DatabaseError, sqlite3.DatabaseError) as error:
        if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _Unusable(
                f"it is damaged, or no database ({getattr(error, 'orig', error)}){_LEFT}", replaceable=True
            ) from None
        raise
    return engine


def _configure(connection: sqlite3.Connection, _: Any) -> None:
    connection.text_factory = lambda content: content.decode(errors="replace")  # a damaged row must not hide the others
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA secure_delete = ON")


def _prepare(connection: sa.Connection) -> None:
    """Make the tables if there are none, and check that they are of this version."""
    if not sa.inspect(connection).has_table(_trials.name):
        for table in (_schema, _trials):
            connection.execute(CreateTable(table, if_not_exists=True))
    version = connection.scalar(sa.select(sa.func.max(_schema.c.version)))
    if version is None:
        connection.execute(sa.insert(_schema).values(version=SCHEMA))
    elif version != SCHEMA:
        which, remedy = ("a newer", "update kshot") if version > SCHEMA else ("an older", "export it with that version")
        raise _Unusable(
            f"{which} version of kshot wrote it (version {version} of its tables; this kshot has {SCHEMA}): {remedy}, "
            f"or choose another database{_LEFT}",
            replaceable=True,
        )


def _insert(connection: sa.Connection, trials: dict[str, Trial]) -> int:
    """Insert the trials that the database lacks, and return their number."""
    keys = list(trials)
    known: set[str] = set()
    for start in range(0, len(keys), 500):  # databases bound the number of parameters
        chunk = keys[start : start + 500]
        known |= set(connection.scalars(sa.select(_trials.c.sha256).where(_trials.c.sha256.in_(chunk))))
    rows = [
        {
            "sha256": key,
            "kind": trial.kind,
            "data_set": trial.data_set,
            "created": trial.created,
            "content": trial.content,
        }
        for key, trial in trials.items()
        if key not in known
    ]
    if rows:
        connection.execute(sa.insert(_trials), rows)
    return len(rows)


def _code(error: BaseException) -> int:
    """The primary error code of SQLite; 0 if the error is none of it."""
    return getattr(getattr(error, "orig", error), "sqlite_errorcode", 0) & 0xFF


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: another process holds a lock, or wrote the same row in between."""
    return isinstance(error, sa.exc.IntegrityError) or _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _reason(error: BaseException) -> str:
    if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another process has locked it; new trials are kept in memory until it is free"
    if isinstance(error, ImportError):
        return f"the Python package of its database is not installed ({error})"
    if isinstance(error, sa.exc.NoSuchModuleError | sa.exc.ArgumentError):
        return "it is neither a file nor a URL of a database that SQLAlchemy knows, such as postgresql://host/name"
    if isinstance(error, OSError):
        return f"{error}; new trials are kept in memory"
    said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return said if isinstance(error, _Unusable) else f"{said}; new trials are kept in memory"
