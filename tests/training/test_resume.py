"""Runs that are interrupted and resumed, with other parts than the usual ones."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.tasks.classification.distill import DistillOptions
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.training.errors import TrainingError
from mobilevit.training.options import OptimOptions
from mobilevit.training.resume import record_data
from tests.data.factories import BOX_WRITERS, MASK_WRITERS
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


CHANGES = {
    "removed": (
        lambda root: (root / "blue" / "03.png").unlink(),
        r"1 removed \(train blue/03.png\)",
    ),
    "renamed": (
        lambda root: (root / "blue" / "03.png").rename(root / "blue" / "new.png"),
        r"1 removed \(train blue/03.png\); 1 added \((train|val) blue/new.png\)",
    ),
    "added": (
        lambda root: shutil.copy(root / "blue" / "03.png", root / "blue" / "more.png"),
        r"1 added \((train|val) blue/more.png\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_resumed_on_changed_data_unless_it_shall(
    images: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = shutil.copytree(images, tmp_path / "images"), tmp_path / "run"
    with interrupted_at(3):
        small(root, out)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    act, message = CHANGES[change]
    act(root)
    with pytest.raises(TrainingError, match=rf"{message}.*--data.on_change continue"):
        small(root, out, resume=True)
    assert {path: path.read_bytes() for path in before} == before
    data = DataOptions(root=str(root), workers=0, on_change="continue")
    result = small(root, out, data=data, resume=True)
    assert re.search(f"warning: the data has changed .*{message}", capsys.readouterr().out)
    assert len(rows(out / "metrics.csv")) == 2 and result.metrics.images > 0
    small(root, out, epochs=3, resume=True)  # now these are the run's


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
    small(root, out, epochs=1)
    shutil.copytree(root / "blue", root / "red")
    data = DataOptions(root=str(root), workers=0, on_change="continue")
    with pytest.raises(TrainingError, match="begun with the classes blue, green, and the data now"):
        small(root, out, data=data, epochs=2, resume=True)


@pytest.mark.parametrize(
    ("task", "format"),
    [("boxes", name) for name in BOX_WRITERS] + [("masks", name) for name in MASK_WRITERS],
)
def test_files_of_every_format_are_compared(tmp_path: Path, task: str, format: str) -> None:
    writers = BOX_WRITERS if task == "boxes" else MASK_WRITERS
    kind: Any = BoxSamples if task == "boxes" else MaskSamples
    root = writers[format](tmp_path / "data")

    def opened() -> Any:
        return open_splits(kind, DataOptions(root=str(root)))

    def record(splits: Any) -> str:
        return record_data(tmp_path, splits, resume=True, on_change="error")

    assert record(opened()) == record(opened()) == ""
    fewer = replace(opened(), train=opened().train.subset([]))
    with pytest.raises(TrainingError, match=r"[1-9] removed \(train [^/ ]"):
        record(fewer)
