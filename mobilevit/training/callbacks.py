"""What happens beside the training loop: history, model folders."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from mobilevit.checkpoints.folder import save
from mobilevit.training.errors import DivergedError
from mobilevit.training.module import TaskTraining
from mobilevit.training.optim import averaged
from mobilevit.utils.files import replace_file

STEP_ROWS = 2000
"""About how many steps of a run are kept for curves."""


def moving_average(decay: float) -> WeightAveraging:
    """Lightning's weight averaging by an exponential moving average; validation evaluates it."""
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
        self.images += len(batch[0]) * trainer.world_size

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
        """(height, width) -> how many batches, and images in them."""
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
        batches, num_images = self.seen.get((height, width), (0, 0))
        everywhere = len(images) * trainer.world_size
        self.seen[height, width] = (batches + 1, num_images + everywhere)
        if trainer.global_step == self._step or trainer.global_step % self.every:
            return
        loss = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
        row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "height": height,
            "width": width,
            "batch": everywhere,
            "lr": self._lr,
            "loss": float(loss) * trainer.accumulate_grad_batches,
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
                "skipped": pl_module.skipped,
                "seconds": time.perf_counter() - self._begun,
                "images_per_second": self.meter.images_per_second,
                "loader_share": self.meter.loader_share,
            }
        )
        if not trainer.is_global_zero:
            return
        for name, rows in (("metrics.csv", self.epochs), ("steps.csv", self.steps)):
            with replace_file(self.folder / name) as fresh, fresh.open("w", newline="") as file:
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
    weights that were evaluated, before they are swapped back.
    """

    def __init__(self, run: Path, metric: str) -> None:
        """Write to `run/model`, where `metric` is the best so far, and to `run/model_last`."""
        self.run, self.metric = run, metric
        self.best: float | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was evaluated."""
        assert isinstance(pl_module, TaskTraining)
        if trainer.sanity_checking:
            return
        figures = {
            name.removeprefix("val_"): value for name, value in pl_module.figures("val").items()
        }
        if not math.isfinite(figures["loss"]):
            raise DivergedError(
                f"the loss is {figures['loss']} after epoch {trainer.current_epoch + 1}: training "
                "has diverged; try a smaller optim.lr, or optim.clip 1"
            )
        model = pl_module.model
        kept = model.config
        model.config = replace(kept, metrics={**figures, "epoch": trainer.current_epoch + 1})
        if trainer.is_global_zero:
            save(model, self.run / "model_last")
        figure = figures[self.metric]
        if self.best is None or figure > self.best or math.isnan(self.best):
            self.best = figure
            if trainer.is_global_zero:
                save(model, self.run / "model")
        model.config = kept

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self.best = state_dict["best"]
