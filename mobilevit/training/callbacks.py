"""Callbacks of the training loop: history, model folders, progress."""

import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
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
from mobilevit.training.optim import averaged
from mobilevit.training.quantize_aware import without_fake_quantization
from mobilevit.training.run import LOADER_BOUND
from mobilevit.utils.files import replace_file
from mobilevit.utils.memory import peak_memory

STEP_ROWS = 2000
"""Steps of a run that the history holds, approximately."""
HISTORY_STATE = ("epochs", "steps", "seen", "images", "waited", "computed")
"""Fields of the history in checkpoints."""


class MovingAverage(WeightAveraging):
    """Lightning's weight averaging by an exponential moving average, which validation evaluates.

    A step that is skipped, since its gradient is not finite, moves neither averages nor counter.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=averaged(decay))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *step: Any) -> None:
        if not pl_module.consecutive_skipped:
            super().on_train_batch_end(trainer, pl_module, *step)


class History(Callback):
    """Figures of epochs and a sample of steps: in checkpoints, `metrics.csv` and `steps.csv`.

    Also the throughput of an epoch, and the share of its time spent waiting for the loader.
    """

    def __init__(self, folder: Path, *, steps: int) -> None:
        """`steps`: optimizer steps of the run."""
        self.folder, self.every = folder, max(1, steps // STEP_ROWS)
        self.epochs: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []
        self.seen: dict[tuple[int, int], tuple[int, int]] = {}
        """(height, width) -> how many batches, and images in them."""
        self._lr, self._step = 0.0, 0
        self._begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        elapsed = time.perf_counter() - self._begun
        return {name: getattr(self, name) for name in HISTORY_STATE} | {"elapsed": elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in HISTORY_STATE:
            setattr(self, name, state_dict[name])
        self._mark = time.perf_counter()
        self._begun = self._mark - state_dict["elapsed"]

    def _begin_epoch(self) -> None:
        self.images, self.waited, self.computed = 0, 0.0, 0.0
        self._begun = self._mark = time.perf_counter()

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.waited + self.computed, 1e-9)

    @property
    def loader_share(self) -> float:
        return self.waited / max(self.waited + self.computed, 1e-9)

    def throughput(self) -> str:
        """The throughput of the epoch so far, for the progress bar."""
        bottleneck = "loader" if self.loader_share > LOADER_BOUND else "network"
        return (
            f"{self.images_per_second:.0f} images/s  bottleneck: {bottleneck} (waiting for the "
            f"loader {self.loader_share:.0%})"
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._begin_epoch()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.waited += self._lap()
        # At the end of the step the learning rate is already that of the next one. It is that of
        # the backbone, or of the head if only that trains.
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.computed += self._lap()
        count, _, height, width = batch[0].shape
        everywhere = count * trainer.world_size
        self.images += everywhere
        batches, images = self.seen.get((height, width), (0, 0))
        self.seen[height, width] = (batches + 1, images + everywhere)
        if trainer.global_step == self._step or trainer.global_step % self.every:
            return
        loss = float(trainer.strategy.reduce(outputs["unweighted"], reduce_op="mean"))
        self.steps.append(
            {
                "step": trainer.global_step,
                "epoch": trainer.current_epoch,
                "height": height,
                "width": width,
                "batch": everywhere,
                "lr": self._lr,
                "loss": loss,
            }
        )
        for logger in trainer.loggers:
            scalars = {"step_loss": loss, "lr": self._lr, "size": height}
            logger.log_metrics(scalars, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.epochs.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": self._lr,
                **pl_module.task.figures("train"),
                **pl_module.task.figures("val"),
                "skipped": pl_module.skipped,
                "seconds": time.perf_counter() - self._begun,
                "images_per_second": self.images_per_second,
                "loader_share": self.loader_share,
                "peak_memory": peak_memory(),
            }
        )
        if not trainer.is_global_zero:
            return
        for name, rows in (("metrics.csv", self.epochs), ("steps.csv", self.steps)):
            with replace_file(self.folder / name) as fresh, fresh.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)


class ModelFolders(Callback):
    """Save model folders after each validation: `run/model_last`, and the best so far, `run/model`.

    Comes before the weight averaging in the list of callbacks, so that it sees the averaged weights
    that were evaluated, before they are swapped back.
    """

    def __init__(self, run: Path, metric: str, history: History) -> None:
        self.run, self.metric, self.history = run, metric, history

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        figures = {
            name.removeprefix("val_"): value
            for name, value in pl_module.task.figures("val").items()
        }
        if not math.isfinite(figures["loss"]):
            raise DivergedError(
                f"the loss is {figures['loss']} after epoch {trainer.current_epoch + 1}: training "
                "has diverged; try a smaller optim.lr, or optim.clip 1"
            )
        if not trainer.is_global_zero:
            return
        network = without_fake_quantization(pl_module.model)
        config = network.config
        network.config = replace(config, metrics={**figures, "epoch": trainer.current_epoch + 1})
        save(network, self.run / "model_last")
        # A metric may be NaN, as AP without a box to find: any number is better.
        before = [epoch[f"val_{self.metric}"] for epoch in self.history.epochs]
        known = [figure for figure in before if not math.isnan(figure)]
        if not known or figures[self.metric] > max(known):
            save(network, self.run / "model")
        network.config = config


class ProgressBar(Callback):
    """A bar over the run with loss, throughput, bottleneck and time left; or a line per epoch."""

    def __init__(self, history: History, *, batches: int, console: Console) -> None:
        """`batches`: of the entire run."""
        self.history, self.console = history, console
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

    def on_train_batch_end(self, trainer: Trainer, _: Any, outputs: Any, *__: Any) -> None:
        if not self.bar.disable:
            self.bar.update(
                self.task,
                completed=trainer.fit_loop.total_batch_idx + 1,
                description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                figures=f"loss {float(outputs['unweighted']):.3f}  {self.history.throughput()}",
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.bar.update(self.task, figures="validating")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        task = pl_module.task
        self.console.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            f"  {task.summary(task.figures('train') | task.figures('val'))}"
            f"  {self.history.throughput()}",
            highlight=False,
            soft_wrap=True,
        )
