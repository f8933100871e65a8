"""Processes that start at once, and clocks that jump: `python -m chaos.races 1000`."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chaos.kills import Reference, reference
from chaos.layer import Disk
from chaos.runs import (
    CASES,
    command,
    differences,
    ended,
    in_child,
    last_line,
    outcome,
    prepare,
    run_words,
    started,
)

from kshot.data.images.cache import DecodedImages
from kshot.data.images.index import list_folder

IMAGES, SIZE = 6, 10


def write_images(folder: Path) -> None:
    """Write a few random images, in a folder for each of two classes."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(IMAGES):
        file = folder / f"class {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(1, 256, (SIZE, SIZE), np.uint8)).save(file)


def hashes_of(images: DecodedImages) -> list[str]:
    """A hash of each image as a reader gets it."""
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images.take(np.arange(IMAGES))]


def opened(folder: Path, cache: Path) -> DecodedImages:
    """The images of a folder, with their cache in another."""
    os.environ["KSHOT_CACHE"] = str(cache)
    listing = list_folder(folder)
    return DecodedImages(listing.files, folder, size=SIZE, colour="grey")


def _reader(folder: Path, caches: Path, starts: range, barrier: Any, wrong: Any, expected: Sequence[str]) -> None:
    """Open a fresh cache with the other readers, start after start, and keep those of the last starts open."""
    before: list[DecodedImages] = []
    for start in starts:
        barrier.wait(60)
        images = opened(folder, caches / str(start))
        before = [*before[-2:], images]
        for each in before:  # the caches of some of them were deleted or replaced meanwhile
            try:
                good = hashes_of(each) == expected
            except Exception as error:
                print(f"start {start}: {type(error).__name__}: {error}", flush=True)
                good = False
            if not good:
                with wrong.get_lock():
                    wrong.value += 1
        for each in before:  # the next time, they read it from the cache again
            each._verified[:] = False


def _vandal(caches: Path, starts: range, barrier: Any) -> None:
    """Delete the cache of every start, or replace it by one of zeros, while the others read it."""
    draw = random.Random(0)
    for start in starts:
        barrier.wait(60)
        if start % 3 == 0:
            continue
        time.sleep(draw.random() * 0.01)
        for folder in (caches / str(start)).glob("images-*"):
            aside = folder.with_name(f"aside-{start}")
            try:
                folder.rename(aside)
                if start % 3 == 1:
                    folder.mkdir()
                    for file in aside.iterdir():
                        (folder / file.name).write_bytes(bytes(file.stat().st_size))
                shutil.rmtree(aside)
            except OSError:
                pass  # a reader was faster
        if start > 4:
            shutil.rmtree(caches / str(start - 4), ignore_errors=True)


def check_caches(starts: int, readers: int = 8, *, vandal: bool = True) -> int:
    """How many readers of a fresh cache got a wrong image, or an error."""
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        write_images(scratch / "images")
        expected = hashes_of(opened(scratch / "images", scratch / "first"))
        context = multiprocessing.get_context("fork")
        barrier, wrong = context.Barrier(readers + vandal), context.Value("i", 0)
        arguments = scratch / "images", scratch / "caches", range(starts), barrier, wrong, expected
        workers = [context.Process(target=_reader, args=arguments) for _ in range(readers)]
        if vandal:
            workers.append(context.Process(target=_vandal, args=(scratch / "caches", range(starts), barrier)))
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return int(wrong.value) + sum(worker.exitcode != 0 for worker in workers)
    finally:
        shutil.rmtree(scratch)


def check_starts(rounds: int, whole: Reference) -> list[str]:
    """Start 2 to 8 runs at once, without --out and into one; the faults."""
    faults = []
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        for number, one_folder in itertools.product(range(rounds), (True, False)):
            folder, count = scratch / f"{number}-{one_folder}", 2 + number % 7
            found = check_start(whole, folder, count, one_folder=one_folder)
            faults += [f"{count} at once, {fault}" for fault in found]
    finally:
        shutil.rmtree(scratch)
    return faults


def check_start(whole: Reference, folder: Path, count: int, *, one_folder: bool) -> list[str]:
    """Start some runs at once, without --out or into one folder; the faults."""
    folder.mkdir()
    begin = time.time() + 0.2

    def run() -> None:
        os.chdir(folder)
        time.sleep(max(0.0, begin - time.time()))
        command("run", whole.file, *(["--out", "runs/sine"] if one_folder else []))

    logs = [folder / f"log-{process}" for process in range(count)]
    codes = [ended(pid) for pid in [started(run, log) for log in logs]]
    runs = sorted(path for path in (folder / "runs").iterdir() if path.is_dir())
    faults = [f"{run.name} differs" for run in runs if differences(outcome(run), whole.outcome)]
    if len(runs) != (1 if one_folder else count) or codes.count(1) != len(runs):
        faults.append(f"{len(runs)} folders, exit codes {codes}")
    for code, log in zip(codes, logs):
        if code not in (1, 2) or (code == 2 and "runs/sine" not in last_line(log)):
            faults.append(f"{code}: {last_line(log)}")
    return faults


def check_clocks(rounds: int, whole: Reference) -> list[str]:
    """Kill and resume runs while the clock jumps and the times of files change; the faults."""
    import kshot

    draw, faults, real = random.Random(0), [], time.time
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        first = kshot.load(whole.folder)
        for number in range(rounds):
            out, log = scratch / str(number) / "run", scratch / "log"
            out.parent.mkdir()
            for event in (draw.randrange(80, 160), draw.randrange(20, 100), None):

                def run(event: int | None = event, out: Path = out) -> None:
                    time.time = lambda: real() + draw.uniform(-1e8, 1e8)
                    command(*run_words(whole.file, out, resume=out.exists()), disk=Disk(out, event))

                code = in_child(run, log)
                for path in out.rglob("*"):
                    moment = draw.uniform(0, 2e9)
                    os.utime(path, (moment, moment))
            if code != 1:
                faults.append(f"{number}: {code}: {last_line(log)}")
                continue
            loaded = kshot.load(out)
            faults += [f"{number}: {found}" for found in differences(outcome(out), whole.outcome)]
            if (loaded.round, loaded.weights) != (first.round, first.weights):
                faults.append(f"{number}: round {loaded.round} is opened and not {first.round}")
    finally:
        shutil.rmtree(scratch)
    return faults


if __name__ == "__main__":
    number = int(sys.argv[1])
    wrong = check_caches(number)
    print(f"8 processes on one fresh cache x {number} starts: {wrong} wrong readers", flush=True)
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        whole = reference(Path(folder), CASES["one run"])
        faults = [*check_starts(max(2, number // 20), whole), *check_clocks(max(2, number // 20), whole)]
    print("\n".join(faults))
    print(f"{max(2, number // 20)} x 2 starts at once, as many runs under jumping clocks: {len(faults)} faults")
    sys.exit(bool(faults or wrong))
