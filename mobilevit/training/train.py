"""`mobilevit train`: from images to a run folder with a model folder in it."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.read import read
from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.data.sampler import MultiScaleBatchSampler
from mobilevit.data.splits import Splits
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import HEADS, Network, split_name, task_of
from mobilevit.tasks import check_data_options, get_task
from mobilevit.tasks.base import Task
from mobilevit.tasks.evaluate import evaluate_batches
from mobilevit.training.compiling import full_batch_shapes
from mobilevit.training.errors import TrainingError
from mobilevit.training.optim import rate_factor
from mobilevit.training.options import TrainOptions
from mobilevit.training.report import write_report
from mobilevit.training.run import Parts, Run, Setup, TrainingResult
from mobilevit.utils.devices import available_cores, compute_device, split_cores, use_threads
from mobilevit.utils.distributed import Processes

GAP_SAMPLES = 1000
"""At most so many training images are evaluated, to see the gap to validation."""
DEFAULT_TASK = "classification"
"""The task if neither options nor weights determine it."""


def train(
    options: TrainOptions | None = None, *, resume: bool = False, **fields: Any
) -> TrainingResult[Any]:
    """Train or fine-tune a network on your own images.

    Under torchrun in several processes at once, on one machine or more: see the docs on training.

    Args:
        options: all options; or in Python
        resume: go on with the run in `out`.
        fields: of `TrainOptions`, such as `data` and `out`, that are set or differ.

    Raises:
        DataError: the images cannot be used; the message names which and why.
        CheckpointError: the weights do not fit.
        TrainingError: `out` holds a run already, or none to resume; or training diverged.
        TeacherError: the teacher cannot teach this network.
        Interrupted: Ctrl-C (exit code 130) or SIGTERM (143); the state is saved.
        WorkerError: a process that reads images has died.
        ValueError: an option does not fit the others, the machine or the task.
    """
    from mobilevit.training.trainer import quiet_lightning

    options = TrainOptions(**fields) if options is None else replace(options, **fields)
    run = validate(options, resume=resume)
    setup = set_up(run)
    with use_threads(run.threads), quiet_lightning():
        parts = build(run, setup)
        with closing(parts.loader):
            fit(run, parts)
            return finish(run, setup, parts)


def validate(options: TrainOptions, *, resume: bool) -> Run:
    """Check options against each other, the run folder and the machine, before any work."""
    from mobilevit.training.resume import check_same_options, claim_folder

    processes, folder = Processes.from_environment(), Path(options.out)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if processes.is_main:
        claim_folder(folder, checkpoint, resume=resume)
    device = compute_device(options.device)
    if options.quantize_aware and device.type == "mps":
        raise TrainingError("torch has no quantization-aware training on mps: use device cpu")
    if options.precision == "fp16" and device.type == "cpu":
        raise TrainingError("fp16 needs a GPU; on a CPU use bf16 or fp32")
    if options.sync_batch_norm and device.type != "cuda":
        raise TrainingError("sync_batch_norm needs GPUs; on a CPU leave it out")
    model, task = choose_model(options)
    check_data_options(options.data, task)
    options = replace(
        options,
        task_options=task.options() if options.task_options is None else options.task_options,
        batch_size=options.batch_size or task.batch_size,
    )
    if processes.is_main and resume:
        check_same_options(folder, options.as_recipe())
    threads, workers = split_cores(available_cores(), on_gpu=device.type != "cpu")
    return Run(
        options=options,
        model=model,
        task=task,
        task_options=options.task_options,
        resume=resume,
        folder=folder,
        checkpoint=checkpoint,
        device=device,
        threads=threads if options.threads is None else options.threads,
        workers=workers if options.data.workers is None else options.data.workers,
        processes=processes,
        console=Console(quiet=not processes.is_main),
    )


def choose_model(options: TrainOptions) -> tuple[str, Task]:
    """The name of the network to train, and its task; ValueError if they do not fit."""
    model = options.model
    weights_model = read(options.weights).config.model if options.weights and not model else None
    known = model or weights_model
    name = options.task or options.task_of_options or (task_of(known) if known else DEFAULT_TASK)
    task = get_task(name)
    if model is None:
        if weights_model is None:
            model = task.default_model
        elif task_of(weights_model) == name:
            model = weights_model
        else:  # the weights' backbone, with a new head
            model = split_name(task.default_model)[0].prefix + split_name(weights_model)[1]
    if task_of(model) == name:
        return model, task
    if options.task is None:
        raise TrainingError(f"{name} options are not for {model}, which is for {task_of(model)}")
    prefixes = " or ".join(repr(head.prefix) for head in HEADS.values() if head.task == name)
    raise TrainingError(
        f"{model} is for {task_of(model)}; for {name} its name begins with {prefixes}"
    )


def set_up(run: Run) -> Setup:
    """Find the data, create the network, plan the schedule; write `config.yaml`."""
    from mobilevit.training.resume import warn_of_other_length, write_config

    options, task, processes = run.options, run.task, run.processes
    threads, workers = run.threads, run.workers
    run.print(
        f"{available_cores()} cores: {threads} compute thread{'s' * (threads != 1)}, "
        f"{workers} loader worker{'s' * (workers != 1)} (--threads, --data.workers)"
    )
    splits = task.open(options.data, seed=options.seed)
    run.print(f"data: {splits.note}")
    network = _create_network(run, splits)
    size, batch_size = network.config.preprocessing.crop, options.batch_size
    assert batch_size is not None
    order = splits.train.order(
        seed=options.seed,
        pool=options.data.pool,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    schedule = options.sampler.schedule(
        samples=len(order), size=size, batch_size=batch_size, seed=options.seed
    )
    lengths = [len(schedule.epoch(epoch)) for epoch in range(options.epochs)]
    steps = sum(math.ceil(length / options.optim.accumulate) for length in lengths)
    lr = options.optim.lr or (task.lr_finetune if options.weights else task.lr_scratch)
    optim = replace(options.optim, lr=lr, head_lr=options.optim.head_lr or task.head_lr)
    shapes = ", ".join(f"{s} px x {schedule.batch_size(s)}" for s in schedule.sizes)
    if processes.world_size > 1:
        shapes += f" in each of {processes.world_size} processes"
    run.print(
        f"{run.model}: {len(splits.train)} images, {options.epochs} epochs, {steps} steps of "
        f"{shapes}; peak learning rate {lr:g}"
    )
    if run.resume:
        factor = rate_factor(steps, optim)
        warn_of_other_length(
            run.folder,
            run.checkpoint,
            options.epochs,
            rate=lambda step: lr * factor(step),
            console=run.console,
        )
    if processes.is_main:
        run.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_config(run.folder, options.as_recipe())
    return Setup(
        splits=splits,
        network=network,
        order=order,
        schedule=schedule,
        batches=sum(lengths),
        steps=steps,
        optim=optim,
    )


def _create_network(run: Run, splits: Splits[Any]) -> Network:
    options = run.options
    torch.manual_seed(options.seed)
    network: Any = create_model(
        run.model,
        classes=splits.train.classes,
        weights=options.weights,
        preprocessing=options.preprocessing,
        **{key: value for key, value in asdict(options.network).items() if value is not None},
    )
    if run.processes.rank:
        torch.manual_seed(options.seed + 1_000_003 * run.processes.rank)  # dropout differs
    source = f"trained on {options.data.name or options.data.root} from {network.config.source}"
    source += run.task.source_note(run.task_options)
    if options.quantize_aware:
        source += ", quantization-aware"
    network.config = replace(
        network.config,
        category_ids=getattr(splits.train, "category_ids", None),  # only boxes have any
        preprocessing=network.config.preprocessing.at(
            options.size or network.config.preprocessing.crop
        ),
        source=source,
    )
    return network


def build(run: Run, setup: Setup) -> Parts:
    """Create loaders, module and trainer."""
    from mobilevit.training.callbacks import History, Throughput
    from mobilevit.training.module import TrainingModule
    from mobilevit.training.trainer import create_trainer

    options, network, splits = run.options, setup.network, setup.splits
    dataset = run.task.training_dataset(
        splits.train,
        network.config.preprocessing,
        run.task_options,
        seed=options.seed,
        decode=options.data.decode,
    )
    module = TrainingModule(
        network,
        run.task.training_task(
            run.task_options,
            splits.val,
            network.config,
            sizes=setup.schedule.sizes,
            console=run.console,
        ),
        optim=setup.optim,
        steps=setup.steps,
        freeze_backbone=options.freeze_backbone,
        quantize_aware=options.quantize_aware,
        compiled=full_batch_shapes(setup.schedule) if options.compile else (),
    )
    throughput = Throughput()
    history = History(run.folder, throughput, steps=setup.steps)
    return Parts(
        loader=EpochLoader(
            dataset, MultiScaleBatchSampler(setup.order, setup.schedule), workers=run.workers
        ),
        val=_evaluation_loader(run, setup, splits.val),
        module=module,
        history=history,
        trainer=create_trainer(
            run.folder,
            options,
            run.processes,
            device=run.device,
            callbacks=_callbacks(run, setup, throughput=throughput, history=history),
        ),
    )


def _evaluation_loader(run: Run, setup: Setup, samples: Any) -> EvaluationLoader:
    batch_size = run.options.batch_size
    assert batch_size is not None
    return EvaluationLoader(
        run.task.evaluation_dataset(samples, setup.network.config.preprocessing),
        batch_size=min(batch_size, run.task.max_eval_batch_size or batch_size),
        workers=run.workers,
        rank=run.processes.rank,
        world_size=run.processes.world_size,
    )


def _callbacks(run: Run, setup: Setup, *, throughput: Any, history: Any) -> list[Any]:
    from lightning.pytorch.callbacks import EarlyStopping

    from mobilevit.training.callbacks import ModelFolders, ProgressBar, moving_average
    from mobilevit.training.resume import Checkpoints

    options, metric = run.options, run.task.metric_key
    # In this order: see `ModelFolders`; checkpoints come last, when all others have their state.
    return [
        throughput,
        ModelFolders(run.folder, metric),
        *([moving_average(options.ema)] if options.ema else []),
        ProgressBar(throughput, batches=setup.batches, console=run.console),
        history,
        *(
            [EarlyStopping(f"val_{metric}", mode="max", patience=options.patience)]
            if options.patience
            else []
        ),
        Checkpoints(run.checkpoint, minutes=options.checkpoint_minutes),
    ]


def fit(run: Run, parts: Parts) -> None:
    """Train, from the checkpoint if the run is resumed."""
    from mobilevit.training.module import Batches

    parts.trainer.fit(
        parts.module,
        datamodule=Batches(parts.loader, parts.val),
        ckpt_path=run.checkpoint if run.resume else None,
        weights_only=True,
    )


def finish(run: Run, setup: Setup, parts: Parts) -> TrainingResult[Any]:
    """Evaluate the best weights, and write the report."""
    task, splits, device = run.task, setup.splits, parts.trainer.strategy.root_device
    best = load(run.folder / "model")
    if run.options.quantize_aware:
        figure = best.config.metrics[task.metric_key]
        run.print(
            f"with the rounding of int8, as in all figures of epochs, the best weights have "
            f"{task.metric_name} {figure:.4f}; in float:"
        )
    network = fuse(best).to(device)
    sample = splits.train.subset(_draw(len(splits.train), seed=run.options.seed))
    metrics, train_metrics = (
        evaluate_batches(
            task,
            network,
            batches,
            task.metric(samples, device=device),
            device=device,
        )
        for samples, batches in (
            (splits.val, parts.val),
            (sample, _evaluation_loader(run, setup, sample)),
        )
    )
    result = TrainingResult(folder=run.folder, metrics=metrics, train_metrics=train_metrics)
    report = task.report(metrics, train_metrics, splits.val, network.config)
    write_report(run.folder / "report.html", report, parts.history, config=network.config)
    return result


def _draw(count: int, *, seed: int) -> list[int]:
    if count <= GAP_SAMPLES:
        return list(range(count))
    indices = np.random.default_rng((seed, 2)).choice(count, GAP_SAMPLES, replace=False)
    return [int(index) for index in indices]
