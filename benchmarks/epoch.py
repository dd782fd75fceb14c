"""Time whole epochs of `mobilevit train` against timm's training script at the same options.

    python benchmarks/epoch.py FOLDER [--train 1000] [--val 500] [--rounds N] [--workers N]

FOLDER has train/ and val/ with one folder per class, as Imagenette has; a sample of each is copied
to a temporary folder. Each round starts a new process for each of `RUNS`, which trains XXS from
scratch: standard sampler, 160 px, batch 64, random crops and flips, label smoothing, AdamW with
warm-up and a cosine, clipped gradients, a moving average of the weights, float32 ("auto" is ours
with `--precision auto`), one compute thread. Times are processor time of the process and its loader
workers.

timm's wheel lacks its train.py, so `run_timm` follows that script step by step with timm's own
parts: `create_loader`, `create_optimizer_v2`, `CosineLRScheduler`, `ModelEmaV3`, `CheckpointSaver`.
As the script does, it evaluates both the weights and their moving average after an epoch (ours
evaluates the average), and reads the loss of every step.

    epoch: from the first batch to the saved checkpoint, with validation and the start of workers
    before: imports, opening the data (ours also checks every file), creating the network
    after: what follows the last epoch (ours evaluates the best weights on both splits, and writes
        a report; timm's script does nothing)
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SIZE, BATCH, RATE, DECAY, AVERAGE, SMOOTHING = 160, 64, 0.002, 0.01, 0.9995, 0.1
PARTS = ("before", "epoch", "after")


def processor_time() -> float:
    """Seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Marks:
    """Processor and wall time at the borders of the parts."""

    def __init__(self) -> None:
        self.times = [(0.0, 0.0)]
        self._start = time.perf_counter() - time.process_time()

    def add(self) -> None:
        self.times.append((processor_time(), time.perf_counter() - self._start))

    def parts(self) -> dict[str, list[float]]:
        pairs = zip(self.times, self.times[1:], strict=False)
        return {
            name: [end - begin for begin, end in zip(first, last, strict=True)]
            for name, (first, last) in zip(PARTS, pairs, strict=True)
        }


def run_ours(
    folder: Path, out: Path, *, epochs: int, workers: int, marks: Marks, precision: Any = "fp32"
) -> None:
    """`mobilevit train`, whose `fit` is timed from outside."""
    import mobilevit
    from mobilevit.data.options import DataOptions
    from mobilevit.training import trainer
    from mobilevit.training.options import OptimOptions, SamplerOptions

    fit: Callable[..., Any] = trainer.fit

    def timed(*arguments: Any) -> Any:
        marks.add()
        history = fit(*arguments)
        marks.add()
        return history

    trainer.fit = timed
    mobilevit.train(
        data=DataOptions(root=str(folder), workers=workers),
        out=str(out),
        model="mobilevit_xxs",
        epochs=epochs,
        size=SIZE,
        batch_size=BATCH,
        sampler=SamplerOptions(mode="standard"),
        optim=OptimOptions(lr=RATE, weight_decay=DECAY, clip=1.0),
        ema=AVERAGE,
        threads=1,
        precision=precision,
        device="cpu",
    )


