"""Runs that are interrupted and resumed, with other parts than the usual ones."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.data.options import DataOptions
from mobilevit.tasks.classification.distill import DistillOptions
from mobilevit.training import checkpoints
from mobilevit.training.errors import Interrupted, TrainingError
from mobilevit.training.options import OptimOptions, SamplerOptions
from mobilevit.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ by colour."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for name, colour in (("blue", (20, 40, 220)), ("red", (220, 30, 20))):
        (root / name).mkdir()
        for number in range(16):
            values = np.clip(np.array(colour) + draw.normal(0, 60, (36, 40, 3)), 0, 255)
            Image.fromarray(values.astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


def small(images: Path, out: Path, **options: Any) -> Any:
    usual: dict[str, Any] = {
        "model": "mobilevit_xxs",
        "epochs": 2,
        "size": 32,
        "batch_size": 4,
        "sampler": SamplerOptions(min_size=32, max_size=64),
        "threads": 1,
    }
    data = DataOptions(root=str(images), workers=0)
    return train(**{**usual, "data": data, "out": str(out), **options})


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two classifiers of these classes, one of them with more."""
    root = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(3)
    for name, classes in (("one", ["red", "grey", "blue"]), ("two", ["blue", "red"])):
        save(create_model("mobilevit_xxs", classes=classes), root / name)
    return str(root / "one"), str(root / "two")


def parts(part: str, teachers: tuple[str, str]) -> dict[str, Any]:
    if part == "sgd":
        return {"optim": OptimOptions(name="sgd", lr=0.01, momentum=0.8)}
    return {"distill": DistillOptions(teacher=teachers[0], weight=0.7, temperature=2.0)}


@pytest.mark.parametrize("part", ["sgd", "teacher"])
def test_a_run_resumes_bit_by_bit(
    images: Path,
    teachers: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    """Ctrl-C in the middle of an epoch; then the same weights and states as without it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = parts(part, teachers)
    small(images, whole, **options)
    counted = checkpoints.Checkpoints.on_train_batch_end

    def press(self: Any, trainer: Any, *arguments: Any, **named: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        counted(self, trainer, *arguments, **named)

    monkeypatch.setattr(checkpoints.Checkpoints, "on_train_batch_end", press)
    with pytest.raises(Interrupted, match="--resume"):
        small(images, cut, **options)
    monkeypatch.undo()
    small(images, cut, **options, resume=True)
    assert (whole / "steps.csv").read_text() == (cut / "steps.csv").read_text()
    ours, theirs = (load(run / "model_last").state_dict() for run in (cut, whole))
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    ours, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
        for run in (cut, whole)
    )
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        assert all(ours["state"][number][key].equal(value) for key, value in state.items())
    if part == "sgd":
        assert all("momentum_buffer" in state for state in theirs["state"].values())
    else:
        ours, theirs = (rows(run / "metrics.csv") for run in (cut, whole))
        for name in ("train_loss", "train_label_loss", "train_teacher_loss"):
            assert [float(row[name]) for row in ours] == pytest.approx(
                [float(row[name]) for row in theirs], rel=1e-6
            )
        other = DistillOptions(teacher=teachers[1], weight=0.7, temperature=2.0)
        with pytest.raises(TrainingError, match=r"begun with other options: distill\.teacher"):
            small(images, whole, distill=other, resume=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))
