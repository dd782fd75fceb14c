"""The command `mobilevit evaluate`: the accuracy of a model on labelled images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from mobilevit.commands.inference import ModelOptions, open_model
from mobilevit.data.options import DataOptions
from mobilevit.exports.runtime_model import FileNetwork, OptimizedNetwork
from mobilevit.models.registry import Network
from mobilevit.tasks import check_data_options, get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.evaluate import evaluate_model
from mobilevit.tasks.results import Evaluation
from mobilevit.utils.distributed import Processes, process_group
from mobilevit.utils.files import write_file
from mobilevit.utils.options import Count, Interval


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """Options of `evaluate`."""

    data: DataOptions
    """Where the images are."""
    sizes: Sequence[int] | None = None
    """Image sizes (crops) in pixels; by default the model's own. The margin around the crop keeps
    its share. An exported file has one, unless its size is dynamic."""
    boundary: Annotated[int, Interval(0)] = 0
    """Segmentation: also evaluate the pixels within so many of true boundaries."""
    batch_size: Count = 64
    """Images at a time."""
    out: str | None = None
    """JSON file to write all metrics to."""


def evaluate(
    model: str | Path | Network | OptimizedNetwork,
    options: EvaluateOptions | None = None,
    **fields: Any,
) -> Evaluation[Any]:
    """Evaluate a model on labelled images; every image counts once.

    Under torchrun several processes share the images.

    Where the folder has a val/ next to its train/, that is evaluated; else all of it. The images'
    classes must be classes of the model, by name; the model may have more.

    Args:
        model: whatever `load` reads, or a file of `mobilevit export`, which runs in its own runtime
            on the CPU; in Python also a network, optimized or not.
        options: all options; or in Python
        fields: of `EvaluateOptions`, such as `data`, that are set or differ.

    Raises:
        DataError: the images cannot be used; the message names which and why.
        CheckpointError: the model cannot be read.
        ExportError: an exported file cannot be opened, or an option contradicts what is inside it.
        ValueError: the model's classes are not known.
    """
    options = EvaluateOptions(**fields) if options is None else replace(options, **fields)
    outputs = InferenceOptions(postprocessing=options.postprocessing, boundary=options.boundary)
    opened = open_model(model, options, outputs)
    network = opened.network
    task, preprocessing = get_task(network.config.task), network.config.preprocessing
    sizes = options.sizes or [preprocessing.crop]
    if isinstance(network, FileNetwork):
        network.refuse_sizes(sizes)
    check_data_options(options.data, task)
    if options.out is not None:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    workers = options.data.workers
    processes = Processes.from_environment()
    with process_group(processes, opened.device), opened.resources():
        samples = task.evaluation_samples(options.data, opened.classes)
        by_size = {
            size: evaluate_model(
                network,
                samples,
                preprocessing.at(size),
                batch_size=options.batch_size,
                workers=opened.workers if workers is None else workers,
                device=opened.device,
                options=outputs,
                processes=processes,
            )
            for size in sizes
        }
    result = Evaluation(model=opened.name, by_size=by_size)
    if options.out is not None and processes.is_main:
        write_file(Path(options.out), json.dumps(result.to_json(), indent=1) + "\n")
    return result
