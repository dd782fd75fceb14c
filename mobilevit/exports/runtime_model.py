"""Exported files in the place of networks: commands that take a network take a file as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mobilevit.checkpoints.create import open_model
from mobilevit.data.class_names import class_names
from mobilevit.exports.backends.base import Runner
from mobilevit.exports.backends.registry import backend_of, open_exported
from mobilevit.exports.spec import ExportError
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network, build
from mobilevit.models.ssdlite import RawDetections, SSDLite
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.detection.loss_and_postprocess import SuppressedBoxes
from mobilevit.utils.devices import compute_device


class PixelPreprocessing(Preprocessing):
    """Resizes and crops an image, and leaves its values to the file."""

    as_pixels: ClassVar[bool] = True


class FileNetwork:
    """An exported file that is called like a network; subclasses differ in what they return.

    Its `config.preprocessing` makes its inputs: `[3, H, W]`, uint8, or of a raw file float32.
    """

    config: ModelConfig

    def __init__(self, runner: Runner) -> None:
        self.runner, self.metadata = runner, runner.metadata
        self.config = runner.metadata.config
        if not self.metadata.raw:
            pixels = PixelPreprocessing(**asdict(self.config.preprocessing))
            self.config = replace(self.config, preprocessing=pixels)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """The file's outputs for images `[B, 3, H, W]`; see `TaskExport.outputs`.

        A file that takes one image at a time is run for each.
        """
        images = images if self.metadata.raw else images.permute(0, 2, 3, 1)
        batch = images.contiguous().numpy()
        step = len(batch) if self.metadata.dynamic == "batch" else 1
        outputs = [self.runner(batch[i : i + step]) for i in range(0, len(batch), step)]
        return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*outputs, strict=True)]

    def refuse_options(self, options: InferenceOptions) -> None:
        """Check that the file can follow these options.

        Raises:
            ExportError: it cannot.
        """
        refused = get_task(self.config.task).refused_by_files(options)
        if refused is not None and not self.metadata.raw:
            raise ExportError(refused)

    def refuse_sizes(self, sizes: Sequence[int]) -> None:
        """Check that the file takes images of these sizes (crops, in pixels).

        Raises:
            ExportError: it does not.
        """
        own = self.config.preprocessing.crop
        if self.metadata.dynamic != "size" and any(size != own for size in sizes):
            raise ExportError(
                f"sizes is {', '.join(map(str, sizes))}, but the file takes only images of {own} x "
                f"{own} pixels: export one with dynamic size, or for another size (preprocessing: "
                "crop and resize)"
            )


class FileClassifier(FileNetwork):
    """A file for classification."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """`[B, 3, H, W]` -> `[B, K]`: logits, or logarithms of probabilities, which serve as such.

        A probability that underflows float32 counts as the smallest that does not.
        """
        (values,) = self.outputs(images)
        if self.metadata.raw:
            return values
        return values.clamp(min=torch.finfo(values.dtype).tiny).log()


class FileDetector(FileNetwork):
    """A file for detection."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        network = _without_weights(self.config)
        assert isinstance(network, SSDLite)
        self.anchors = network.anchors

    def __call__(self, images: Tensor, /) -> RawDetections | SuppressedBoxes:
        """`[B, 3, H, W]` -> outputs for each anchor, or boxes."""
        outputs = self.outputs(images)
        return RawDetections(*outputs) if self.metadata.raw else SuppressedBoxes(*outputs)


class FileSegmenter(FileNetwork):
    """A file for segmentation."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        network: Any = _without_weights(self.config)
        self.align_corners: bool = network.align_corners

    def __call__(self, images: Tensor, /) -> Tensor:
        """`[B, 3, H, W]` -> logits `[B, K, H, W]`, or classes `[B, H, W]`, uint8 or int32."""
        (values,) = self.outputs(images)
        return values


AnyNetwork: TypeAlias = Network | FileClassifier | FileDetector | FileSegmenter


def _without_weights(config: ModelConfig) -> Any:
    """The network that a file was made from, without its weights."""
    with torch.device("meta"):
        return build(config.model, num_classes=config.num_classes, **config.options)


def is_file(model: object) -> bool:
    """Whether a name is that of an exported file, by its suffix."""
    return isinstance(model, str | Path) and backend_of(model) is not None


def file_network(runner: Runner) -> FileClassifier | FileDetector | FileSegmenter:
    """An opened file in a network's place."""
    task = runner.metadata.config.task
    if task == "detection":
        return FileDetector(runner)
    return FileSegmenter(runner) if task == "segmentation" else FileClassifier(runner)


def device_of(model: object, device: str) -> torch.device:
    """The device that a model computes on; for exported files it is the CPU.

    Raises:
        ExportError: another device is given for a file.
        ValueError: see `compute_device`.
    """
    if is_file(model):
        if device not in ("auto", "cpu"):
            raise ExportError(f"{model} runs on the CPU; device cannot be {device!r}")
        device = "cpu"
    return compute_device(device)


def for_inference(
    model: str | Path | Network,
    *,
    classes: str | Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
    device: torch.device,
    threads: int,
) -> tuple[AnyNetwork, str]:
    """Load a network for inference, or open an exported file.

    Args:
        model: whatever `load` reads, an exported file, or a network, which is left unchanged.
        classes: names in the order of the outputs, where the file has none.
        preprocessing: fields of the preprocessing to override; none of an exported file.
        device: from `device_of`.
        threads: for an exported file.

    Returns:
        It, and its name for messages.

    Raises:
        ExportError: a file cannot be opened, or an option contradicts what is inside it.
        CheckpointError, ValueError: see `opened`.
    """
    if not is_file(model):
        network, name = open_model(model, classes=classes, preprocessing=preprocessing)
        return fuse(network).to(device), name
    name = str(model)
    if preprocessing:
        raise ExportError(
            f"{name} has its preprocessing inside; to change {', '.join(preprocessing)}, export it "
            "again with that option"
        )
    file = file_network(open_exported(name, threads=threads))
    if classes is not None:
        if file.config.classes is not None:
            raise ExportError(f"{name} has class names; to change them, export it again")
        file.config = replace(file.config, classes=class_names(classes))
    return file, name
