"""Lightning's trainer with the settings of this package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mobilevit.training.options import TrainOptions
from mobilevit.utils.distributed import Processes

PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def create_trainer(
    folder: Path,
    options: TrainOptions,
    processes: Processes,
    *,
    device: torch.device,
    callbacks: Sequence[Callback],
) -> Trainer:
    """The trainer of a run, without Lightning's own checkpoints, progress bar and samplers."""
    return Trainer(
        accelerator=device.type,
        devices=processes.local_size,
        num_nodes=processes.nodes,
        strategy="auto" if processes.world_size == 1 else "ddp",
        sync_batchnorm=options.sync_batch_norm,
        precision=PRECISION[options.precision],
        max_epochs=options.epochs,
        accumulate_grad_batches=options.optim.accumulate,
        gradient_clip_val=options.optim.clip,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's messages about choices that are made on purpose here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",
            ".*eval mode at the start of training.*",  # a frozen backbone
            ".*isinstance.treespec, LeafSpec.*",  # Lightning's use of a torch function
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            logger.setLevel(level)
