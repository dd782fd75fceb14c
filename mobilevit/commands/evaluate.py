"""`mobilevit evaluate`: how good a model is on labelled images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mobilevit.checkpoints.create import require_classes
from mobilevit.commands.evaluate_boxes import DetectionEvaluation
from mobilevit.commands.evaluate_classes import Evaluation
from mobilevit.commands.evaluate_masks import SegmentationEvaluation
from mobilevit.data.options import DataOptions
from mobilevit.exports.runtime_model import FileNetwork, device_of, for_inference
from mobilevit.models.config import TaskName
from mobilevit.models.registry import Network
from mobilevit.tasks import check_data_options, get_task
from mobilevit.tasks.base import InferenceOptions, Postprocessing
from mobilevit.tasks.evaluate import evaluate_model
from mobilevit.utils.devices import available_cores, split_cores, use_threads
from mobilevit.utils.distributed import Processes, process_group
from mobilevit.utils.files import write_file

AnyEvaluation: TypeAlias = Evaluation | DetectionEvaluation | SegmentationEvaluation

EVALUATIONS: dict[TaskName, Callable[..., AnyEvaluation]] = {
    "classification": Evaluation,
    "detection": DetectionEvaluation,
    "segmentation": SegmentationEvaluation,
}
"""What is said of each task."""


def evaluate(
    model: str | Path | Network,
    *,
    data: DataOptions,
    sizes: Sequence[int] | None = None,
    classes: str | Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    postprocessing: Postprocessing = "later",
    boundary: int = 0,
    batch_size: int = 64,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    out: str | None = None,
) -> AnyEvaluation:
    """Evaluate a model on labelled images; every image counts once.

    Under torchrun several processes share the images.

    Where the folder has a val/ beside its train/, that is evaluated; else all of it. The images'
    classes must be classes of the model, by name; the model may have more.

    Args:
        model: whatever `load` reads, or a file of `mobilevit export`, which runs in its own runtime
            on the CPU; in Python also a network.
        data: where the images are.
        sizes: image sizes (crops) in pixels; by default the model's own. The margin around the
            crop keeps its share. An exported file has one, unless its size is dynamic.
        classes: class names in the order of the outputs, where the model has none: separated by
            commas, or a text file with one a line.
        preprocessing: fields of the model's preprocessing to override, such as channel_order; an
            exported file has its own inside.
        postprocessing: detection: which of the authors' rules turns outputs into boxes, that of
            2021 or the later one.
        boundary: segmentation: also evaluate the pixels within so many of true boundaries apart.
        batch_size: images at a time.
        threads: compute threads on a CPU; by default from the number of cores.
        device: where to compute; auto takes a GPU where there is one.
        out: JSON file to write all figures to.

    Raises:
        DataError: the images cannot be used; the message names which and why.
        CheckpointError: the model cannot be read.
        ExportError: an exported file cannot be opened, or has decided what an option asks for.
        ValueError: the model's classes are not known.
    """
    options = InferenceOptions(postprocessing=postprocessing, boundary=boundary)
    on = device_of(model, device)
    default_threads, default_workers = split_cores(available_cores(), on_gpu=on.type != "cpu")
    threads = threads or default_threads
    network, name = for_inference(
        model, classes=classes, preprocessing=preprocessing, device=on, threads=threads
    )
    known = require_classes(network.config, name)
    task = get_task(network.config.task)
    rule = network.config.preprocessing
    sizes = sizes or [rule.crop]
    if isinstance(network, FileNetwork):
        network.refuse_sizes(sizes)
        network.refuse_options(options)
    check_data_options(data, task)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    processes = Processes.from_environment()
    with process_group(processes, on), use_threads(threads):
        samples = task.evaluation_samples(data, known)
        by_size = {
            size: evaluate_model(
                network,
                samples,
                rule.at(size),
                batch_size=batch_size,
                workers=default_workers if data.workers is None else data.workers,
                device=on,
                options=options,
                processes=processes,
            )
            for size in sizes
        }
    result = EVALUATIONS[task.name](model=name, by_size=by_size)
    if out is not None and processes.is_main:
        write_file(Path(out), json.dumps(result.to_json(), indent=1) + "\n")
    return result
