"""Files from addresses: over broken connections, and never a half of one and a half of another version."""

from __future__ import annotations

import errno
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Progress = Callable[[str, int, int | None], object]
"""Is told a file's name, how many of its bytes are there, and how many it has, or None where the server doesn't say."""

TRIES = 5
PAUSE = 1.0
"""Seconds before the second try; they double from try to try."""
SILENCE = 30.0
"""Seconds without a byte after which a connection counts as broken."""
MOST = 4 << 30
"""Bytes that a file may have."""

_CHUNK = 1 << 16


class _Broken(Exception):
    """The connection ended early; another try may go on."""


def fetch(address: str, target: Path, progress: Progress | None = None) -> None:
    """Fetch a file; what has come is kept beside it as `.part`, and the next call goes on from there.

    A part is gone on with where the server says by ETag or Last-Modified that it still has the same version; otherwise
    the file is fetched from its beginning.

    Args:
        address: http:// or https://.
        target: where the file goes; its folder exists. It's in place only when it is whole.
        progress: is told how far it is.

    Raises:
        ValueError: no such address, no network, a server that refuses, a connection that breaks again and again, or a
            disk that is full.
    """
    _check(address)
    part = target.with_name(f"{target.name}.part")
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        try:
            _go_on(address, part, progress or (lambda *_: None))
            part.replace(target)
            _about(part).unlink()
            return
        except _Broken as broken:
            reason = broken
    have = part.stat().st_size if part.exists() else 0
    raise ValueError(
        f"{address}: the connection broke {TRIES} times ({reason}); {have:,} bytes are there, and the same command "
        "goes on from them"
    )


def _check(address: str) -> None:
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and parts.hostname and address.isprintable() and " " not in address
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(
            f"{address!r} is no address that can be fetched from: it begins with http:// or https://, and holds no "
            "spaces. Give a file of this machine by its path"
        )


def _go_on(address: str, part: Path, progress: Progress) -> None:
    """Fetch what is missing of a part."""
    have, version = _begun(address, part)
    headers = {"User-Agent": "kshot", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        request = urllib.request.Request(address, headers=headers)
        with _opener().open(request, timeout=SILENCE) as response:
            if response.status == 206 and not _continues(response, have, version):
                part.unlink()
                raise _Broken("the file changed on the server")
            begun = have if response.status == 206 else 0
            if not begun:
                _about(part).write_text(json.dumps({"address": address, "version": _version(response)}))
            left = response.headers.get("Content-Length")
            _receive(response, part, begun, None if left is None else begun + int(left), progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is no beginning of what the server has
            part.unlink(missing_ok=True)
        if error.code in (416, 429) or error.code >= 500:
            raise _Broken(f"the server says {error.code} {error.reason}") from error
        moved = "; it may have moved: give another address or a copy by --from" if error.code in (404, 410) else ""
        raise ValueError(f"{address} cannot be fetched: the server says {error.code} {error.reason}{moved}") from error
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise ValueError(
            f"{urlsplit(address).hostname} cannot be reached ({reason}); "
            "check the network, or give a copy by --from PATH, another address by --from URL or KSHOT_MIRROR"
        ) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def _receive(response: Any, part: Path, have: int, total: int | None, progress: Progress) -> None:
    name = part.name.removesuffix(".part")
    if (total or 0) > MOST:
        raise ValueError(f"{response.url} has {total:,} bytes, more than the {MOST:,} that are fetched")
    if (total or 0) - have > shutil.disk_usage(part.parent).free:
        raise _full(part, total)
    with part.open("ab" if have else "wb") as file:
        progress(name, have, total)
        while chunk := response.read(_CHUNK):
            have += len(chunk)
            if have > MOST:
                raise ValueError(f"{response.url} has more than the {MOST:,} bytes that are fetched")
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _full(part, total) from error
                raise ValueError(f"{part} cannot be written: {error.strerror}") from error
            progress(name, have, total)
    if total is not None and have < total:
        raise _Broken(f"it ended after {have:,} of {total:,} bytes")


def _begun(address: str, part: Path) -> tuple[int, str | None]:
    """The bytes that are there of the very file of this address, and the version that they are of."""
    try:
        about = json.loads(_about(part).read_text())
        if about["address"] == address and about["version"]:
            return part.stat().st_size, about["version"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing there, or nothing that can be trusted
    return 0, None


def _continues(response: Any, have: int, version: str | None) -> bool:
    """Whether a partial answer goes on where the part ends, and is of its version."""
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-") and _version(response) == version


def _version(response: Any) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _full(part: Path, total: int | None) -> ValueError:
    needed = "more room" if total is None else f"{total:,} bytes in all"
    return ValueError(
        f"the disk of {part.parent} is full: {part.name.removesuffix('.part')} needs {needed}; make room, or set "
        "KSHOT_DATA to a folder on another disk. The same command then goes on"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none that leaves encryption."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise ValueError(f"{req.full_url} leads to {newurl}, which is not encrypted; give a safe address by --from")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)
