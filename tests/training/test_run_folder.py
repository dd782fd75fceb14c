"""A run folder: one training at a time, and checkpoints that survive damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mobilevit
from mobilevit.checkpoints.create import load
from mobilevit.checkpoints.folder import digest
from mobilevit.data.options import DataOptions
from mobilevit.training.errors import TrainingError
from mobilevit.training.resume import checkpoints_of, claim_folder, locked, whole_checkpoint
from mobilevit.utils.files import HOST
from tests.training.runs import STANDARD, colour_images, interrupted_at, rows, small

HOLD = """
import sys, time
from pathlib import Path
from mobilevit.training.resume import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_images(tmp_path_factory.mktemp("images"), count=4)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    small(images, out, epochs=2, sampler=STANDARD)
    return out


def test_a_second_training_is_refused_until_the_first_is_gone(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        for resume in (False, True):
            with pytest.raises(TrainingError, match=r"another process is training in .*run"):
                small(images, out, resume=resume)
    finally:
        holder.kill()  # as a scheduler or the kernel does, without a chance to clean up
        holder.wait()
        holder.stdout.close()
    with locked(out):
        pass
    with interrupted_at(1):
        small(images, out, sampler=STANDARD)


def test_a_second_sweep_is_refused(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    data = DataOptions(root=str(images))
    with locked(tmp_path / "sweep"), pytest.raises(TrainingError, match="another process"):
        mobilevit.sweep(space="optim.lr=0.1,0.2", data=data, out=str(tmp_path / "sweep"))


def test_what_a_killed_start_has_left_does_not_keep_the_folder(tmp_path: Path) -> None:
    (tmp_path / f".config.yaml.{HOST}.999999999-0a1b2c3d").touch()
    claim_folder(tmp_path, tmp_path / "last.ckpt", resume=False)
    assert not list(tmp_path.iterdir())


def test_an_error_gives_the_folder_back(images: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run to resume"):
        small(images, tmp_path / "run", resume=True)
    with locked(tmp_path / "run"):
        pass


def weights(run: Path) -> str:
    return digest(load(run / "model_last").state_dict())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [("empty", "last.ckpt is damaged (0 bytes; "), ("gone", "there is no ")],
)
def test_a_checkpoint_that_cannot_be_read_is_named(
    finished: Path, tmp_path: Path, damage: str, problem: str
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    last, previous = checkpoints_of(out)
    last.unlink()
    if damage == "empty":
        last.touch()
    path, step, problems = whole_checkpoint(out)
    assert path == previous and step > 0
    assert len(problems) == 1 and problem in problems[0]


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last epoch is trained again, to the same end."""
    out = shutil.copytree(finished, tmp_path / "run")
    last, previous = checkpoints_of(out)
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    small(images, out, epochs=2, sampler=STANDARD, resume=True)
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "last.ckpt is damaged" in printed and f"going back to {previous}" in printed
    assert weights(out) == weights(finished)
    assert len(rows(out / "metrics.csv")) == 2
    assert last.stat().st_size > 0.9 * len(content)


def test_without_a_checkpoint_that_can_be_read_the_run_is_refused(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    for path in checkpoints_of(out):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        TrainingError,
        match=r"last.ckpt is damaged \(1,000 bytes; .*previous.ckpt is damaged .*model_last",
    ):
        small(images, out, epochs=2, sampler=STANDARD, resume=True)
