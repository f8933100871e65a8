"""`kshot run --processes`: one run by several processes, started by torch's `torchrun`, again where one was killed.

Process 0 runs in the folder of the run. The others train, validate and decide as it does, in a temporary copy. The
final evaluation and the report are by process 0, which has test tasks scored by the others too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kshot.app.errors import FAULT, STOPPED

CODE = "KSHOT_EXIT_CODE"
"""Environment variable: the file for the exit code of process 0, since torchrun starts again after any but 0."""
EVENT = "processes"
"""Kind of the event of a run that tells how many processes it has."""
RESTARTS = 5
NEW_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Environment variable: whether torchrun keeps no addresses of processes that are gone for those that follow them."""
OF_TORCHRUN = {
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",
    NEW_STORE: "1",
}
"""Environment variables: among others what it passes on, and the seconds after which it kills what goes on."""


def launch(words: Sequence[str], processes: int) -> int:
    """Run `kshot WORDS` by several processes on this machine, and return the exit code of process 0.

    All are started again, and resume from the last checkpoint, if one is killed, up to five times. A signal to end is
    passed on; a second one kills them all.

    Raises:
        Stopped: the processes ended by such a signal.
    """
    from kshot.training.stopping import SIGNALS, Stopped

    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *start, f"--max-restarts={RESTARTS}", "-m", "kshot.app", *words]
        asked: Stopped | None = None
        with subprocess.Popen(command, env=OF_TORCHRUN | os.environ | {CODE: str(code)}) as torchrun:
            try:
                torchrun.wait()
            except Stopped as error:
                asked = error
                for each in SIGNALS:
                    signal.signal(each, lambda *_: _kill(torchrun.pid))
                torchrun.terminate()
            except BaseException:
                torchrun.kill()
                raise
        ended = int(code.read_text()) if code.exists() else None
        if ended == STOPPED or (asked and ended is None):
            raise asked or Stopped("a signal")
        if ended is not None:
            return ended
        print(f"kshot: a process of the run was lost {RESTARTS + 1} times; its last words are above", file=sys.stderr)
        return FAULT


def _kill(process: int) -> None:
    """Kill a process and all that it started."""
    import psutil

    for each in [*psutil.Process(process).children(recursive=True), psutil.Process(process)]:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def is_member() -> bool:
    """Whether this process was started by torchrun, or as it does, as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def member(folder: Path, resume: bool) -> Iterator[tuple[Path, bool]]:
    """Join the processes of a run: yields the folder that this one runs in, and whether it resumes.

    All resume if one of them is to. A run that only another machine has is copied into the folder of process 0 before.

    Raises:
        ValueError: torchrun is to start processes of several machines again, and would keep old addresses.
        LostProcess: the processes do not reach one another.
    """
    if not is_member():
        yield folder, resume
        return
    import torch
    import torch.distributed as dist

    from kshot.training.ranks import LostProcess, from_all, from_rank

    if _restarts() and int(os.environ["GROUP_WORLD_SIZE"]) > 1 and os.environ.get(NEW_STORE) != "1":
        raise ValueError(
            f"torchrun keeps the addresses of processes that are gone: set {NEW_STORE}=1 in its environment on each "
            "machine, or leave out --max-restarts"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except RuntimeError as error:
        raise LostProcess(
            "the processes of the run do not reach one another. If the name of this machine is not its address for "
            "the others, set GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME for GPUs, to its network interface, such as "
            f"eth0: {str(error).splitlines()[0]}"
        ) from error
    try:
        first = dist.get_rank() == 0
        again = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        all_resume, all_hold = zip(*from_all((again, _holds_run(folder))))
        resume = any(all_resume)
        holder = all_hold.index(True) if resume and any(all_hold) else 0
        files = from_rank(holder, _files(folder) if resume and dist.get_rank() == holder else {})
        if first:
            if holder:
                _write(folder, files)
            yield folder, resume
            return
        with tempfile.TemporaryDirectory(prefix="kshot-process-") as scratch:
            _write(Path(scratch), files)
            yield Path(scratch), resume
    finally:
        dist.destroy_process_group()


def note_exit_code(code: int | str | None) -> int | str | None:
    """Tell the process that launched this one how the command ended, and return how this process shall end.

    Torchrun shall start processes again only where one was lost.
    """
    if is_launched() and not is_silent():
        Path(os.environ[CODE]).write_text(str(code or 0))
    return 0 if is_member() and _restarts() else code


def _restarts() -> int:
    """How often torchrun starts the processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def is_silent() -> bool:
    """Whether another process says what this one would."""
    return is_member() and os.environ["RANK"] != "0"


def says_errors() -> bool:
    """Whether this process says why it ends: one of each machine does, since what is missing may be there alone."""
    return not is_member() or os.environ.get("LOCAL_RANK", "0") == "0"


def is_launched() -> bool:
    """Whether `launch` started this process, and says how the run ended."""
    return is_member() and CODE in os.environ


def _holds_run(folder: Path) -> bool:
    from kshot.files import is_empty

    return folder.exists() and not is_empty(folder)


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
