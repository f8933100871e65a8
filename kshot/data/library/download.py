"""Downloads that resume after a broken connection and never join parts of two versions of a file.

pooch transfers and hashes. Resuming, the limits on size, time and disk space, and redirects are checked here, on the
headers of each response before its content is written.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from kshot.bounded import parse_json, read_bytes
from kshot.limits import OverLimit, limits, over

Progress = Callable[[str, int, int | None], object]
"""Called with a file's name, its number of bytes received, and its size, None if the server does not tell it."""

TRIES = 5
BACKOFF = 1.0
"""Seconds before the second try; doubled for each further one."""
TIMEOUT = 30.0
"""Seconds without data after which a connection counts as broken."""
_SPARE = 64 << 20  # bytes; a file of unknown size leaves twice as much of the disk free
_CHUNK = 1 << 14  # bytes; what a broken connection loses at most


class _Broken(Exception):
    """A transfer failed in a way that another try may mend."""


def download(url: str, target: Path, progress: Progress | None = None) -> None:
    """Download a file. What arrives is kept next to it as `.part`, from which the next call resumes.

    A part is resumed if the server confirms by ETag or Last-Modified that the file is unchanged; otherwise the download
    starts again. `target`, in an existing folder, is written only when it is complete.

    Raises:
        OverLimit: the file is larger, or takes longer, than `kshot.limits` allow. What arrived is deleted, unless its
            size is known, so that the next call can complete it.
        ValueError: invalid URL, unreachable or refusing server, a connection that broke `TRIES` times, or a full disk.
    """
    _check_url(url)
    path = target.with_name(f"{target.name}.part")
    seconds = limits().seconds
    deadline = time.monotonic() + seconds
    for attempt in range(TRIES):
        if attempt:
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        try:
            with _Part(url, path, progress) as part:
                finished = _within(deadline - time.monotonic(), partial(_transfer, part))
                part.check_time(finished, seconds)
        except OverLimit:
            if part.total is None or part.version is None or part.total > limits().download_bytes:
                path.unlink(missing_ok=True)
                _note(path).unlink(missing_ok=True)
            raise
        except _Broken as error:
            reason = error
        else:
            path.replace(target)
            _note(path).unlink()
            return
    raise ValueError(
        f"{url}: the connection broke {TRIES} times ({reason}); {path.stat().st_size:,} bytes were received, and the "
        "same command resumes from them"
    )


