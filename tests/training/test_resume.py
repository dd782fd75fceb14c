"""Runs that are interrupted and resumed, with other parts than the usual ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.tasks.classification.distill import DistillOptions
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.training.errors import TrainingError
from mobilevit.training.options import OptimOptions
from tests.training.runs import colour_images, interrupted_at, rows, small

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_images(tmp_path_factory.mktemp("images"), count=16, classes=2, noise=60)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two classifiers of these classes, one of them with more."""
    root = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(3)
    for name, classes in (("one", ["green", "grey", "blue"]), ("two", ["blue", "green"])):
        save(create_model("mobilevit_xxs", classes=classes), root / name)
    return str(root / "one"), str(root / "two")


def parts(part: str, teachers: tuple[str, str]) -> dict[str, Any]:
    if part == "sgd":
        return {"optim": OptimOptions(name="sgd", lr=0.01, momentum=0.8)}
    return {"task_options": taught_by(teachers[0])}


def taught_by(teacher: str) -> ClassificationOptions:
    return ClassificationOptions(
        distill=DistillOptions(teacher=teacher, weight=0.7, temperature=2.0)
    )


@pytest.mark.parametrize("part", ["sgd", "teacher"])
def test_a_run_resumes_bit_by_bit(
    images: Path,
    teachers: tuple[str, str],
    tmp_path: Path,
    part: str,
) -> None:
    """Ctrl-C in the middle of an epoch; then the same weights and states as without it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = parts(part, teachers)
    small(images, whole, **options)
    with interrupted_at(3):
        small(images, cut, **options)
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
        with pytest.raises(TrainingError, match=r"options: classification\.distill\.teacher"):
            small(images, whole, task_options=taught_by(teachers[1]), resume=True)
