"""Compare the speed of two checkouts of this project: training steps and inference.

    python benchmarks/compare_revisions.py BEFORE AFTER [--rounds 12] [--what inference|training]

BEFORE and AFTER are folders with a checkout each. For every case a process of each checkout, on one
thread and in float32, is kept alive, and the two run in turns, in a new order each round. A
training step is that of the checkout's own Lightning module and default options: loss, metrics,
backward pass, clipping, AdamW. Inference is the fused network. The table has the medians of
processor time, and median and quartiles of the rounds' ratios: below 1, AFTER is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from harness import Ratio


class Case(NamedTuple):
    """What is timed: a variant on a batch of square images."""

    what: str
    variant: str
    size: int
    batch: int
    runs: int
    """Runs of a turn."""


CASES = [
    Case("training", "mobilevit_xxs", 192, 32, 1),
    Case("training", "mobilevit_s", 256, 8, 1),
    Case("inference", "mobilevit_xxs", 256, 1, 10),
    Case("inference", "mobilevit_xxs", 256, 16, 1),
    Case("inference", "mobilevit_s", 256, 1, 5),
    Case("inference", "mobilevit_s", 256, 16, 1),
]
WARMUP = 2
"""Rounds that do not count."""


class Worker:
    """A process that runs a case in one checkout, when asked."""

    def __init__(self, checkout: Path, case: Case, log: Any) -> None:
        """Start it."""
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(case)],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def __enter__(self) -> Worker:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def run(self, count: int) -> float:
        """Milliseconds of processor time for one run, the mean of `count`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process ended; its messages are above")
        return float(line)


def compare(case: Case, checkouts: list[Path], rounds: int) -> str:
    """A row of the table."""
    times: list[list[float]] = [[] for _ in checkouts]
    draw, order = random.Random(0), list(range(len(checkouts)))
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(path, case, sys.stderr)) for path in checkouts]
        for index in range(rounds + WARMUP):
            draw.shuffle(order)
            for place in order:
                milliseconds = workers[place].run(case.runs)
                if index >= WARMUP:
                    times[place].append(milliseconds)
    cells = [f"{statistics.median(one):.1f}" for one in times]
    name = f"{case.what}, {case.variant}, {case.size} px, batch {case.batch}"
    return f"| {name} | {' | '.join(cells)} | {Ratio.of(times[1], times[0])} |"


# What follows runs in the workers, with the package of their checkout.


def measure(steps: Any, replies: Any) -> None:
    """Answer each line of standard input, a number of steps, with their mean time."""
    for line in sys.stdin:
        begun = time.process_time()
        for _ in range(int(line)):
            steps()
        milliseconds = 1000 * (time.process_time() - begun) / int(line)
        print(milliseconds, file=replies, flush=True)


def build_network(variant: str) -> Any:
    """A classifier with new weights; earlier revisions have `models.variants`."""
    try:
        from mobilevit.models.registry import build
    except ImportError:
        from mobilevit.models.variants import build
    return build(variant)


def training_module(network: Any, optim: Any) -> Any:
    """The Lightning module of a run; earlier revisions have another one."""
    try:
        from mobilevit.tasks.classification.options import ClassificationOptions
        from mobilevit.tasks.classification.training import ClassificationTraining
        from mobilevit.training.module import TrainingModule
    except ImportError:
        from mobilevit.training.classification import ClassificationLearner

        from mobilevit.training.module import TaskTraining

        learner = ClassificationLearner(1000, label_smoothing=0.1)
        return TaskTraining(
            network, learner, optim=optim, lr=0.002, steps=10**6, freeze_backbone=False
        )
    task_options = ClassificationOptions(label_smoothing=0.1)
    try:
        val: Any = SimpleNamespace(classes=range(1000))
        task = ClassificationTraining(task_options, val, network.config, sizes=(), console=None)
    except TypeError:  # earlier revisions take the number of classes
        task = ClassificationTraining(1000, task_options)
    from mobilevit.data.options import DataOptions
    from mobilevit.data.sampler import MultiScaleSchedule
    from mobilevit.training.options import TrainOptions

    options = TrainOptions(data=DataOptions(root="none"), out="none")
    schedule = MultiScaleSchedule(samples=1, sizes=(256,))
    given = {"optim": optim, "steps": 10**6}
    try:
        return TrainingModule(network, task, options, schedule=schedule, **given)
    except TypeError:  # earlier revisions take no options
        return TrainingModule(network, task, freeze_backbone=False, **given)


class Repeat:
    """A loader of the same batch again and again."""

    def __init__(self, batch: Any) -> None:
        """Hold the batch."""
        self.batch = batch

    def __len__(self) -> int:
        """More than will be asked for."""
        return 10**6

    def __iter__(self) -> Any:
        """The batch, for each step."""
        return itertools.repeat(self.batch)


def run_training(network: Any, batch: Any, replies: Any) -> None:
    """Steps of a `fit` that waits for each command."""
    from dataclasses import replace

    from lightning.pytorch import Callback, Trainer

    from mobilevit.training.options import OptimOptions

    class Turns(Callback):
        """Waits before a step until one is asked for, and answers after the last."""

        left, begun, count = 0, 0.0, 1

        def on_train_batch_start(self, *_: Any) -> None:
            if self.left == 0:
                line = sys.stdin.readline()
                if not line:
                    os._exit(0)
                self.left = self.count = int(line)
                self.begun = time.process_time()

        def on_train_batch_end(self, *_: Any) -> None:
            self.left -= 1
            if self.left == 0:
                milliseconds = 1000 * (time.process_time() - self.begun) / self.count
                print(milliseconds, file=replies, flush=True)

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    optim = replace(OptimOptions(), lr=0.002)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Turns()],
        gradient_clip_val=optim.clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training_module(network, optim), Repeat(batch))


def work(case: Case) -> None:
    """Run a case in this process, as standard input says."""
    import torch

    from mobilevit.models.fuse import fuse

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(case.variant)
    images = torch.rand(case.batch, 3, case.size, case.size)
    if case.what == "training":
        run_training(network, (images, torch.randint(1000, (case.batch,))), replies)
    else:
        fused = fuse(network)
        with torch.inference_mode():
            measure(lambda: fused(images), replies)


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description="Compare the speed of two checkouts.")
    parser.add_argument("checkouts", nargs="*", type=Path, help="BEFORE and AFTER")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--what", choices=["inference", "training"], help="default: both")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Case(*json.loads(options.worker)))
        return
    if len(options.checkouts) != 2 or options.rounds < 2:
        parser.error("give two checkouts, and at least 2 rounds")
    print("| | before, ms | after, ms | after / before |\n|---|---|---|---|")
    for case in CASES:
        if options.what in (None, case.what):
            print(compare(case, options.checkouts, options.rounds), flush=True)


if __name__ == "__main__":
    main()