def _within(seconds: float, transfer: Callable[[], None]) -> bool:
    """Call a function in a thread, and return whether it ended in time; a late one ends when it next writes."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            transfer()
        except BaseException as error:  # raised below, in the thread of the caller
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(max(seconds, 0.0))
    if errors:
        raise errors.pop()  # else it would hold itself, by the frames of its traceback
    return not thread.is_alive()


def _transfer(part: _Part) -> None:
    """Request what is missing of a file."""
    import pooch
    import requests
    from urllib3.exceptions import MaxRetryError

    headers = {"User-Agent": "kshot", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={part.size}-"} if part.size else {}
    hooks = {"response": part.accept}
    try:
        pooch.HTTPDownloader(chunk_size=_CHUNK, timeout=TIMEOUT, headers=headers, hooks=hooks)(part.url, part, None)
    except requests.TooManyRedirects as error:
        raise ValueError(f"{part.url} redirects in a circle; give another address by --from") from error
    except requests.RequestException as error:
        if error.args and isinstance(error.args[0], MaxRetryError):  # no connection was made
            raise ValueError(
                f"{urlsplit(part.url).hostname} cannot be reached ({_root_cause(error)}); check the network, or give a "
                "copy by --from PATH, another address by --from URL or KSHOT_MIRROR"
            ) from error
        ended = f"it ended after {part.size:,} of {part.total:,} bytes" if part.total else _root_cause(error)
        raise _Broken(ended) from error


class _Part(io.FileIO):
    """What was received of a file: pooch appends to it, after `accept` has checked the headers of the response."""

    def __init__(self, url: str, path: Path, progress: Progress | None) -> None:
        super().__init__(path, "ab")
        self.url, self.path, self.progress = url, path, progress or (lambda *_: None)
        self.version = _recorded_version(url, path)
        self.size = path.stat().st_size
        self.total: int | None = None
        if self.version is None:
            self._restart()

    def accept(self, response: Any, **_: Any) -> None:
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise

    def _check(self, response: Any) -> None:
        status = f"the server answers {response.status_code} {response.reason}"
        if response.is_redirect:
            response.close()  # before requests reads all that comes with the redirection
            location = _redirection(response)
            if response.url.startswith("https:") and not location.startswith("https:"):
                raise ValueError(
                    f"{response.url} redirects to {location}, which is not encrypted; give another address by --from"
                )
            return
        if response.status_code == 416:  # the part is longer than the file on the server
            self._restart()
        if response.status_code in (416, 429) or response.status_code >= 500:
            raise _Broken(status)
        if not response.ok:
            moved = response.status_code in (404, 410)
            hint = "; it may have moved: give another address or a copy by --from" if moved else ""
            raise ValueError(f"{self.url} cannot be downloaded: {status}{hint}")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        resumed = response.status_code == 206
        starts = response.headers.get("Content-Range", "").startswith(f"bytes {self.size}-")
        if resumed and (not starts or version != self.version):
            self._restart()
            raise _Broken("the file changed on the server")
        if not resumed:
            self._restart()
            self.version = version
            _note(self.path).write_text(json.dumps({"address": self.url, "version": version}))
        length = response.headers.get("Content-Length")
        self.total = None if length is None else self.size + int(length)
        self._check_size(self.total or 0)
        if (self.total or 0) - self.size > self._free():
            raise self._disk_full()
        self._report()

    def write(self, chunk: Any) -> int:
        self._check_size(self.size + len(chunk))
        if (
            self.total is None
            and self.size // _SPARE != (self.size + len(chunk)) // _SPARE
            and self._free() < 2 * _SPARE
        ):
            raise self._disk_full()
        try:
            written = super().write(chunk)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full() from error
            raise ValueError(f"{self.path} cannot be written: {error.strerror}") from error
        if written < len(chunk):
            raise self._disk_full()
        self.size += written
        self._report()
        return written

    def _restart(self) -> None:
        if self.size:
            self.truncate(0)
        self.size = 0

    def _check_size(self, size: int) -> None:
        most = limits().download_bytes
        if size > most:
            raise over(f"{self.url} has {size:,} bytes or more, but at most {most:,} are downloaded")

    def check_time(self, finished: bool, seconds: float) -> None:
        """Raise `OverLimit` unless the transfer finished in the seconds that it may take."""
        if not finished:
            raise over(f"{self.url} took more than {seconds:,} seconds, in which {self.size:,} bytes came")

    def _free(self) -> int:
        return shutil.disk_usage(self.path.parent).free

    def _disk_full(self) -> ValueError:
        needed = "more space" if self.total is None else f"{self.total:,} bytes in all"
        return ValueError(
            f"the disk of {self.path.parent} is full: {self.path.stem} needs {needed}; make room, or set KSHOT_DATA to "
            "a folder on another disk. The same command then resumes"
        )

    def _report(self) -> None:
        self.progress(self.path.stem, self.size, self.total)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            f"{url!r} is not a valid address: expected http:// or https:// without spaces; give a local file as a path"
        )


def _redirection(response: Any) -> str:
    """The address that a response redirects to, which must be one of the web."""
    try:
        location = urljoin(response.url, response.headers["Location"])
        scheme = urlsplit(location).scheme
    except ValueError:
        location, scheme = response.headers["Location"], ""
    if scheme not in ("http", "https"):
        raise ValueError(
            f"{response.url} redirects to {location[:200]!r}, which is not http:// or https://; give another address "
            "by --from"
        )
    return location


def _recorded_version(url: str, part: Path) -> str | None:
    """The version that a part is of; None unless it is known, and the part came from this URL."""
    try:
        note = parse_json(read_bytes(_note(part)))
        return note["version"] if note["address"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(part: Path) -> Path:
    """The file that records which address and version a part is of."""
    return part.with_name(f"{part.name}.json")


def _root_cause(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
