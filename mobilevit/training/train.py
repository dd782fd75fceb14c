"""`mobilevit train`: from images to a run folder with a model folder in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from rich.console import Console

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.read import read
from mobilevit.data.splits import Splits
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import HEADS, Network, split_name, task_of
from mobilevit.tasks import check_data_options, get_task
from mobilevit.tasks.base import Task
from mobilevit.tasks.evaluate import evaluate_batches
from mobilevit.training.compiling import check_compiler
from mobilevit.training.errors import TrainingError
from mobilevit.training.optim import rate_factor
from mobilevit.training.options import TrainOptions
from mobilevit.training.precision import BF16_INSTRUCTIONS, choose_precision, has_bf16
from mobilevit.training.probe import check_batch_norms
from mobilevit.training.report.page import write_report
from mobilevit.training.resume import (
    CONFIG,
    check_same_options,
    checkpoints_of,
    claim_folder,
    locked,
    record_data,
    whole_checkpoint,
    write_config,
)
from mobilevit.training.run import Run, Setup, TrainingResult, evaluation_loader
from mobilevit.utils.devices import (
    available_cores,
    compute_device,
    split_cores,
    training_precision,
    use_threads,
)
from mobilevit.utils.distributed import Processes
from mobilevit.utils.memory import keep_freed_memory
from mobilevit.utils.random import restored_globals

if TYPE_CHECKING:
    from mobilevit.training.callbacks import History

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
    options = TrainOptions(**fields) if options is None else replace(options, **fields)
    is_main = Processes.from_environment().is_main
    lock = locked(Path(options.out)) if is_main else nullcontext()
    with lock, restored_globals(compute_device(options.device)):
        from mobilevit.training.trainer import fit  # Lightning takes seconds to import

        run = validate(options, resume=resume)
        setup = set_up(run)
        keep = options.keep_memory and run.device.type == "cpu"
        with use_threads(run.threads), keep_freed_memory(keep):
            with training_precision(run.device):
                history = fit(run, setup)
            return finish(run, setup, history)


def validate(options: TrainOptions, *, resume: bool) -> Run:
    """Check options against each other, the run folder and the machine, before any work."""
    processes, folder = Processes.from_environment(), Path(options.out)
    console = Console(quiet=not processes.is_main)
    if processes.is_main:
        claim_folder(folder, *checkpoints_of(folder), resume=resume)
    device = compute_device(options.device)
    if options.quantize_aware and device.type == "mps":
        raise TrainingError("torch has no quantization-aware training on mps: use device cpu")
    if options.precision == "fp16" and device.type == "cpu":
        raise TrainingError("fp16 needs a GPU; on a CPU use bf16 or fp32")
    if options.compile and device.type == "cpu":
        check_compiler()
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
    checkpoint, step, problems = whole_checkpoint(folder) if resume else (None, 0, [])
    threads, workers = split_cores(available_cores(), on_gpu=device.type != "cpu")
    run = Run(
        options=options,
        model=model,
        task=task,
        folder=folder,
        checkpoint=checkpoint,
        step=step,
        device=device,
        precision=choose_precision(device)[0] if options.precision == "auto" else options.precision,
        threads=threads if options.threads is None else options.threads,
        workers=workers if options.data.workers is None else options.data.workers,
        processes=processes,
        console=console,
    )
    _report_precision(run)
    if problems:
        run.print(f"warning: {problems[0]}: going back to {checkpoint} (step {step})")
    return run


def _report_precision(run: Run) -> None:
    if run.options.precision == "auto":
        run.print(f"precision {run.precision}: {choose_precision(run.device)[1]}")
    elif run.precision == "bf16" and run.device.type == "cpu" and not has_bf16():
        run.print(f"warning: this CPU has no {BF16_INSTRUCTIONS}: bf16 is slower than fp32 here")


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
    if not options.sync_batch_norm:
        check_batch_norms(
            network, schedule, epochs=options.epochs, freeze_backbone=options.freeze_backbone
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
    if run.checkpoint is not None:
        _warn_of_other_length(run, lr, rate_factor(steps, optim))
    if processes.is_main:
        checkpoints_of(run.folder)[0].parent.mkdir(parents=True, exist_ok=True)
        resume, on_change = run.checkpoint is not None, options.data.on_change
        if changes := record_data(run.folder, splits, resume=resume, on_change=on_change):
            run.print(f"warning: the data has changed since the run began: {changes}")
            _check_position(run, lengths)
        write_config(run.folder, options.as_recipe())
    return Setup(
        splits=splits,
        network=network,
        order=order,
        schedule=schedule,
        batches=sum(lengths),
        steps=steps,
        optim=optim,
        cache=options.data.open_cache(),
    )


def _check_position(run: Run, lengths: Sequence[int]) -> None:
    """Raise TrainingError if a run on changed data is beyond the end of its epoch."""
    assert run.checkpoint is not None
    state = torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=True)
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    taken = progress["current"]["ready"]
    batches = lengths[min(state["epoch"], len(lengths) - 1)]
    if not progress["is_last_batch"] and taken >= batches:
        raise TrainingError(
            f"{run.folder} was interrupted after {taken} batches of an epoch, which has {batches} "
            "with the data as it is now; begin a new run from its weights"
        )


def _warn_of_other_length(run: Run, lr: float, factor: Callable[[int], float]) -> None:
    """Warn if a resumed run has another length, which changes its learning rates."""
    planned = yaml.safe_load((run.folder / CONFIG).read_text())["epochs"]
    if planned != run.options.epochs:
        run.print(
            f"warning: the run was planned for {planned} epochs and now has {run.options.epochs}, "
            f"so its learning rate follows another curve: it goes on at "
            f"{lr * factor(run.step):.3g} (step {run.step})"
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
    source += run.task.source_note(run.options.task_options)
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


def finish(run: Run, setup: Setup, history: History) -> TrainingResult[Any]:
    """Evaluate the best weights, and write the report."""
    task, splits, device = run.task, setup.splits, run.device
    best = load(run.folder / "model")
    if run.options.quantize_aware:
        figure = best.config.metrics[task.metric_key]
        run.print(
            f"with the rounding of int8, as in all figures of epochs, the best weights have "
            f"{task.metric_name} {figure:.4f}; in float:"
        )
    network = fuse(best).to(device)
    sample, generator = splits.train, np.random.default_rng((run.options.seed, 2))
    if len(sample) > GAP_SAMPLES:
        sample = sample.subset(generator.choice(len(sample), GAP_SAMPLES, replace=False).tolist())
    metrics, train_metrics = (
        evaluate_batches(
            task,
            network,
            evaluation_loader(run, setup, samples),
            task.metric(samples, device=device),
        )
        for samples in (splits.val, sample)
    )
    result = TrainingResult(folder=run.folder, metrics=metrics, train_metrics=train_metrics)
    report = task.report(metrics, train_metrics, splits.val, network.config)
    write_report(run.folder / "report.html", report, history, config=network.config)
    return result
