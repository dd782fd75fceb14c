"""How `mobilevit benchmark` measures: processes that take turns."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

log = logging.getLogger(__name__)

ROUNDS = 10
"""Each network runs in so many turns, if it is to run that often."""
TOGETHER = 10
"""Networks that take turns, at most: each is a process with its runtime and its weights."""
PAUSE = 0.02
"""Seconds ahead of a turn, for threads of the one before that still spin."""


class WorkerError(Exception):
    """A process could not do its task; the message says why."""


class Worker:
    """A process that does one task; see `mobilevit.commands.benchmark.worker`."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        """Start it; `folder` is for its task and its log."""
        self.log = folder / "log.txt"
        file = folder / "task.json"
        file.write_text(json.dumps(task))
        threads = str(task["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mobilevit.commands.benchmark.worker", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def ask(self, *words: object) -> dict[str, Any]:
        """Send a line, if there are words, and wait for the answer.

        Raises:
            WorkerError: there is none, or it says what failed.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            if words:
                self.process.stdin.write(" ".join(map(str, words)) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def _end(self) -> str:
        code = self.process.wait()
        if code >= 0:
            return f"its process ended with code {code}"
        why = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{why}"

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with suppress(BrokenPipeError):  # of a line that it did not live to read
            self.process.stdin.close()


@contextmanager
def working(task: dict[str, Any], folder: Path) -> Iterator[Worker]:
    """A worker that is gone at the end."""
    folder.mkdir()
    worker = Worker(task, folder)
    try:
        yield worker
    finally:
        worker.close()


@dataclass
class Measured:
    """What was seen of one network in one runtime."""

    wall_ms: list[list[float]] = field(default_factory=list)
    """Of each turn, the milliseconds of each run."""
    cpu_ms: list[float] = field(default_factory=list)
    """Processor time of each run."""
    ratios: list[float] = field(default_factory=list)
    """Of each turn, its median over the first network's in the same round."""
    cpu_ratios: list[float] = field(default_factory=list)
    """The same of processor time."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the worker says beside times."""
    why: str = ""
    """Why there is nothing; empty where there is."""


def measured(
    tasks: Sequence[dict[str, Any]], folder: Path, *, warmup: int, runs: int
) -> list[Measured]:
    """Run networks by turns, so that a change of the machine's pace meets all of them.

    Where there are more than `TOGETHER`, they go by in groups, and the first that can be run is in
    each of them.

    Args:
        tasks: for `bench_worker`; those with `timed` false are run once.
        folder: for files of the work, empty.
        warmup: runs of each ahead of those that count.
        runs: of each that count.

    Returns:
        One for each task.
    """
    results = [Measured() for _ in tasks]
    rest = list(range(len(tasks)))
    draw = random.Random(0)
    with ExitStack() as lasting:
        first: tuple[Measured, Worker] | None = None
        while rest:
            with ExitStack() as stack:
                group: list[tuple[Measured, Worker]] = []
                while rest and len(group) < TOGETHER - (first is not None):
                    index = rest.pop(0)
                    timed = tasks[index]["timed"]
                    keeper = lasting if first is None and timed else stack
                    worker = _open(tasks[index], results[index], folder / str(index), keeper)
                    if worker is None:
                        continue
                    if not timed:
                        _finish(results[index], worker)
                    elif first is None:
                        first = results[index], worker
                        _ask(*first, "run", max(warmup, 1))
                    else:
                        _ask(results[index], worker, "run", max(warmup, 1))
                        group.append((results[index], worker))
                if first is not None:
                    _rounds([first, *group], runs, draw)
                for result, worker in group:
                    _finish(result, worker)
        if first is not None:
            _finish(*first)
    return results


def _open(task: dict[str, Any], result: Measured, folder: Path, stack: ExitStack) -> Worker | None:
    log.info("opening %s", task["label"])
    worker = stack.enter_context(working(task, folder))
    try:
        result.facts |= worker.ask()
    except WorkerError as error:
        result.why = str(error)
        worker.close()
        return None
    return worker


def _ask(result: Measured, worker: Worker, *words: object) -> dict[str, Any] | None:
    """The answer; None, and the reason noted, where there is none or none was to be had before."""
    if result.why:
        return None
    try:
        return worker.ask(*words)
    except WorkerError as error:
        result.why = str(error)
        return None


def _finish(result: Measured, worker: Worker) -> None:
    answer = _ask(result, worker, "finish")
    result.facts |= answer or {}


def _rounds(group: list[tuple[Measured, Worker]], runs: int, draw: random.Random) -> None:
    """Turns of all, in an order drawn anew each round; the first of the group is the measure."""
    rounds = min(ROUNDS, runs)
    counts = [runs // rounds + (index < runs % rounds) for index in range(rounds)]
    order = list(range(len(group)))
    log.info("running %d in turns, %d rounds", len(group), rounds)
    for count in counts:
        medians: dict[int, tuple[float, float]] = {}
        draw.shuffle(order)
        for index in order:
            result, worker = group[index]
            time.sleep(PAUSE)
            answer = _ask(result, worker, "run", count)
            if answer is not None:
                result.wall_ms.append(answer["wall_ms"])
                result.cpu_ms += answer["cpu_ms"]
                medians[index] = median(answer["wall_ms"]), median(answer["cpu_ms"])
        for index, (wall, cpu) in medians.items():
            if 0 in medians:
                group[index][0].ratios.append(wall / medians[0][0])
                group[index][0].cpu_ratios.append(cpu / medians[0][1])
