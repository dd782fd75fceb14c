"""Measurement for `mobilevit benchmark`: one process per network and runtime, which take turns."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

log = logging.getLogger(__name__)

ROUNDS = 10
"""Most turns of each network; fewer if there are fewer runs."""
TOGETHER = 10
"""Most processes that take turns: each holds a runtime and weights."""
PAUSE = 0.02
"""Seconds before a turn: threads of the previous one may still be spinning."""


class WorkerError(Exception):
    """A process failed at its task; the message says why."""


class Worker:
    """A process that does one task; see `mobilevit.commands.benchmark.worker`."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        """Start it; its task and log go to `folder`, which is created."""
        folder.mkdir()
        file = folder / "task.json"
        file.write_text(json.dumps(task))
        threads = str(task["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with (folder / "log.txt").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mobilevit.commands.benchmark.worker", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def ask(self, *words: object) -> dict[str, Any]:
        """Send a command, if there is one, and wait for the reply; raises WorkerError."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            if words:
                self.process.stdin.write(" ".join(map(str, words)) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            if code >= 0:
                raise WorkerError(f"its process ended with code {code}")
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            raise WorkerError(f"its process was ended by {signal.Signals(-code).name}{hint}")
        reply: dict[str, Any] = json.loads(line)
        if "failed" in reply:
            raise WorkerError(reply["failed"])
        return reply

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with suppress(BrokenPipeError):  # of a line that it did not live to read
            self.process.stdin.close()


@dataclass
class Measurement:
    """The figures of one network in one runtime."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Processor time of each run, over all threads."""
    ratios: list[float] = field(default_factory=list)
    """Of each round: its median over that of the first network."""
    cpu_ratios: list[float] = field(default_factory=list)
    """The same for processor time."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Everything else that the worker reports."""
    why: str = ""
    """Why the measurement failed; empty if it did not."""


class _Contestant:
    """A task, its worker and its measurement; after a failure it only keeps the reason."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        self.task, self.folder = task, folder
        self.result = Measurement()
        self.worker: Worker | None = None

    def open(self) -> bool:
        log.info("opening %s", self.task["label"])
        self.worker = Worker(self.task, self.folder)
        self.result.facts |= self.ask()
        return self.worker is not None

    def ask(self, *words: object) -> dict[str, Any]:
        """The worker's reply; empty if it has failed."""
        if self.worker is None:
            return {}
        try:
            return self.worker.ask(*words)
        except WorkerError as error:
            self.result.why = str(error)
            self.close()
            return {}

    def finish(self) -> None:
        self.result.facts |= self.ask("finish")
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def measure(
    tasks: Sequence[dict[str, Any]], folder: Path, *, warmup: int, runs: int
) -> list[Measurement]:
    """Run networks in turns, so that a change in the machine's speed affects all of them.

    More than `TOGETHER` are run in groups, each with the first network that runs, for the ratios.
    Tasks with `timed` false run once.
    """
    contestants = [_Contestant(task, folder / str(i)) for i, task in enumerate(tasks)]
    waiting = list(contestants)
    first: _Contestant | None = None
    draw = random.Random(0)
    try:
        while waiting:
            group = [] if first is None else [first]
            while waiting and len(group) < TOGETHER:
                one = waiting.pop(0)
                if not one.open():
                    continue
                if one.task["timed"]:
                    one.ask("run", warmup)
                    first = first or one
                    group.append(one)
                else:
                    one.finish()
            _run_rounds(group, runs, draw)
            for one in group:
                if one is not first:
                    one.finish()
        if first is not None:
            first.finish()
    finally:
        for one in contestants:
            one.close()
    return [one.result for one in contestants]


def _run_rounds(group: Sequence[_Contestant], runs: int, draw: random.Random) -> None:
    """Let all take turns, in a new order each round; ratios are to the first of the group."""
    rounds = min(ROUNDS, runs)
    order = list(range(len(group)))
    log.info("running %d in turns, %d rounds", len(group), rounds)
    for number in range(rounds):
        count = runs // rounds + (number < runs % rounds)
        medians: dict[int, tuple[float, float]] = {}
        draw.shuffle(order)
        for index in order:
            time.sleep(PAUSE)
            if reply := group[index].ask("run", count):
                group[index].result.wall_ms += reply["wall_ms"]
                group[index].result.cpu_ms += reply["cpu_ms"]
                medians[index] = median(reply["wall_ms"]), median(reply["cpu_ms"])
        if 0 in medians:
            for index, (wall, cpu) in medians.items():
                group[index].result.ratios.append(wall / medians[0][0])
                group[index].result.cpu_ratios.append(cpu / medians[0][1])
