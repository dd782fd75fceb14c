"""What happens beside the training loop: history, model folders, checkpoints, interruption."""

from __future__ import annotations

import csv
import math
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from mobilevit.checkpoints.files import replacing, save
from mobilevit.training.errors import Interrupted, TrainingError
from mobilevit.training.module import TaskTraining
from mobilevit.training.optim import averaged

STEP_ROWS = 2000
"""About how many steps of a run are kept for curves."""


def moving_average(decay: float) -> WeightAveraging:
    """Lightning's weight averaging by an exponential moving average; validation judges it."""
    return WeightAveraging(multi_avg_fn=averaged(decay))


class Meter(Callback):
    """Where the time goes: images a second, and the share that was spent waiting for the loader."""

    def __init__(self) -> None:
        """Start at zero."""
        self.start()

    def start(self) -> None:
        """Measure from now on."""
        self.images, self.waited, self.computed = 0, 0.0, 0.0
        self._mark = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What the epoch has taken so far."""
        return {"images": self.images, "waited": self.waited, "computed": self.computed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on measuring, from now."""
        self.start()
        self.images = state_dict["images"]
        self.waited, self.computed = state_dict["waited"], state_dict["computed"]

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Each epoch is measured for itself."""
        self.start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The loader has delivered."""
        self.waited += self._lap()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The network has learned."""
        self.computed += self._lap()
        self.images += len(batch[0])

    @property
    def images_per_second(self) -> float:
        """Over the epoch so far."""
        return self.images / max(self.waited + self.computed, 1e-9)

    @property
    def loader_share(self) -> float:
        """Share of the time spent waiting for the loader, in [0, 1]."""
        return self.waited / max(self.waited + self.computed, 1e-9)


class History(Callback):
    """Figures of each epoch and of a sample of the steps, kept with checkpoints, written as CSV."""

    def __init__(self, folder: Path, meter: Meter, *, steps: int) -> None:
        """Write `metrics.csv` and `steps.csv` to `folder`; `steps` is the length of the run."""
        self.folder, self.meter = folder, meter
        self.every = max(1, steps // STEP_ROWS)
        self.epochs: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []
        self.seen: dict[tuple[int, int], tuple[int, int]] = {}
        """(height, width) -> how many batches, and pictures in them."""
        self._begun, self._lr, self._step = 0.0, 0.0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the rate that the step takes: at its end it is the next one's already."""
        assert isinstance(pl_module, TaskTraining)
        self._lr, self._step = pl_module.learning_rate(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; note the step."""
        images = batch[0]
        height, width = images.shape[2:]
        batches, pictures = self.seen.get((height, width), (0, 0))
        self.seen[height, width] = (batches + 1, pictures + len(images))
        if trainer.global_step == self._step or trainer.global_step % self.every:
            return
        row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "height": height,
            "width": width,
            "batch": len(images),
            "lr": self._lr,
            "loss": float(outputs["loss"]) * trainer.accumulate_grad_batches,
        }
        self.steps.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(
                {"step_loss": row["loss"], "lr": row["lr"], "size": row["height"]},
                trainer.global_step,
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch, and write both tables."""
        assert isinstance(pl_module, TaskTraining)
        self.epochs.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": self._lr,
                **pl_module.figures("train"),
                **pl_module.figures("val"),
                "seconds": time.perf_counter() - self._begun,
                "images_per_second": self.meter.images_per_second,
                "loader_share": self.meter.loader_share,
            }
        )
        for name, rows in (("metrics.csv", self.epochs), ("steps.csv", self.steps)):
            with replacing(self.folder / name) as fresh, fresh.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)

    def state_dict(self) -> dict[str, Any]:
        """The tables, and how long the epoch has taken so far."""
        elapsed = time.perf_counter() - self._begun
        return {
            "epochs": self.epochs,
            "steps": self.steps,
            "seen": self.seen,
            "elapsed": elapsed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with both tables."""
        self.epochs, self.steps = state_dict["epochs"], state_dict["steps"]
        self.seen = state_dict["seen"]
        self._begun = time.perf_counter() - state_dict["elapsed"]


class ModelFolders(Callback):
    """Write model folders after each validation: the last weights, and the task's best ones.

    Stands ahead of the weight averaging in the list of callbacks, so that it sees the averaged
    weights that were judged, before they are swapped back.
    """

    def __init__(self, run: Path) -> None:
        """Write to `run/model` and `run/model_last`."""
        self.run = run
        self.best: float | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was judged."""
        assert isinstance(pl_module, TaskTraining)
        if trainer.sanity_checking:
            return
        figures = {
            name.removeprefix("val_"): value for name, value in pl_module.figures("val").items()
        }
        if not math.isfinite(figures["loss"]):
            raise TrainingError(
                f"the loss is {figures['loss']} after epoch {trainer.current_epoch + 1}: training "
                "has diverged; try a smaller optim.lr, or optim.clip 1"
            )
        model = pl_module.model
        kept = model.config
        model.config = replace(kept, metrics={**figures, "epoch": trainer.current_epoch + 1})
        save(model, self.run / "model_last")
        figure = figures[pl_module.learner.best]
        if self.best is None or figure > self.best or math.isnan(self.best):
            self.best = figure
            save(model, self.run / "model")
        model.config = kept

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self.best = state_dict["best"]


class Checkpoints(Callback):
    """Save all that resuming needs: after each epoch, every few minutes, and on Ctrl-C or SIGTERM.

    A signal lets the batch, or the validation, come to its end; a second Ctrl-C does not wait.
    """

    def __init__(self, path: Path, *, minutes: float) -> None:
        """Save to `path`, in the middle of an epoch at most every `minutes`."""
        self.path, self.seconds = path, 60 * minutes
        self._saved = time.monotonic()
        self._asked = False
        self._previous: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise Interrupted(self.path)
        self._asked = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may listen
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no longer."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Listen no longer either: Lightning tears callbacks down only after a good end."""
        self.teardown(trainer, pl_module, "fit")

    def _save(self, trainer: Trainer) -> None:
        with replacing(self.path) as fresh:  # Lightning's own writing is not atomic across disks
            trainer.save_checkpoint(fresh)
        self._saved = time.monotonic()
        if self._asked:
            raise Interrupted(self.path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if asked to, or if it is time; the end of the epoch saves anyway."""
        last = batch_idx + 1 >= trainer.num_training_batches
        due = time.monotonic() - self._saved > self.seconds
        # Between the batches of one accumulated step the gradients would be lost.
        between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if (self._asked or due) and between and not last:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, validation done."""
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's generator, which draws dropout."""
        return {"generator": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Draw on from it."""
        torch.set_rng_state(state_dict["generator"].cpu())
