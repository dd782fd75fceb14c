"""Measurement for `mobilevit benchmark`: one process per network and runtime, which take turns."""

import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

ROUNDS = 10
"""Most turns of each network; fewer if there are fewer runs."""
TOGETHER = 10
"""Most processes that take turns: each holds a runtime and weights."""
PAUSE = 0.02
"""Seconds before a turn: threads of the previous one may still be spinning."""


class Worker:
    """A process that does one task; see `mobilevit.commands.benchmark.worker`."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        """Start it; its task and log go to `folder`, which is created."""
        self.why = ""
        """Why it failed, if it did."""
        self.rounds: dict[int, np.ndarray] = {}
        """By number: milliseconds of each run `[runs, 2]`, elapsed and of the processor, over all
        threads."""
        folder.mkdir(parents=True)
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
        self.facts = self.ask()
        """Fields of `Row` that it reports."""

    def ask(self, *words: object) -> dict[str, Any]:
        """Send a command, if there is one, and wait for the reply; empty once it has failed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.why:
            return {}
        line = ""
        with suppress(BrokenPipeError):
            if words:
                self.process.stdin.write(" ".join(map(str, words)) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        reply: dict[str, Any] = json.loads(line or "{}")
        self.why = reply.pop("failed", "") if line else _describe_exit(self.process.wait())
        if self.why:
            self.close()
        return reply

    def run(self, count: int, round: int) -> None:
        if reply := self.ask("run", count):
            self.rounds[round] = np.transpose([reply["wall_ms"], reply["cpu_ms"]])

    def finish(self) -> None:
        self.facts |= self.ask("finish")
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with suppress(BrokenPipeError):  # of a line that it did not live to read
            self.process.stdin.close()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-code).name}{hint}"


def measure(
    tasks: Sequence[dict[str, Any]], folder: Path, *, warmup: int, runs: int
) -> list[dict[str, Any]]:
    """Run networks in turns, so that a change in the machine's speed affects all of them.

    More than `TOGETHER` are run in groups, each with the first network that runs, for the ratios.
    Tasks with `timed` false run once. Returns fields of `Row` for each task.
    """
    workers: list[Worker] = []
    group: list[Worker] = []
    numbers, draw = itertools.count(), random.Random(0)
    try:
        for index, task in enumerate(tasks):
            log.info("opening %s", task["label"])
            worker = Worker(task, folder / str(index))
            workers.append(worker)
            if not task["timed"]:
                worker.finish()
                continue
            worker.ask("run", warmup)
            if not worker.why:
                group.append(worker)
            if len(group) == TOGETHER:
                group = _take_turns(group, runs, numbers, draw)
        if not all(worker.rounds for worker in group):
            group = _take_turns(group, runs, numbers, draw)
        for worker in group:
            worker.finish()
    finally:
        for worker in workers:
            worker.close()
    return [_summarize(worker, group[0] if group else worker) for worker in workers]


def _take_turns(
    group: list[Worker], runs: int, numbers: Iterator[int], draw: random.Random
) -> list[Worker]:
    """Let all run, in a new order each round; finish all but the first, which is returned."""
    rounds = min(ROUNDS, runs)
    order = list(group)
    log.info("running %d in turns, %d rounds", len(group), rounds)
    for index, number in zip(range(rounds), numbers, strict=False):
        draw.shuffle(order)
        for worker in order:
            time.sleep(PAUSE)
            worker.run(runs // rounds + (index < runs % rounds), number)
    alive = [worker for worker in group if not worker.why]
    for worker in alive[1:]:
        worker.finish()
    return alive[:1]


def _summarize(worker: Worker, first: Worker) -> dict[str, Any]:
    """Fields of `Row`; ratios are to `first`, in the rounds that both were in."""
    if worker.why or not worker.rounds:
        version = worker.facts.get("version")
        slow = f"not timed: {version} does not run it at its real speed here"
        return {**worker.facts, "why": worker.why or slow}
    times = np.concatenate([*worker.rounds.values()])
    ratios = [
        np.median(of_round, axis=0) / np.median(first.rounds[number], axis=0)
        for number, of_round in worker.rounds.items()
        if number in first.rounds
    ]
    ratio, cpu_ratio = np.median(ratios, axis=0).tolist() if ratios else (None, None)
    quartiles = np.quantile(ratios, [0.25, 0.75], axis=0)[:, 0].tolist() if ratios[1:] else None
    median_ms, cpu_ms = np.median(times, axis=0).tolist()
    return {
        **worker.facts,
        "runs": len(times),
        "median_ms": median_ms,
        "p90_ms": float(np.quantile(times[:, 0], 0.9)),
        "min_ms": float(times[:, 0].min()),
        "cpu_ms": cpu_ms,
        "ratio": ratio,
        "ratio_quartiles": quartiles,
        "cpu_ratio": cpu_ratio,
    }
