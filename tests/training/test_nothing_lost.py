"""What goes wrong in long runs: nothing is lost by it, and the reason is reported."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilevit.checkpoints.create import load
from mobilevit.data.images import ImageError
from mobilevit.data.loader import WorkerError
from mobilevit.data.options import DataOptions
from mobilevit.training.errors import TrainingError
from mobilevit.training.module import TrainingModule
from mobilevit.training.options import OptimOptions, SamplerOptions
from mobilevit.utils.files import HOST
from tests.training import runs
from tests.training.runs import colour_images, rows

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {
    "model": "mobilevit_xxs",
    "epochs": 2,
    "size": 32,
    "batch_size": 4,
    "sampler": SamplerOptions(min_size=32, max_size=48, multiple=16),
    "optim": OptimOptions(lr=0.005, accumulate=2),
    "threads": 1,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_images(tmp_path_factory.mktemp("images"), count=15, classes=2, noise=60)


def small(images: Path, out: Path, **options: Any) -> Any:
    return runs.small(images, out, **{**OPTIONS, **options})


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
import lightning.pytorch, mobilevit.training.report.page
import mobilevit.training.trainer
from mobilevit.data.options import DataOptions
from mobilevit.training.options import OptimOptions, SamplerOptions, TrainOptions
from mobilevit.training.train import train

options = {options!r}

# Saved at every step, so that runs are killed in the middle of saving too. They have a cache, which
# is too small for all images; the one that is not killed has none.
def child(out, cache=None):
    pid = os.fork()
    if pid:
        return pid
    # Not this one's own, which a worker that outlives its parent for a while would hold.
    output = os.open({out!r} + "/output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resume = Path(out, "checkpoints", "last.ckpt").exists()
    data = DataOptions(root={images!r}, workers=1, cache=cache, cache_gb=5e-5)
    train(TrainOptions(data=data, out=out, checkpoint_minutes=0, **options), resume=resume)
    os._exit(0)

begun = time.monotonic()
assert os.waitpid(child({out!r} + "/whole"), 0)[1] == 0
whole = time.monotonic() - begun
draw = random.Random(0)
kills, ended = 0, False
while not ended:
    pid = child({out!r} + "/killed", {out!r} + "/cache")
    due = time.monotonic() + draw.uniform(0.02, 0.6) * whole if kills < 20 else float("inf")
    while not ended and time.monotonic() < due:
        ended = os.waitpid(pid, os.WNOHANG) != (0, 0)
        time.sleep(0.01)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    elif kills < 20:  # it came to its end too soon: from the start again
        import shutil
        shutil.rmtree({out!r} + "/killed")
        ended = False
print(kills)
"""


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at twenty random instants; weights, averages and figures are bit for bit the same.

    Multi-scale, accumulated steps, a worker, a moving average, a cache. The runs are forked from a
    process that has imported everything, or most instants would lie in imports.
    """
    images = colour_images(tmp_path / "images", count=10, classes=2)  # few: each kill costs a start
    code = KILLER.format(
        path=[path for path in sys.path if path],
        options=OPTIONS,
        images=str(images),
        out=str(tmp_path),
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr + (tmp_path / "output").read_text()
    assert int(done.stdout.split()[-1]) == 20
    cached = [file.stat().st_size for file in (tmp_path / "cache").iterdir()]
    assert 40_000 < sum(cached) <= 55_000  # a killed run's worker may write one more
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "steps.csv").read_text() == (killed / "steps.csv").read_text()
    for ours, theirs in zip(rows(killed / "metrics.csv"), rows(whole / "metrics.csv"), strict=True):
        same = [
            name
            for name in ours
            if name not in ("seconds", "images_per_second", "loader_share", "peak_memory")
        ]
        assert [ours[name] for name in same] == [theirs[name] for name in same]
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (killed, whole)
    ]
    ours, theirs = ({k: v for k, v in s.items() if k not in ("callbacks", "loops")} for s in states)
    assert_same(ours, theirs, "checkpoint")
    for name in ("model", "model_last"):
        a, b = load(killed / name), load(whole / name)
        assert_same(dict(a.state_dict()), dict(b.state_dict()), name)
        assert a.config.metrics == b.config.metrics


def assert_same(a: Any, b: Any, where: str) -> None:
    """Equal to the last bit, whatever they hold."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert a.equal(b), where
    else:
        assert a == b, where


