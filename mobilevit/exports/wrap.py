"""The module and example input that a backend writes, made from a network.

An end-to-end file takes pixels as decoders, cameras and bitmaps give them: `image`, uint8
`[B, H, W, 3]`, red, green, blue, already resized and cropped. A raw file takes `tensor`, float32
`[B, 3, H, W]`, as `Preprocessing` makes it, and returns logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.spec import ExportError, ExportSpec, FileMetadata
from mobilevit.exports.toolchain import quiet
from mobilevit.models.config import Preprocessing
from mobilevit.tasks import get_task

IMAGE, TENSOR = "image", "tensor"
"""Input names of an end-to-end file and of a raw one."""


def fold_normalization(graph: nn.Module, preprocessing: Preprocessing) -> Tensor:
    """Make an inference graph take pixel values 0..255 in the order red, green, blue.

    Channel order and the division by 255 and the standard deviation go into the first convolution's
    weights. The mean, returned as `[1, 3, 1, 1]`, cannot, since that convolution pads with zeros.
    """
    stem = graph.get_submodule("backbone.stem.conv")
    assert isinstance(stem, nn.Conv2d)
    if stem.in_channels != 3:
        raise ExportError(
            f"the network takes {stem.in_channels} channels, an image has 3: export it with raw"
        )
    order = [2, 1, 0] if preprocessing.channel_order == "bgr" else [0, 1, 2]
    std = torch.tensor(preprocessing.std)[:, None, None]
    stem.weight = nn.Parameter((stem.weight / (255 * std))[:, order], requires_grad=False)
    return 255 * torch.tensor(preprocessing.mean)[order].view(1, 3, 1, 1)


class EndToEndModel(nn.Module):
    """Pixels in, predictions out."""

    mean: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        postprocess: nn.Module,
        *,
        nchw_float_input: bool = False,
    ) -> None:
        """Take over an inference graph, which is changed.

        `nchw_float_input`: whether pixels come as float32 `[B, 3, H, W]` in 0..255.
        """
        super().__init__()
        self.nchw_float_input = nchw_float_input
        self.has_mean = any(preprocessing.mean)
        self.register_buffer("mean", fold_normalization(network, preprocessing), persistent=False)
        self.network, self.postprocess = network, postprocess

    def pixels(self, image: Tensor) -> Tensor:
        """The input of the first convolution, `[B, 3, H, W]`."""
        # Transposing bytes is a quarter of the memory traffic of transposing floats.
        x = image if self.nchw_float_input else image.permute(0, 3, 1, 2)
        x = x.to(self.mean.dtype)
        return x - self.mean if self.has_mean else x

    def logits(self, image: Tensor) -> Any:
        return self.network(self.pixels(image))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`[B, H, W, 3]` uint8 -> `TaskExport.outputs`."""
        return self.postprocess(self.logits(image))


class RawModel(nn.Module):
    """The network only: a tensor in, logits out, both float32 in any precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def logits(self, tensor: Tensor) -> Any:
        return self.network(tensor)

    def forward(self, tensor: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`[B, 3, H, W]` float32 -> `TaskExport.raw_outputs`."""
        outputs = self.logits(tensor)
        if isinstance(outputs, Tensor):
            return outputs.float()
        return tuple(part.float() for part in outputs)


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A network ready to be written: a module, an example of its input, names and metadata."""

    module: nn.Module
    """In evaluation mode: `EndToEndModel`, `RawModel`, or any network with a raw file's input."""
    example: Tensor
    metadata: FileMetadata
    spec: ExportSpec
    dynamic_axes: dict[int, str]
    """Axes of the input that can have any size -> their names."""

    @property
    def input_name(self) -> str:
        return TENSOR if self.spec.raw else IMAGE

    @property
    def output_names(self) -> tuple[str, ...]:
        task = get_task(self.metadata.config.task).export
        return task.raw_outputs if self.spec.raw else task.outputs

    def program(self, limit: int | None = None) -> ExportedProgram:
        """The graph by `torch.export`, in torch's operations; `limit` is of dynamic sizes."""
        size = torch.export.Dim.DYNAMIC(min=1, max=limit)
        shapes = (dict.fromkeys(self.dynamic_axes, size),) if self.dynamic_axes else None
        with torch.no_grad(), quiet():
            return torch.export.export(self.module, (self.example,), dynamic_shapes=shapes)

    def describe(self, limit: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Inputs and outputs, such as `image: uint8 [1, 96, 96, 3]`; `limit` ends dynamic sizes."""
        with torch.inference_mode():
            outputs = self.module(self.example)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs

        def line(name: str, value: Tensor, axes: dict[int, str]) -> str:
            sides: list[Any] = list(value.shape)
            for axis, size in axes.items():
                sides[axis] = size + limit
            dtype = str(value.dtype).removeprefix("torch.")
            return f"{name}: {dtype} [{', '.join(map(str, sides))}]"

        maps = {-2: "height", -1: "width"} if self.spec.dynamic == "size" else self.dynamic_axes
        described = [
            line(name, value, maps if value.ndim > 2 or 0 in maps else {})
            for name, value in zip(self.output_names, outputs, strict=True)
        ]
        return (line(self.input_name, self.example, self.dynamic_axes),), tuple(described)

    def batch(self, frames: Sequence[Image.Image]) -> Tensor:
        """Stack images of the right size into the module's input."""
        if self.spec.raw:
            preprocessing = self.metadata.config.preprocessing
            return torch.stack([image_to_tensor(frame, preprocessing) for frame in frames])
        pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
        nchw = getattr(self.module, "nchw_float_input", False)
        return pixels.permute(0, 3, 1, 2).float() if nchw else pixels

    def calibration(self) -> list[Tensor]:
        """The calibration images one by one, as the module takes them."""
        if not self.spec.calibration:
            raise ExportError("ranges of activations are measured on images: none were given")
        preprocessing = self.metadata.config.preprocessing
        return [self.batch([frame_image(image, preprocessing)]) for image in self.spec.calibration]
