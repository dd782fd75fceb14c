"""Small training runs, and what they leave."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator
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
