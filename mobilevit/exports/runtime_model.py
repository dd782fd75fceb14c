"""Exported files in the place of networks: what takes a network takes a file as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mobilevit.checkpoints.create import opened
from mobilevit.data.class_names import class_names
from mobilevit.exports.backends.registry import Runner, format_of, open_exported
from mobilevit.exports.spec import ExportError
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network, build
from mobilevit.models.ssdlite import RawDetections, SSDLite
from mobilevit.tasks.detection.loss_and_postprocess import PRESETS, SuppressedBoxes
from mobilevit.utils.devices import compute_device


class PixelPreprocessing(Preprocessing):
    """Resizes and crops an image and leaves its values to the file."""

    as_pixels: ClassVar[bool] = True


class FileNetwork:
    """An exported file that is called like a network; a subclass for each task says what it gives.

    Its `config.preprocessing` makes what it takes: `[3, H, W]`, uint8, or of a raw file float32.
    """

    config: ModelConfig

    def __init__(self, runner: Runner) -> None:
        """Put an opened file in a network's place."""
        self.runner, self.facts = runner, runner.facts
        self.config = runner.facts.config
        if not self.facts.raw:
            rule = PixelPreprocessing(**asdict(self.config.preprocessing))
            self.config = replace(self.config, preprocessing=rule)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """What the file says of images `[B, 3, H, W]`: `OUTPUTS` of `mobilevit.exports.wrap`.

        A file that takes one image at a time is run for each.
        """
        given = (images if self.facts.raw else images.permute(0, 2, 3, 1)).contiguous().numpy()
        at_once = len(given) if self.facts.dynamic == "batch" else 1
        said = [self.runner(given[i : i + at_once]) for i in range(0, len(given), at_once)]
        return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*said, strict=True)]

    def refuse_sizes(self, sizes: Sequence[int]) -> None:
        """See that the file takes images of these sizes (crops, in pixels).

        Raises:
            ExportError: it does not.
        """
        own = self.config.preprocessing.crop
        if self.facts.dynamic != "size" and any(size != own for size in sizes):
            raise ExportError(
                f"sizes is {', '.join(map(str, sizes))}, but the file takes images of {own} x "
                f"{own} pixels alone: export one with dynamic size, or for another size "
                "(preprocessing: crop and resize)"
            )


class FileClassifier(FileNetwork):
    """A file for classification."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """`[B, 3, H, W]` -> `[B, K]`: logits, or logarithms of probabilities, which serve as such.

        A probability too small for float32 counts as the smallest that is not.
        """
        (said,) = self.outputs(images)
        return said if self.facts.raw else said.clamp(min=torch.finfo(said.dtype).tiny).log()


class FileDetector(FileNetwork):
    """A file for detection."""

    def __init__(self, runner: Runner) -> None:
        """Put an opened file in a network's place."""
        super().__init__(runner)
        network = _without_weights(self.config)
        assert isinstance(network, SSDLite)
        self.anchors = network.anchors

    def __call__(self, images: Tensor, /) -> RawDetections | SuppressedBoxes:
        """`[B, 3, H, W]` -> what is said of each anchor, or boxes."""
        said = self.outputs(images)
        return RawDetections(*said) if self.facts.raw else SuppressedBoxes(*said)

    def refuse_rule(self, postprocessing: str, score: float) -> None:
        """See that the file can give boxes by a rule for post-processing.

        Args:
            postprocessing: a name out of `PRESETS`.
            score: least probability of a box.

        Raises:
            ExportError: it cannot.
        """
        if self.facts.raw:
            return
        if postprocessing != "later":
            raise ExportError(
                f"the file turns outputs into boxes itself, by the rule later, not "
                f"{postprocessing}: export it with raw to choose"
            )
        least = PRESETS["later"].score
        if score < least:
            raise ExportError(
                f"score is {score:g}, but the file keeps boxes from {least:g} on: export it with "
                "raw for others"
            )


class FileSegmenter(FileNetwork):
    """A file for segmentation."""

    def __init__(self, runner: Runner) -> None:
        """Put an opened file in a network's place."""
        super().__init__(runner)
        network: Any = _without_weights(self.config)
        self.align_corners: bool = network.align_corners

    def __call__(self, images: Tensor, /) -> Tensor:
        """`[B, 3, H, W]` -> logits `[B, K, H, W]`, or classes `[B, H, W]`, uint8 or int32."""
        (said,) = self.outputs(images)
        return said


AnyNetwork: TypeAlias = Network | FileClassifier | FileDetector | FileSegmenter


def _without_weights(config: ModelConfig) -> Any:
    """The network that a file was made of, for what it knows without its weights."""
    with torch.device("meta"):
        return build(config.model, num_classes=config.num_classes, **config.options)


def is_file(model: object) -> bool:
    """Whether a name is that of an exported file, by its ending."""
    return isinstance(model, str | Path) and format_of(model) is not None


def file_network(runner: Runner) -> FileClassifier | FileDetector | FileSegmenter:
    """An opened file in a network's place."""
    task = runner.facts.config.task
    if task == "detection":
        return FileDetector(runner)
    return FileSegmenter(runner) if task == "segmentation" else FileClassifier(runner)


def device_of(model: object, device: str) -> torch.device:
    """Where a model computes; exported files do so on the CPU.

    Raises:
        ExportError: a file is to be run elsewhere.
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
    """The network in its form for inference, or the exported file, that a command is given.

    Args:
        model: whatever `load` reads, an exported file, or a network, which is left as it was.
        classes: names in the order of the outputs, where the file has none.
        preprocessing: fields of the preprocessing to override; none of an exported file.
        device: as `device_of` says.
        threads: that an exported file is run on.

    Returns:
        It, and what to call it in messages.

    Raises:
        ExportError: a file cannot be opened; or an option that it has decided already.
        CheckpointError, ValueError: see `opened`.
    """
    if not is_file(model):
        network, name = opened(model, classes=classes, preprocessing=preprocessing)
        return fuse(network).to(device), name
    name = str(model)
    if preprocessing:
        raise ExportError(
            f"{name} does its own preprocessing; to change {', '.join(preprocessing)}, export it "
            "anew with that option"
        )
    file = file_network(open_exported(name, threads=threads))
    if classes is not None:
        if file.config.classes is not None:
            raise ExportError(f"{name} names its classes; to change them, export it anew")
        file.config = replace(file.config, classes=class_names(classes))
    return file, name
