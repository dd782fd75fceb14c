"""Training by Lightning, with the settings of this package."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision

from mobilevit.data.loader import EpochLoader
from mobilevit.data.sampler import MultiScaleBatchSampler
from mobilevit.training.callbacks import History, ModelFolders, MovingAverage, ProgressBar
from mobilevit.training.checkpoints import AtomicCheckpoints, Checkpoints
from mobilevit.training.module import Batches, TrainingModule
from mobilevit.training.precision import FastKernels
from mobilevit.training.run import Run, Setup, evaluation_loader

PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class CPUBFloat16(MixedPrecision):
    """Lightning's bf16 on a CPU, with `FastKernels`."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        with super().forward_context(), FastKernels():
            yield


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


@quiet_lightning()
def fit(run: Run, setup: Setup) -> History:
    """Train, from the checkpoint if the run is resumed."""
    options = run.options
    history = History(run.folder, steps=setup.steps)
    progress = ProgressBar(history, batches=setup.batches, console=run.console)
    metric, patience = run.task.metric_key, options.patience
    # In this order: see `ModelFolders`; checkpoints come last, when all others have their state.
    callbacks = [
        history,
        ModelFolders(run.folder, metric, history),
        *([MovingAverage(options.ema)] if options.ema else []),
        progress,
        *([EarlyStopping(f"val_{metric}", mode="max", patience=patience)] if patience else []),
        Checkpoints(run.folder, minutes=options.checkpoint_minutes),
    ]
    # Compiled networks have kernels of their own.
    fast_bf16 = run.precision == "bf16" and run.device.type == "cpu" and not options.compile
    plugins = [CPUBFloat16()] if fast_bf16 else []
    trainer = Trainer(
        accelerator=run.device.type,
        devices=run.processes.local_size,
        num_nodes=run.processes.nodes,
        strategy="auto" if run.processes.world_size == 1 else "ddp",
        sync_batchnorm=options.sync_batch_norm,
        precision=None if plugins else PRECISION[run.precision],
        max_epochs=options.epochs,
        accumulate_grad_batches=options.optim.accumulate,
        gradient_clip_val=options.optim.clip,
        callbacks=callbacks,
        logger=TensorBoardLogger(run.folder, name="", version="tensorboard"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpoints(), *plugins],
        reload_dataloaders_every_n_epochs=1,
    )
    with closing(_training_loader(run, setup)) as loader, progress.bar:
        trainer.fit(
            _training_module(run, setup),
            datamodule=Batches(loader, evaluation_loader(run, setup, setup.splits.val)),
            ckpt_path=run.checkpoint,
            weights_only=True,
        )
    return history


def _training_loader(run: Run, setup: Setup) -> EpochLoader:
    dataset = run.task.training_dataset(
        setup.splits.train,
        setup.network.config.preprocessing,
        run.options.task_options,
        seed=run.options.seed,
        decode=run.options.data.decode,
        cache=setup.cache,
    )
    sampler = MultiScaleBatchSampler(setup.order, setup.schedule)
    return EpochLoader(dataset, sampler, workers=run.workers)


def _training_module(run: Run, setup: Setup) -> TrainingModule:
    task = run.task.training_task(
        run.options.task_options,
        setup.splits.val,
        setup.network.config,
        sizes=setup.schedule.sizes,
        console=run.console,
    )
    return TrainingModule(
        setup.network,
        task,
        run.options,
        optim=setup.optim,
        steps=setup.steps,
        schedule=setup.schedule,
    )
