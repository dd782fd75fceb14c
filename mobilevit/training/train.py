"""`mobilevit train`: from images to a run folder with a model folder in it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from mobilevit.checkpoints.create import create_model, load
from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import MultiScaleBatchSampler
from mobilevit.data.shards.samples import order_of
from mobilevit.models.config import TaskName
from mobilevit.models.fuse import fuse
from mobilevit.models.mobilevit import Backbone
from mobilevit.tasks import TASKS, check_data_options, get_task
from mobilevit.tasks.base import InferenceOptions, Task
from mobilevit.tasks.classification.distill import DistillOptions
from mobilevit.tasks.classification.transforms import AugmentOptions
from mobilevit.tasks.detection.loss_and_postprocess import DetectionLossOptions
from mobilevit.tasks.detection.transforms import BoxAugmentOptions
from mobilevit.tasks.evaluate import evaluate_batches
from mobilevit.tasks.segmentation.transforms import SegmentationAugment
from mobilevit.training.choose import choose_model
from mobilevit.training.compiling import whole_batches
from mobilevit.training.errors import TrainingError
from mobilevit.training.optim import rate_factor
from mobilevit.training.options import NetworkOptions, OptimOptions, SamplerOptions
from mobilevit.training.prepare import plan
from mobilevit.training.report import write_report
from mobilevit.training.result import TrainingResult
from mobilevit.training.resume import (
    claim,
    note_another_curve,
    same_run,
    write_config,
)
from mobilevit.utils.devices import available_cores, compute_device, split_cores, use_threads
from mobilevit.utils.distributed import Processes

GAP_SAMPLES = 1000
"""How many training images are evaluated, at most, to see the gap to validation."""
PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def train(
    *,
    data: DataOptions,
    out: str,
    task: TaskName | None = None,
    model: str | None = None,
    weights: str | None = None,
    preprocessing: dict[str, Any] | None = None,
    epochs: int = 30,
    size: int | None = None,
    batch_size: int | None = None,
    sampler: SamplerOptions = SamplerOptions(),
    augment: AugmentOptions = AugmentOptions(),
    boxes: BoxAugmentOptions = BoxAugmentOptions(),
    detection: DetectionLossOptions = DetectionLossOptions(),
    masks: SegmentationAugment = SegmentationAugment(),
    optim: OptimOptions = OptimOptions(),
    network: NetworkOptions = NetworkOptions(),
    label_smoothing: float = 0.1,
    distill: DistillOptions = DistillOptions(),
    ema: float = 0.9995,
    freeze_backbone: bool = False,
    quantize_aware: bool = False,
    patience: int | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    compile: bool = False,
    sync_batch_norm: bool = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int | None = None,
    seed: int = 0,
    checkpoint_minutes: float = 10.0,
    resume: bool = False,
) -> TrainingResult[Any]:
    """Train or fine-tune a network on your own images.

    Under torchrun in several processes at once, on one machine or more: see the docs on training.

    Args:
        data: where the images are.
        out: run folder to write; must be new, or of the run to resume.
        task: classification, detection or segmentation; by default what `model`, or else `weights`,
            are for.
        model: name of the network to train, see `mobilevit models`; by default the weights'
            variant, or XS.
        weights: start from these: a model folder, a checkpoint of the authors, timm or
            transformers, a published name, a Hub id or a URL. The head is new where the classes are
            others.
        preprocessing: fields that differ from the weights' preprocessing, such as channel_order.
        epochs: how often every image is seen.
        size: base image size in pixels, at which validation evaluates; by default that of the
            weights, or 256, in detection 320, in segmentation 512.
        batch_size: images in a batch at the base size, in each process; by default 64 in
            classification, 16 in detection, 8 in segmentation.
        sampler: how images are batched.
        augment: what training does to images (classification).
        boxes: what training does to images with boxes (detection).
        detection: the loss of detection.
        masks: what training does to images with masks (segmentation).
        optim: optimiser and learning rate.
        network: options of the network.
        label_smoothing: share of the target that is spread over all classes.
        distill: a teacher to learn from (classification).
        ema: decay of the weights' moving average, the weights that are evaluated and saved; 0: off.
        freeze_backbone: train the classifier's layers alone.
        quantize_aware: round in training and validation as int8 files do, to fine-tune `weights`
            that lose too much in them; what is kept is a float network, to be exported as usual.
        patience: stop after this many epochs without a better top-1, AP or mean IoU.
        precision: number format of the network's arithmetic.
        compile: let torch compile the network's training, once for each size of the sampler; that
            takes a minute or more for each, and a C++ compiler on a CPU.
        sync_batch_norm: several GPUs: batch norm's statistics are those of all processes' images.
        device: where to train; auto takes a GPU where there is one.
        threads: compute threads on a CPU; by default from the number of cores.
        seed: of everything that is random.
        checkpoint_minutes: how often, at most, to save in the middle of an epoch.
        resume: go on with the run in `out`.

    Raises:
        DataError: the images cannot be used as they lie; the message names which and why.
        CheckpointError: the weights do not fit.
        TrainingError: `out` holds a run already, or none to resume; or the teacher cannot teach.
        Interrupted: Ctrl-C (exit code 130) or SIGTERM (143); the state is saved.
        WorkerError: a process that reads images has died.
        ValueError: an option out of its range.
    """
    options = {key: value for key, value in locals().items() if key != "resume"}
    # Here, because Lightning takes seconds to import, and only training needs it.
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback, EarlyStopping
    from lightning.pytorch.loggers import TensorBoardLogger

    from mobilevit.training.callbacks import History, Meter, ModelFolders, moving_average
    from mobilevit.training.checkpoints import Checkpoints
    from mobilevit.training.module import Batches, TaskTraining
    from mobilevit.training.progress import ProgressBar

    processes = Processes.from_environment()
    rank, world_size = processes.rank, processes.world_size
    console = Console(quiet=not processes.is_main)
    counts = {"epochs": epochs, "size": size, "batch_size": batch_size, "threads": threads}
    for name, value in {**counts, "patience": patience}.items():
        if value is not None and value < 1:
            raise TrainingError(f"{name} must be at least 1, not {value}")
    if not 0 <= ema < 1:
        raise TrainingError(f"ema must be at least 0 and below 1, not {ema}")
    if checkpoint_minutes < 0:
        raise TrainingError(f"checkpoint_minutes must be at least 0, not {checkpoint_minutes}")
    if quantize_aware and not weights:
        raise TrainingError(
            "quantize_aware fine-tunes a network that is trained already, for int8: give it as "
            "weights, such as the model folder of another run"
        )
    if quantize_aware and compile:
        raise TrainingError("compile and quantize_aware do not go together: leave one out")
    run = Path(out)
    checkpoint = run / "checkpoints" / "last.ckpt"
    if processes.is_main:
        claim(run, checkpoint, resume=resume)
        if resume:
            same_run(run, options)

    on = compute_device(device)
    if quantize_aware and on.type == "mps":
        raise TrainingError("torch cannot round in training on mps: give device cpu")
    if precision == "fp16" and on.type == "cpu":
        raise TrainingError("fp16 needs a GPU; on a CPU use bf16 or fp32")
    if sync_batch_norm and on.type != "cuda":
        raise TrainingError("sync_batch_norm needs GPUs; on a CPU leave it out")
    on_gpu = on.type != "cpu"
    default_threads, default_workers = split_cores(available_cores(), on_gpu=on_gpu)
    threads = default_threads if threads is None else threads
    workers = default_workers if data.workers is None else data.workers
    console.print(
        f"{available_cores()} cores: {threads} compute thread{'s' * (threads != 1)}, "
        f"{workers} loader worker{'s' * (workers != 1)} (--threads, --data.workers)",
        highlight=False,
    )

    model, the_task = choose_model(task, model, weights)
    task_options = _task_options(
        the_task,
        {
            "augment": augment,
            "label_smoothing": label_smoothing,
            "distill": distill,
            "boxes": boxes,
            "detection": detection,
            "masks": masks,
        },
    )
    check_data_options(data, the_task)
    batch_size = batch_size or the_task.batch_size
    eval_batch_size = min(batch_size, the_task.max_eval_batch_size or batch_size)
    splits = the_task.open(data, seed=seed, console=console)
    torch.manual_seed(seed)
    net = create_model(
        model,
        classes=splits.train.classes,
        weights=weights,
        preprocessing=preprocessing,
        **{key: value for key, value in asdict(network).items() if value is not None},
    )
    assert not isinstance(net, Backbone)
    size = size or net.config.preprocessing.crop
    if rank:
        torch.manual_seed(seed + 1_000_003 * rank)  # dropout differs between processes
    source = f"trained on {data.name or data.root} from {net.config.source}"
    source += the_task.source_note(task_options)
    if quantize_aware:
        source += ", rounded to 8 bits in training and validation"
    net.config = replace(
        net.config,
        category_ids=splits.category_ids,
        preprocessing=net.config.preprocessing.at(size),
        source=source,
    )

    order = order_of(
        splits.train,
        len(splits.train),
        seed=seed,
        pool=data.pool,
        rank=rank,
        world_size=world_size,
    )
    schedule = plan(sampler, samples=len(order), size=size, batch_size=batch_size, seed=seed)
    lengths = [len(schedule.epoch(epoch)) for epoch in range(epochs)]
    steps = sum(math.ceil(length / optim.accumulate) for length in lengths)
    optim = replace(optim, head_lr=optim.head_lr or the_task.head_lr)
    lr = optim.lr or (the_task.lr_finetune if weights else the_task.lr_scratch)
    batches = ", ".join(f"{s} px x {schedule.batch_size(s)}" for s in schedule.sizes)
    if world_size > 1:
        batches += f" in each of {world_size} processes"
    console.print(
        f"{model}: {len(splits.train)} images, {epochs} epochs, {steps} steps of {batches}; "
        f"peak learning rate {lr:g}",
        highlight=False,
        soft_wrap=True,
    )
    if resume:
        factor = rate_factor(steps, optim)
        note_another_curve(run, checkpoint, epochs, lambda step: lr * factor(step), console)
    if processes.is_main:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_config(run, options)

    rule = net.config.preprocessing

    def evaluated(samples: Any) -> tuple[Any, EvaluationLoader]:
        dataset = the_task.evaluation_dataset(samples, rule)
        loader = EvaluationLoader(
            dataset,
            batch_size=eval_batch_size,
            workers=workers,
            rank=rank,
            world_size=world_size,
        )
        return samples, loader

    dataset = the_task.training_dataset(
        splits.train, rule, task_options, seed=seed, decode=data.decode
    )
    loader = EpochLoader(dataset, MultiScaleBatchSampler(order, schedule), workers=workers)
    val = evaluated(splits.val)
    training_task = the_task.training_task(
        task_options, splits.val, net.config, sizes=schedule.sizes, console=console
    )
    module = TaskTraining(
        net,
        training_task,
        optim=optim,
        lr=lr,
        steps=steps,
        freeze_backbone=freeze_backbone,
        quantize_aware=quantize_aware,
        compiled=whole_batches(schedule) if compile else (),
    )
    meter = Meter()
    history = History(run, meter, steps=steps)
    callbacks: list[Callback] = [meter, ModelFolders(run, the_task.metric_key)]
    if ema:
        callbacks.append(moving_average(ema))
    callbacks += [ProgressBar(meter, steps=sum(lengths), console=console), history]
    if patience is not None:
        callbacks.append(EarlyStopping(f"val_{the_task.metric_key}", mode="max", patience=patience))
    callbacks.append(Checkpoints(checkpoint, minutes=checkpoint_minutes))
    with use_threads(threads), _quiet(), closing(loader):
        trainer = Trainer(
            accelerator=on.type,
            devices=processes.local_size,
            num_nodes=processes.nodes,
            strategy="auto" if world_size == 1 else "ddp",
            sync_batchnorm=sync_batch_norm,
            precision=PRECISION[precision],
            max_epochs=epochs,
            accumulate_grad_batches=optim.accumulate,
            gradient_clip_val=optim.clip,
            callbacks=callbacks,
            logger=TensorBoardLogger(run, name="", version="tensorboard"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
        )
        trainer.fit(
            module,
            datamodule=Batches(loader, val[1]),
            ckpt_path=checkpoint if resume else None,
            weights_only=True,
        )
        root = trainer.strategy.root_device
        kept = load(run / "model")
        if quantize_aware:
            figures = kept.config.metrics
            console.print(
                f"rounded to 8 bits, as in all figures of epochs, the best weights have "
                f"{the_task.metric_key} {figures[the_task.metric_key]:.4f}; in float:",
                highlight=False,
                soft_wrap=True,
            )
        best = fuse(kept).to(root)
        part = the_task.subset(splits.train, _some(len(splits.train), seed))
        metrics, train_metrics = (
            evaluate_batches(
                the_task,
                best,
                batches,
                the_task.metric(samples, device=root, options=InferenceOptions()),
                device=root,
            )
            for samples, batches in (val, evaluated(part))
        )
        result = TrainingResult(folder=run, metrics=metrics, train_metrics=train_metrics)
        report = the_task.report(metrics, train_metrics, splits.val, best.config)
        write_report(run / "report.html", report, history, config=best.config)
        return result


def _task_options(task: Task[Any, Any], given: dict[str, Any]) -> Any:
    """The options of a task's training.

    Raises:
        TrainingError: an option of another task is set.
    """
    own = {field.name for field in fields(task.options)}
    for other in map(get_task, TASKS):
        defaults = other.options()
        for field in fields(defaults):
            value = given[field.name]
            if field.name not in own and value != getattr(defaults, field.name):
                raise TrainingError(f"{field.name} is for {other.name}, not for {task.name}")
    return task.options(**{name: given[name] for name in own})


def _some(count: int, seed: int) -> list[int]:
    """At most `GAP_SAMPLES` of so many samples, drawn at random."""
    if count <= GAP_SAMPLES:
        return list(range(count))
    chosen = np.random.default_rng((seed, 2)).choice(count, GAP_SAMPLES, replace=False)
    return [int(index) for index in chosen]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Lightning says of things that are chosen here on purpose."""
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
