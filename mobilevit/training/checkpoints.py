"""States to resume from: when they are saved, and what is in them beside Lightning's own."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mobilevit.training.errors import Interrupted, TrainingError
from mobilevit.training.module import TaskTraining
from mobilevit.utils.distributed import gather_items
from mobilevit.utils.files import replace_file


class Checkpoints(Callback):
    """Save all that resuming needs: after each epoch, every few minutes, and on Ctrl-C or SIGTERM.

    A signal lets the batch, or the validation, come to its end; a second Ctrl-C does not wait. Of
    several processes it is enough that one gets the signal.
    """

    def __init__(self, path: Path, *, minutes: float) -> None:
        """Save to `path`, in the middle of an epoch at most every `minutes`."""
        self.path, self.seconds = path, 60 * minutes
        self._saved = time.monotonic()
        self._asked = 0
        """The signal that came; 0: none."""
        self._previous: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise Interrupted(self.path, number)
        self._asked = number

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may listen
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen alone: by now Lightning does too, and would end the process without a word."""
        for number in self._previous:
            signal.signal(number, self._ask)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no longer."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Listen no longer either: Lightning tears callbacks down only after a good end."""
        self.teardown(trainer, pl_module, "fit")

    def _agree(self, trainer: Trainer, due: bool) -> tuple[int, bool]:
        """The signal that any process has got, and whether it is time, as the first one's clock is.

        All processes must save at the same step, and none knows of the others' signals.
        """
        if trainer.world_size == 1:
            return self._asked, due
        said = torch.tensor([self._asked, due and trainer.is_global_zero])
        said = trainer.strategy.reduce(said.to(trainer.strategy.root_device), reduce_op="max")
        return int(said[0]), bool(said[1])

    def _save(self, trainer: Trainer, asked: int) -> None:
        if trainer.is_global_zero:
            with replace_file(self.path) as fresh:  # Lightning's own writing is not atomic
                trainer.save_checkpoint(fresh)
        else:
            trainer.save_checkpoint(self.path)  # takes part; the first process writes
        self._saved = time.monotonic()
        if asked:
            raise Interrupted(self.path, asked)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if asked to, or if it is time; the end of the epoch saves anyway."""
        last = batch_idx + 1 >= trainer.num_training_batches
        # Between the batches of one accumulated step the gradients would be lost.
        between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if last or not between:
            return
        asked, due = self._agree(trainer, time.monotonic() - self._saved > self.seconds)
        if asked or due:
            self._save(trainer, asked)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, validation done."""
        asked, _ = self._agree(trainer, False)
        self._save(trainer, asked)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what each process has for itself: its generators, its share of the figures."""
        assert isinstance(pl_module, TaskTraining)
        mine = {"generator": torch.get_rng_state(), "task": pl_module.task.state_dict()}
        if pl_module.device.type == "cuda":
            mine["cuda_generator"] = torch.cuda.get_rng_state(pl_module.device)
        checkpoint["processes"] = gather_items([mine])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from it.

        Raises:
            TrainingError: the run was of another number of processes.
        """
        assert isinstance(pl_module, TaskTraining)
        states = checkpoint["processes"]
        if len(states) != trainer.world_size:
            raise TrainingError(
                f"the run was begun with {len(states)} processes and is resumed with "
                f"{trainer.world_size}: its position counts batches of its own number. Resume it "
                "with that, or begin a run from its weights"
            )
        mine = states[trainer.global_rank]
        torch.set_rng_state(mine["generator"].cpu())
        if "cuda_generator" in mine and pl_module.device.type == "cuda":
            torch.cuda.set_rng_state(mine["cuda_generator"].cpu(), pl_module.device)
        pl_module.task.load_state_dict(mine["task"])