def run_timm(folder: Path, out: Path, *, epochs: int, workers: int, marks: Marks) -> None:
    """The steps of timm's train.py, with its options and its parts."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import (
        AverageMeter,
        CheckpointSaver,
        ModelEmaV3,
        dispatch_clip_grad,
        update_summary,
    )

    torch.set_num_threads(1)
    classes = len(list((folder / "train").iterdir()))
    device = torch.device("cpu")
    model = timm.create_model("mobilevit_xxs", num_classes=classes)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=DECAY)
    model_ema = ModelEmaV3(model, decay=AVERAGE)
    common = {
        "input_size": (3, SIZE, SIZE),
        "batch_size": BATCH,
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "device": device,
    }
    train_set, val_set = (
        create_dataset("", root=str(folder), split=split, is_training=split == "train")
        for split in ("train", "val")
    )
    # The script's default colour jitter, which ours has not, is left out.
    train = create_loader(train_set, is_training=True, color_jitter=0.0, **common)
    val = create_loader(val_set, crop_pct=SIZE / 180, **common)  # ours resizes to 180 px first
    train_loss = LabelSmoothingCrossEntropy(SMOOTHING)
    updates = epochs * len(train)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=updates,
        lr_min=0.1 * RATE,
        warmup_t=max(1, round(0.05 * updates)),
        warmup_lr_init=0.1 * RATE,
        t_in_epochs=False,
    )
    out.mkdir()
    saver = CheckpointSaver(
        model, optimizer, model_ema=model_ema, checkpoint_dir=str(out), recovery_dir=str(out)
    )

    marks.add()
    for epoch in range(epochs):
        model.train()
        losses = AverageMeter()
        for index, (images, labels) in enumerate(train):
            loss = train_loss(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            dispatch_clip_grad(model.parameters(), value=1.0)
            optimizer.step()
            step = epoch * len(train) + index + 1
            model_ema.update(model, step=step)
            losses.update(loss.item(), len(images))
            schedule.step_update(num_updates=step, metric=losses.avg)
        validate(model, val)
        metrics = validate(model_ema.module, val)
        rates = [group["lr"] for group in optimizer.param_groups]
        summary = {"loss": losses.avg}
        update_summary(
            epoch, summary, metrics, str(out / "summary.csv"), lr=sum(rates) / len(rates)
        )
        saver.save_checkpoint(epoch, metric=metrics["top1"])
    print(metrics)
    del train, val  # ends the workers, whose time counts
    marks.add()


def validate(network: Any, batches: Any) -> dict[str, float]:
    """The script's validation: cross-entropy and top-1."""
    import torch
    from timm.utils import AverageMeter, accuracy

    network.eval()
    losses, top1 = AverageMeter(), AverageMeter()
    with torch.inference_mode():
        for images, labels in batches:
            output = network(images)
            first, _ = accuracy(output, labels, topk=(1, 5))
            losses.update(torch.nn.functional.cross_entropy(output, labels).item(), len(images))
            top1.update(first.item(), len(images))
    return {"loss": losses.avg, "top1": top1.avg}


def sample(folder: Path, to: Path, split: str, count: int) -> None:
    """Copy `count` images of a split, as many of each class."""
    classes = sorted(path for path in (folder / split).iterdir() if path.is_dir())
    for one in classes:
        images = sorted(one.iterdir())
        target = to / split / one.name
        target.mkdir(parents=True)
        for image in random.Random(0).sample(images, min(len(images), count // len(classes))):
            shutil.copy(image, target)


def measure_one(name: str, folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Run one of `RUNS` in a process of its own: seconds of processor and wall by part."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, str(folder), "--run", name, "--out", f"{out}/run"]
        command += ["--epochs", str(options.epochs), "--workers", str(options.workers)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr}")
    parts: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return parts


RUNS: dict[str, Callable[..., None]] = {
    "ours": run_ours,
    "auto": partial(run_ours, precision="auto"),
    "timm": run_timm,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time epochs against timm's training script.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--val", type=int, default=500, help="validation images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        marks = Marks()
        RUNS[options.run](
            options.folder,
            options.out,
            epochs=options.epochs,
            workers=options.workers,
            marks=marks,
        )
        marks.add()
        print(json.dumps(marks.parts()))
        return
    measured: dict[str, list[dict[str, list[float]]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", options.train), ("val", options.val)):
            sample(options.folder, Path(folder), split, count)
        for index in range(options.rounds):
            for name in sorted(RUNS, reverse=index % 2 == 1):
                measured[name].append(measure_one(name, Path(folder), options))
                print(name, measured[name][-1], flush=True)
    print(
        f"\n{'seconds, processor (wall)':28}"
        + "".join(f"{name:>20}" for name in RUNS)
        + "   timm / ours   timm / auto"
    )
    for part in PARTS:
        columns = {
            name: [[one[part][clock] for one in found] for clock in (0, 1)]
            for name, found in measured.items()
        }
        cells = [
            f"{statistics.median(c):.1f} ({statistics.median(w):.1f})" for c, w in columns.values()
        ]
        ratios = [
            statistics.median(
                timm / max(ours, 1e-9)
                for timm, ours in zip(columns["timm"][0], columns[name][0], strict=True)
            )
            for name in ("ours", "auto")
        ]
        print(
            f"{part:28}"
            + "".join(f"{cell:>20}" for cell in cells)
            + "".join(f"{ratio:14.2f}" for ratio in ratios)
        )


if __name__ == "__main__":
    main()
