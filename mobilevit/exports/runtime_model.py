"""Exported files in place of networks, for the commands that take either."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mobilevit.checkpoints.create import open_model
from mobilevit.data.class_names import class_names
from mobilevit.exports.backends.base import Runner
from mobilevit.exports.backends.registry import backend_of, open_exported
from mobilevit.exports.spec import ExportError
from mobilevit.models.config import ModelConfig
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network, build
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.utils.devices import compute_device


class FileNetwork:
    """An exported file that is called like a network.

    Its `config.preprocessing` makes its inputs, `[3, H, W]` in uint8 (float32 for a raw file), and
    `Task.postprocess` takes its outputs.
    """

    config: ModelConfig

    def __init__(self, runner: Runner) -> None:
        self.runner, self.metadata = runner, runner.metadata
        self.config = config = runner.metadata.config
        self._task = get_task(config.task).export
        if self._task.model_attributes:
            # From the network without weights: they are functions of its architecture.
            with torch.device("meta"):
                model = build(config.model, num_classes=config.num_classes, **config.options)
            for name in self._task.model_attributes:
                setattr(self, name, getattr(model, name))

    def __call__(self, images: Tensor, /) -> Any:
        """Run `[B, 3, H, W]`, image by image unless the file's batch is dynamic."""
        images = images if self.metadata.raw else images.permute(0, 2, 3, 1)
        batch = images.contiguous().numpy()
        step = len(batch) if self.metadata.dynamic == "batch" else 1
        outputs = [self.runner(batch[i : i + step]) for i in range(0, len(batch), step)]
        joined = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*outputs, strict=True)]
        return self._task.network_outputs(joined, self.metadata.raw)

    def refuse_options(self, options: InferenceOptions) -> None:
        """Raise ExportError if the file does not support these options."""
        refused = get_task(self.config.task).refused_by_files(options)
        if refused is not None and not self.metadata.raw:
            raise ExportError(refused)

    def refuse_sizes(self, sizes: Sequence[int]) -> None:
        """Raise ExportError if the file does not take images of these sizes (crops, in pixels)."""
        own = self.config.preprocessing.crop
        if self.metadata.dynamic != "size" and any(size != own for size in sizes):
            raise ExportError(
                f"sizes is {', '.join(map(str, sizes))}, but the file takes only images of {own} x "
                f"{own} pixels: export one with dynamic size, or for another size (preprocessing: "
                "crop and resize)"
            )


@dataclass(frozen=True)
class Trial:
    """A runtime that `optimize` tried on square images."""

    size: int
    """Side of the images, in pixels."""
    batch_size: int
    runtime: str
    """`torch`, the fused network, or the format of an exported file."""
    milliseconds: float | None = None
    """Median time of a batch; None if the runtime was left out."""
    selected: bool = False
    reason: str = ""
    """Why it was left out."""

    def __str__(self) -> str:
        """`256 px, batch 1: onnx 12.8 ms, selected`."""
        taken = f"left out: {self.reason}"
        if self.milliseconds is not None:
            taken = f"{self.milliseconds:.1f} ms" + (", selected" if self.selected else "")
        return f"{self.size} px, batch {self.batch_size}: {self.runtime} {taken}"


class OptimizedNetwork:
    """A network for inference on the CPU, made by `mobilevit.optimize`, called like the network.

    Square images of a size for which a file is faster run in that file, all others in the fused
    network. Copies and pickles of it are not supported; make it where it is used.
    """

    config: ModelConfig

    def __init__(
        self,
        fused: Network,
        files: Mapping[int, FileNetwork],
        trials: tuple[Trial, ...],
    ) -> None:
        self.fused, self.files, self.trials = fused, dict(files), trials
        self.name, self.config = fused.name, fused.config
        for name in get_task(fused.config.task).export.model_attributes:
            setattr(self, name, getattr(fused, name))

    def __call__(self, images: Tensor, /) -> Any:
        """Map images `[B, C, H, W]`, float32 on the CPU, to the network's outputs."""
        height, width = images.shape[-2:]
        file = self.files.get(height) if height == width else None
        with torch.no_grad():
            return self.fused(images) if file is None else file(images.detach())

    def __repr__(self) -> str:
        lines = "".join(f"\n  {trial}" for trial in self.trials)
        return f"OptimizedNetwork of {self.name}{lines}"


AnyNetwork: TypeAlias = Network | FileNetwork | OptimizedNetwork


def is_file(model: object) -> bool:
    """Whether a name is that of an exported file, by its suffix."""
    return isinstance(model, str | Path) and backend_of(model) is not None


def device_of(model: object, device: str) -> torch.device:
    """The device that a model computes on; exported files run on the CPU only."""
    if is_file(model) or isinstance(model, OptimizedNetwork):
        if device not in ("auto", "cpu"):
            name = model.name if isinstance(model, OptimizedNetwork) else model
            raise ExportError(f"{name} runs on the CPU; device cannot be {device!r}")
        device = "cpu"
    return compute_device(device)


def for_inference(
    model: str | Path | Network | OptimizedNetwork,
    *,
    classes: str | Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
    device: torch.device,
    threads: int,
) -> tuple[AnyNetwork, str]:
    """Load a network for inference, or open an exported file; returns its name for messages too.

    Args:
        model: anything that `load` reads, an exported file, or a network, which is left unchanged,
            optimized or not.
        classes: names in the order of the outputs, if the model has none.
        preprocessing: fields of the preprocessing to override; an exported file takes none.
        device: from `device_of`.
        threads: for an exported file.
    """
    if isinstance(model, OptimizedNetwork):
        if classes is not None or preprocessing:
            raise ExportError("classes and preprocessing of a network are set ahead of optimize")
        return model, model.name
    if not is_file(model):
        network, name = open_model(model, classes=classes, preprocessing=preprocessing)
        return fuse(network).to(device), name
    name = str(model)
    if preprocessing:
        raise ExportError(
            f"{name} has its preprocessing inside; to change {', '.join(preprocessing)}, export it "
            "again with that option"
        )
    file = FileNetwork(open_exported(name, threads=threads))
    if classes is not None:
        if file.config.classes is not None:
            raise ExportError(f"{name} has class names; to change them, export it again")
        file.config = replace(file.config, classes=class_names(classes))
    return file, name
