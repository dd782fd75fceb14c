"""Runs that are interrupted and resumed, with other parts than the usual ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.data.options import DataOptions
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


def taught_by(teacher: str) -> ClassificationOptions:
    return ClassificationOptions(
        distill=DistillOptions(teacher=teacher, weight=0.7, temperature=2.0)
    )


def test_sgd_with_a_teacher_resumes_bit_by_bit(
    images: Path, teachers: tuple[str, str], tmp_path: Path
) -> None:
    """Ctrl-C in the middle of an epoch; then the same weights and states as without it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options: dict[str, Any] = {
        "optim": OptimOptions(name="sgd", lr=0.01, momentum=0.8),
        "task_options": taught_by(teachers[0]),
    }
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
    assert all("momentum_buffer" in state for state in theirs["state"].values())
    ours, theirs = (rows(run / "metrics.csv") for run in (cut, whole))
    for name in ("train_loss", "train_label_loss", "train_teacher_loss"):
        assert [float(row[name]) for row in ours] == pytest.approx(
            [float(row[name]) for row in theirs], rel=1e-6
        )
    options["task_options"] = taught_by(teachers[1])
    with pytest.raises(TrainingError, match=r"options: classification\.distill\.teacher"):
        small(images, whole, **options, resume=True)


def test_a_run_is_not_resumed_on_changed_data_unless_it_shall(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = shutil.copytree(images, tmp_path / "images"), tmp_path / "run"
    with interrupted_at(3):
        small(root, out)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    (root / "blue" / "03.png").rename(root / "blue" / "new.png")
    message = r"1 removed \(train blue/03.png\); 1 added \((train|val) blue/new.png\)"
    with pytest.raises(TrainingError, match=rf"{message}.*--data.on_change continue"):
        small(root, out, resume=True)
    assert {path: path.read_bytes() for path in before} == before
    data = DataOptions(root=str(root), workers=0, on_change="continue")
    result = small(root, out, data=data, resume=True)
    assert re.search(f"warning: the data has changed .*{message}", capsys.readouterr().out)
    assert len(rows(out / "metrics.csv")) == 2 and result.metrics.images > 0
    small(root, out, resume=True)  # now these are the run's


def test_an_epoch_may_not_end_before_its_position(images: Path, tmp_path: Path) -> None:
    root, out = shutil.copytree(images, tmp_path / "images"), tmp_path / "run"
    with interrupted_at(4):
        small(root, out)
    for number in range(8, 16):
        (root / "blue" / f"{number:02}.png").unlink()
        (root / "green" / f"{number:02}.png").unlink()
    data = DataOptions(root=str(root), workers=0, on_change="continue")
    with pytest.raises(TrainingError, match="after 4 batches of an epoch, which has 4 with"):
        small(root, out, data=data, epochs=3, resume=True)


def test_other_classes_are_never_resumed(images: Path, tmp_path: Path) -> None:
    root, out = shutil.copytree(images, tmp_path / "images"), tmp_path / "run"
    with interrupted_at(1):
        small(root, out)
    shutil.copytree(root / "blue", root / "red")
    data = DataOptions(root=str(root), workers=0, on_change="continue")
    with pytest.raises(TrainingError, match="begun with the classes blue, green, and the data now"):
        small(root, out, data=data, resume=True)
