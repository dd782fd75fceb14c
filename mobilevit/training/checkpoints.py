"""Checkpoints of a run: when they are saved, what of them differs by process."""

import os
import signal
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mobilevit.data.loader import WorkerError
from mobilevit.training.errors import Interrupted, TrainingError
from mobilevit.training.resume import checkpoints_of
from mobilevit.utils.distributed import gather_items
from mobilevit.utils.files import replace_file

_WORKER_DIED = 1000
"""Why training stops: more than any signal's number."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Replaces a run's checkpoint in one step, and keeps the one before.

    Lightning's own writing is not atomic, and uses the system's temporary folder.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        content = BytesIO()
        torch.save(checkpoint, content)
        with replace_file(path, size=content.tell()) as fresh:
            fresh.write_bytes(content.getbuffer())
            if path.exists():
                os.replace(path, checkpoints_of(path.parents[1])[1])


class Checkpoints(Callback):
    """Save a checkpoint after each epoch, every few minutes, and on Ctrl-C or SIGTERM.

    A signal lets the batch, or the validation, finish; a second Ctrl-C does not wait. So does the
    death of a loader worker. With several processes it is enough that one of them is concerned.
    """

    def __init__(self, run: Path, *, minutes: float) -> None:
        self.path, _ = checkpoints_of(run)
        self.seconds = 60 * minutes
        self._saved = time.monotonic()
        self._signal = 0
        """The signal that was received; 0: none."""
        self._previous: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal:
            raise Interrupted(self.path, number)
        self._signal = number

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may install handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        # Again: Lightning has installed its own handlers, which end the process silently.
        for number in self._previous:
            signal.signal(number, self._on_signal)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        # Lightning does not call `teardown` after an exception.
        self.teardown(trainer, pl_module, "fit")

    def _agree(self, trainer: Trainer, due: bool) -> tuple[int, bool]:
        """Why any process must stop (a signal, a dead worker or 0), and if the main one would save.

        All processes must save at the same step, and none knows of the others' reasons.
        """
        reason = _WORKER_DIED if _failure(trainer) else self._signal
        if trainer.world_size == 1:
            return reason, due
        votes = torch.tensor([reason, due and trainer.is_global_zero])
        votes = trainer.strategy.reduce(votes.to(trainer.strategy.root_device), reduce_op="max")
        return int(votes[0]), bool(votes[1])

    def _save(self, trainer: Trainer, reason: int) -> None:
        trainer.save_checkpoint(self.path)  # all take part; the first process writes
        self._saved = time.monotonic()
        if reason == _WORKER_DIED:
            failure = _failure(trainer) or "a worker of another process has died"
            raise WorkerError(f"{failure}. --resume continues from {self.path}")
        if reason:
            raise Interrupted(self.path, reason)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The end of the epoch saves anyway.
        last = batch_idx + 1 >= trainer.num_training_batches
        # Within an accumulated step the gradients would be lost.
        between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if last or not between:
            return
        reason, due = self._agree(trainer, time.monotonic() - self._saved > self.seconds)
        if reason or due:
            self._save(trainer, reason)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        reason, _ = self._agree(trainer, False)
        self._save(trainer, reason)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: Any) -> None:
        # What differs by process: its generators, its share of the figures.
        mine = {"generator": torch.get_rng_state(), "task": pl_module.task.state_dict()}
        if pl_module.device.type == "cuda":
            mine["cuda_generator"] = torch.cuda.get_rng_state(pl_module.device)
        checkpoint["processes"] = gather_items([mine])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: Any) -> None:
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


def _failure(trainer: Any) -> WorkerError | None:
    failure: WorkerError | None = trainer.datamodule.failure
    return failure