def test_a_step_without_a_finite_gradient_changes_nothing(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mobilevit.tasks.classification.training import ClassificationTraining
    from mobilevit.training.callbacks import MovingAverage
    from mobilevit.training.module import TrainingModule

    taught = ClassificationTraining.training_loss
    ended = TrainingModule.configure_gradient_clipping
    averaged = MovingAverage.on_train_batch_end
    calls, states, averages = [0], [], []

    def poisoned(self: Any, model: Any, batch: Any) -> Any:
        calls[0] += 1
        inputs, targets = batch
        bad = calls[0] == 5
        if bad:
            states.append({k: v.clone() for k, v in model.state_dict().items()})
        return taught(self, model, (inputs * float("inf") if bad else inputs, targets))

    def clipping(self: Any, *arguments: Any, **options: Any) -> None:
        ended(self, *arguments, **options)
        if self.skipped and len(states) == 1:
            assert all(p.grad is None for p in self.model.parameters())
            states.append({k: v.clone() for k, v in self.model.state_dict().items()})

    def averaging(self: Any, *arguments: Any) -> None:
        averaged(self, *arguments)
        averages.append({k: v.clone() for k, v in self._average_model.state_dict().items()})

    monkeypatch.setattr(ClassificationTraining, "training_loss", poisoned)
    monkeypatch.setattr(MovingAverage, "on_train_batch_end", averaging)
    monkeypatch.setattr(TrainingModule, "configure_gradient_clipping", clipping)
    small(images, tmp_path / "run", epochs=1, optim=OptimOptions(lr=0.005))
    assert_same(states[1], states[0], "state")
    moved = {key: value for key, value in averages[4].items() if ".task." not in key}
    assert_same(moved, {key: averages[3][key] for key in moved}, "averages")  # and their counter
    counts = [int(average["n_averaged"]) for average in averages]
    assert counts[3:6] == [4, 4, 5]
    assert "step 4 is skipped" in caplog.text
    (epoch,) = rows(tmp_path / "run" / "metrics.csv")
    assert epoch["skipped"] == "1" and np.isfinite(float(epoch["train_loss"]))
    for name in ("model", "model_last"):
        weights = load(tmp_path / "run" / name).state_dict()
        assert all(value.isfinite().all() for value in weights.values())


def test_many_such_steps_in_a_row_stop_a_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"20 consecutive steps|has diverged"):
        small(images, tmp_path / "run", epochs=30, optim=OptimOptions(lr=1e30, clip=None))


@pytest.fixture(scope="module")
def first_epoch(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    small(images, out, epochs=1)
    return out


@pytest.fixture
def begun(images: Path, first_epoch: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Images of its own, and a run of one epoch on them."""
    return shutil.copytree(images, tmp_path / "copy"), shutil.copytree(
        first_epoch, tmp_path / "run"
    )


@pytest.mark.parametrize("room", [200_000, 8_000_000])
def test_a_full_disk_leaves_the_last_state(begun: tuple[Path, Path], room: int) -> None:
    """Room for neither, or for the model folder's five megabytes but not for the state's."""
    copy, out = begun
    before = (out / "checkpoints" / "last.ckpt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match=r"File too large|No space left"):
            small(copy, out, epochs=2, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (out / "checkpoints" / "last.ckpt").read_bytes() == before
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["last.ckpt"]
    small(copy, out, epochs=2, resume=True)


def test_images_that_are_gone_are_named(begun: tuple[Path, Path]) -> None:
    copy, out = begun
    before = (out / "checkpoints" / "last.ckpt").read_bytes()
    from mobilevit.training.callbacks import History

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", lambda *_: shutil.rmtree(copy))
        with pytest.raises(ImageError, match=r"copy/(blue|green)/\d\d\.png"):
            small(copy, out, epochs=2, resume=True)
    assert (out / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.fixture(scope="module")
def undisturbed(
    images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[dict[str, Any], Path]]:
    """Options of a run by the batches that it accumulates, and the run, with a loader worker."""

    @cache
    def trained(accumulate: int) -> tuple[dict[str, Any], Path]:
        optim = OptimOptions(lr=0.005, accumulate=accumulate)
        data = DataOptions(root=str(images), val_fraction=0.6, workers=1)
        options: dict[str, Any] = {"data": data, "epochs": 3, "optim": optim}
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        small(images, out, **options)
        return options, out

    return trained


@pytest.mark.parametrize(
    ("when", "index", "accumulate"),
    [
        ("training_step", 0, 1),
        ("training_step", 0, 2),  # within a step of the optimizer
        ("validation_step", 0, 2),
        ("training_step", -1, 1),  # unnoticed until the next epoch begins
    ],
)
def test_a_dying_worker_is_reported_and_nothing_lost(
    images: Path,
    undisturbed: Callable[[int], tuple[dict[str, Any], Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    index: int,
    accumulate: int,
) -> None:
    """Whenever it dies, the state is saved, and the resumed run ends as if it had not."""
    options, whole = undisturbed(accumulate)
    step = getattr(TrainingModule, when)
    kills = []

    def kill(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        at = index % self.trainer.num_training_batches if index < 0 else index
        if self.trainer.current_epoch == 1 and batch_idx == at:
            kills.append(self.trainer.global_step)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)
                worker.join()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, when, kill)
    message = r"has died.*memory \(fewer --data.workers.*--resume continues from .*last.ckpt"
    with pytest.raises(WorkerError, match=message):
        small(images, out := tmp_path / "cut", **options)
    monkeypatch.undo()
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 <= saved - kills[0] <= 3  # it goes on to the end of a step or the validation
    assert not list((out / "checkpoints").glob(".*"))
    small(images, out, **options, resume=True)
    assert (out / "steps.csv").read_text() == (whole / "steps.csv").read_text()
    ours, theirs = (load(run / "model_last") for run in (out, whole))
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()), "weights")


def test_nothing_is_written_to_the_systems_temporary_folder(
    begun: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does what a killed run has left stay."""
    copy, out = begun
    for name in (".config.yaml", "checkpoints/.last.ckpt"):
        (out / f"{name}.{HOST}.999999999-0a1b2c3d").write_bytes(b"half")
    monkeypatch.setattr(tempfile, "tempdir", str(out / "none"))
    small(copy, out, epochs=2, resume=True)
    assert [path.name for path in out.rglob(".*")] in ([], [".lock"])
