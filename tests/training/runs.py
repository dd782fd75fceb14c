"""Small training runs, and what they leave."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.options import DataOptions
from mobilevit.training.errors import Interrupted
from mobilevit.training.options import OptimOptions, SamplerOptions, TrainOptions
from mobilevit.training.train import train

COLOURS = {"blue": (20, 40, 220), "green": (20, 200, 40), "red": (220, 30, 20)}
STANDARD = SamplerOptions(mode="standard")


def colour_images(root: Path, *, count: int, classes: int = 3, noise: float = 40) -> Path:
    """A folder for each colour: learned in a few steps."""
    draw = np.random.default_rng(0)
    for name, colour in list(COLOURS.items())[:classes]:
        (root / name).mkdir(parents=True)
        for number in range(count):
            values = np.clip(np.array(colour) + draw.normal(0, noise, (36, 40, 3)), 0, 255)
            Image.fromarray(values.astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


def small(
    root: Path | str, out: Path, *, resume: bool = False, workers: int = 0, **options: Any
) -> Any:
    """A run of seconds: 32 and 48 px images."""
    defaults: dict[str, Any] = {
        "data": DataOptions(root=str(root), workers=workers),
        "model": "mobilevit_xxs",
        "epochs": 2,
        "size": 32,
        "batch_size": 6,
        "sampler": SamplerOptions(min_size=32, max_size=48, multiple=16),
        "optim": OptimOptions(lr=0.01),
        "threads": 1,
    }
    return train(TrainOptions(out=str(out), **{**defaults, **options}), resume=resume)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Ctrl-C at a step; the run must end by it."""
    from mobilevit.training.checkpoints import Checkpoints

    finished = Checkpoints.on_train_batch_end

    def press(self: Any, trainer: Any, *arguments: Any, **options: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        finished(self, trainer, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", press)
        with pytest.raises(Interrupted, match="--resume"):
            yield


SERVER = """
import json, os, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
import lightning.pytorch, mobilevit.training.report.page, mobilevit.training.trainer
from mobilevit.__main__ import main

for line in sys.stdin:
    words, output = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        file = os.open(output, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os._exit(main(words))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class CommandServer:
    """Runs commands in processes of their own, forked from one that has imported everything.

    Each has a session of its own, and so a process group with its number.
    """

    def __init__(self) -> None:
        code = SERVER.format(path=[path for path in sys.path if path])
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, words: Sequence[str], output: Path) -> int:
        """Start one; its number."""
        assert self.process.stdin is not None
        print(json.dumps([words, str(output)]), file=self.process.stdin, flush=True)
        return self._answer()

    def wait(self) -> int:
        """The exit code of the one that was started."""
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()
