"""The options and the model that `predict` and `evaluate` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from mobilevit.checkpoints.create import require_classes
from mobilevit.exports.runtime_model import (
    AnyNetwork,
    FileNetwork,
    OptimizedNetwork,
    device_of,
    for_inference,
)
from mobilevit.exports.spec import ExportError
from mobilevit.models.registry import Network
from mobilevit.tasks.base import InferenceOptions, Postprocessing
from mobilevit.utils.devices import available_cores, split_cores, use_threads
from mobilevit.utils.memory import keep_freed_memory
from mobilevit.utils.options import Count, Options


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """How a model is opened and run."""

    classes: str | Sequence[str] | None = None
    """Class names in the order of the outputs, where the model has none: separated by commas, or a
    text file with one a line."""
    preprocessing: dict[str, Any] | None = None
    """Fields of the model's preprocessing to override, such as channel_order; an exported file has
    its own inside."""
    postprocessing: Postprocessing = "later"
    """Detection: which of the authors' rules turns outputs into boxes, that of 2021 or the later
    one."""
    threads: Count | None = None
    """Compute threads on a CPU; by default from the number of cores."""
    keep_memory: bool = True
    """On a Linux CPU, keep freed memory for the next batch: faster, and nothing is returned to the
    system before the end."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    out: str | None = None
    """Where to write results."""


class OpenModel(NamedTuple):
    """A model for inference."""

    network: AnyNetwork
    name: str
    """For messages."""
    classes: tuple[str, ...]
    device: torch.device
    threads: int
    workers: int
    """Processes that decode, by default."""
    keep_memory: bool

    @contextmanager
    def resources(self) -> Iterator[None]:
        """Threads and memory for inference, inside a `with` block."""
        keep = self.keep_memory and self.device.type == "cpu"
        with use_threads(self.threads), keep_freed_memory(keep):
            yield


def open_model(
    model: str | Path | Network | OptimizedNetwork,
    options: ModelOptions,
    outputs: InferenceOptions,
    *,
    all_cores: bool = False,
) -> OpenModel:
    """Open a network or an exported file, and check that it supports the options.

    Raises:
        CheckpointError: the model cannot be read.
        ExportError: an exported file cannot be opened, or an option contradicts what is inside it.
        ValueError: the model's classes are not known.
    """
    device = device_of(model, options.device)
    if isinstance(model, OptimizedNetwork) and options.threads is not None:
        raise ExportError("threads of an optimized network are set in optimize")
    threads, workers = split_cores(available_cores(), on_gpu=device.type != "cpu")
    threads = options.threads or (available_cores() if all_cores else threads)
    network, name = for_inference(
        model,
        classes=options.classes,
        preprocessing=options.preprocessing,
        device=device,
        threads=threads,
    )
    if isinstance(network, FileNetwork):
        network.refuse_options(outputs)
    classes = require_classes(network.config, name)
    return OpenModel(network, name, classes, device, threads, workers, options.keep_memory)
