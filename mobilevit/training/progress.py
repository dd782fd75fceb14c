"""What a person sees while a run trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mobilevit.training.callbacks import Meter
from mobilevit.training.module import TaskTraining

LOADER_IS_BRAKE = 0.2
"""From this share of waiting on, the loader is said to be the brake."""


class ProgressBar(Callback):
    """A bar over the whole run with loss, images a second, time left and the brake.

    Where there is no terminal, one line an epoch.
    """

    def __init__(self, meter: Meter, *, steps: int, console: Console) -> None:
        """`steps`: batches of the whole run."""
        self.meter, self.batches, self.console = meter, steps, console
        self.done = 0
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
        self.task: TaskID | None = None

    def brake(self) -> str:
        """Whether the loader or the network holds the run up."""
        share = self.meter.loader_share
        what = "loader" if share > LOADER_IS_BRAKE else "network"
        return f"brake: {what} (waiting for the loader {share:.0%})"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=self.batches, completed=self.done, figures=""
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self.done += 1
        if self.task is None or self.bar.disable:
            return
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.bar.update(
            self.task,
            completed=self.done,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            figures=f"loss {loss:.3f}  {self.meter.images_per_second:.0f} images/s  {self.brake()}",
        )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is going on."""
        if self.task is not None:
            self.bar.update(self.task, figures="validating")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line above the bar."""
        assert isinstance(pl_module, TaskTraining)
        figures = pl_module.figures("train") | pl_module.figures("val")
        self.console.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            f"  {pl_module.task.summary(figures)}"
            f"  {self.meter.images_per_second:.0f} images/s  {self.brake()}",
            highlight=False,
            soft_wrap=True,
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        self.bar.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away here too: Lightning tears callbacks down only after a good end."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, int]:
        """How far the run is."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self.done = state_dict["done"]
