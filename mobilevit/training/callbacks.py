"""Callbacks of the training loop: throughput, history, model folders, progress."""

import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mobilevit.checkpoints.folder import save
from mobilevit.training.errors import DivergedError
from mobilevit.training.module import TrainingModule
from mobilevit.training.optim import averaged
from mobilevit.training.quantize_aware import without_fake_quantization
from mobilevit.utils.files import replace_file

STEP_ROWS = 2000
"""Steps of a run that the history holds, approximately."""
LOADER_BOUND = 0.2
"""Share of waiting time above which the loader is called the bottleneck."""


class MovingAverage(WeightAveraging):
    """Lightning's weight averaging by an exponential moving average, which validation evaluates.

    A step that is skipped, since its gradient is not finite, moves neither averages nor counter.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=averaged(decay))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if not pl_module.consecutive_skipped:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Throughput(Callback):
    """Images per second in an epoch, and the share of its time spent waiting for the loader."""

    def __init__(self) -> None:
        self.load_state_dict({"images": 0, "waited": 0.0, "computed": 0.0})

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "waited": self.waited, "computed": self.computed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images = state_dict["images"]
        self.waited, self.computed = state_dict["waited"], state_dict["computed"]
        self._mark = time.perf_counter()

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.load_state_dict({"images": 0, "waited": 0.0, "computed": 0.0})

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.waited += self._lap()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.computed += self._lap()
        self.images += len(batch[0]) * trainer.world_size

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.waited + self.computed, 1e-9)

    @property
    def loader_share(self) -> float:
        return self.waited / max(self.waited + self.computed, 1e-9)

    def __str__(self) -> str:
        bottleneck = "loader" if self.loader_share > LOADER_BOUND else "network"
        return (
            f"{self.images_per_second:.0f} images/s  bottleneck: {bottleneck} (waiting for the "
            f"loader {self.loader_share:.0%})"
        )


class History(Callback):
    """Figures of epochs and a sample of steps: in checkpoints, `metrics.csv` and `steps.csv`."""

    def __init__(self, folder: Path, throughput: Throughput, *, steps: int) -> None:
        """`steps`: optimizer steps of the run."""
        self.folder, self.throughput = folder, throughput
        self.every = max(1, steps // STEP_ROWS)
        self.epochs: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []
        self.seen: dict[tuple[int, int], tuple[int, int]] = {}
        """(height, width) -> how many batches, and images in them."""
        self._begun, self._lr, self._step = 0.0, 0.0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # At the end of the step the learning rate is already that of the next one.
        assert isinstance(pl_module, TrainingModule)
        self._lr, self._step = pl_module.learning_rate(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = batch[0]
        height, width = images.shape[2:]
        batches, num_images = self.seen.get((height, width), (0, 0))
        everywhere = len(images) * trainer.world_size
        self.seen[height, width] = (batches + 1, num_images + everywhere)
        if trainer.global_step == self._step or trainer.global_step % self.every:
            return
        loss = trainer.strategy.reduce(outputs["unweighted"], reduce_op="mean")
        row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "height": height,
            "width": width,
            "batch": everywhere,
            "lr": self._lr,
            "loss": float(loss),
        }
        self.steps.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(
                {"step_loss": row["loss"], "lr": row["lr"], "size": row["height"]},
                trainer.global_step,
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.epochs.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": self._lr,
                **pl_module.figures("train"),
                **pl_module.figures("val"),
                "skipped": pl_module.skipped,
                "seconds": time.perf_counter() - self._begun,
                "images_per_second": self.throughput.images_per_second,
                "loader_share": self.throughput.loader_share,
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
        elapsed = time.perf_counter() - self._begun
        return {
            "epochs": self.epochs,
            "steps": self.steps,
            "seen": self.seen,
            "elapsed": elapsed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self.steps = state_dict["epochs"], state_dict["steps"]
        self.seen = state_dict["seen"]
        self._begun = time.perf_counter() - state_dict["elapsed"]


class ModelFolders(Callback):
    """Save model folders after each validation: `run/model_last`, and the best so far, `run/model`.

    Comes before the weight averaging in the list of callbacks, so that it sees the averaged weights
    that were evaluated, before they are swapped back.
    """

    def __init__(self, run: Path, metric: str) -> None:
        self.run, self.metric = run, metric
        self.best: float | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
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
        network = without_fake_quantization(pl_module.model)
        config = network.config
        network.config = replace(config, metrics={**figures, "epoch": trainer.current_epoch + 1})
        figure = figures[self.metric]
        better = self.best is None or figure > self.best or math.isnan(self.best)
        if better:
            self.best = figure
        if trainer.is_global_zero:
            save(network, self.run / "model_last")
            if better:
                save(network, self.run / "model")
        network.config = config

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class ProgressBar(Callback):
    """A bar over the run with loss, throughput, bottleneck and time left; or a line per epoch."""

    def __init__(self, throughput: Throughput, *, batches: int, console: Console) -> None:
        """`batches`: of the entire run."""
        self.throughput, self.console = throughput, console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=batches, figures="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar.disable:
            return
        loss = float(outputs["unweighted"])
        self.bar.update(
            self.task,
            completed=trainer.fit_loop.total_batch_idx + 1,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            figures=f"loss {loss:.3f}  {self.throughput}",
        )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.update(self.task, figures="validating")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        figures = pl_module.figures("train") | pl_module.figures("val")
        self.console.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            f"  {pl_module.task.summary(figures)}"
            f"  {self.throughput}",
            highlight=False,
            soft_wrap=True,
        )
