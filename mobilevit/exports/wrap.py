"""The module and example input that a backend writes, made from a network.

An end-to-end file takes pixels as decoders, cameras and bitmaps give them: `image`, uint8
`[B, H, W, 3]`, red, green, blue, already resized and cropped. A raw file takes `tensor`, float32
`[B, 3, H, W]`, as `Preprocessing` makes it, and returns logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobilevit.checkpoints.folder import digest
from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.float16 import halve
from mobilevit.exports.rewrite import inference_graph, stem_conv
from mobilevit.exports.spec import (
    Dynamic,
    ExportError,
    ExportSpec,
    FileMetadata,
    file_preprocessing,
)
from mobilevit.exports.toolchain import quiet
from mobilevit.models.config import Preprocessing
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task

IMAGE, TENSOR = "image", "tensor"
"""Input names of an end-to-end file and of a raw one."""


def fold_normalization(graph: nn.Module, preprocessing: Preprocessing) -> Tensor:
    """Make an inference graph take pixel values 0..255 in the order red, green, blue.

    Channel order and the division by 255 and the standard deviation go into the first convolution's
    weights. The mean, returned as `[1, 3, 1, 1]`, cannot, since that convolution pads with zeros.
    """
    stem = stem_conv(graph)
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
    dynamic_shapes: tuple[dict[int, Any]] | None
    """As `torch.export` takes them."""

    @property
    def input_name(self) -> str:
        return TENSOR if self.spec.raw else IMAGE

    @property
    def output_names(self) -> tuple[str, ...]:
        task = get_task(self.metadata.config.task).export
        return task.raw_outputs if self.spec.raw else task.outputs

    def program(self) -> ExportedProgram:
        """The graph by `torch.export`, in torch's own operations."""
        with torch.no_grad(), quiet():
            return torch.export.export(
                self.module, (self.example,), dynamic_shapes=self.dynamic_shapes
            )

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
        quantize = self.spec.quantize
        if quantize is None or not quantize.images:
            raise ExportError("ranges of activations are measured on images: none were given")
        preprocessing = self.metadata.config.preprocessing
        return [self.batch([frame_image(image, preprocessing)]) for image in quantize.images]


def prepare(
    model: Network,
    spec: ExportSpec,
    *,
    supports_nms: bool = True,
    nchw_float_input: bool = False,
    native_fp16: bool = False,
) -> PreparedModel:
    """Prepare a network for export; the original is unchanged.

    Args:
        model: a network of `create_model` or `load`.
        spec: the kind of file.
        supports_nms: whether the runtime has an operation for non-maximum suppression.
        nchw_float_input: pixels as float32 `[B, 3, H, W]` in 0..255, not uint8 `[B, H, W, 3]`.
        native_fp16: whether the format converts a float32 graph to float16 itself.

    Raises:
        ExportError: the network does not support this kind of file.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ExportError("a fused network cannot be exported; export the one it was made from")
    if model.fixed_size and spec.dynamic == "size":
        raise ExportError(
            f"{model.name} cannot be exported with dynamic size: {model.fixed_size}. Export one "
            "file for each size (preprocessing: crop and resize)"
        )
    preprocessing = file_preprocessing(model.config.preprocessing, spec.dynamic)
    graph = inference_graph(model, dynamic_size=spec.dynamic == "size")
    if spec.precision == "fp16" and not native_fp16:
        halve(graph)
    module: EndToEndModel | RawModel
    if spec.raw:
        module = RawModel(graph)
    else:
        task = get_task(model.config.task).export
        postprocess = task.postprocess(model, preprocessing.crop, supports_nms)
        module = EndToEndModel(graph, preprocessing, postprocess, nchw_float_input=nchw_float_input)
    floats = spec.raw or nchw_float_input
    return PreparedModel(
        module=module.eval(),
        example=_example(model.backbone.in_channels, preprocessing, spec, floats=floats),
        metadata=FileMetadata(
            config=replace(model.config, preprocessing=preprocessing),
            weights=digest(model.state_dict()),
            raw=spec.raw,
            dynamic=spec.dynamic,
            precision=spec.precision,
            quantize=spec.quantize.mode if spec.quantize else None,
        ),
        spec=spec,
        dynamic_shapes=_dynamic_shapes(spec.dynamic, height_axis=2 if floats else 1),
    )


def _example(
    channels: int, preprocessing: Preprocessing, spec: ExportSpec, *, floats: bool
) -> Tensor:
    """An input to trace the graph with.

    No dynamic size is 1 or occurs twice: `torch.export` would specialize the graph to that.
    """
    batch = 2 if spec.dynamic == "batch" else 1
    crop = preprocessing.crop
    height, width = (96, 160) if spec.dynamic == "size" else (crop, crop)
    if floats:
        return torch.zeros(batch, channels, height, width)
    return torch.zeros(batch, height, width, 3, dtype=torch.uint8)


def _dynamic_shapes(dynamic: Dynamic | None, *, height_axis: int) -> tuple[dict[int, Any]] | None:
    if dynamic is None:
        return None
    if dynamic == "batch":
        return ({0: torch.export.Dim("batch", min=1)},)
    return ({height_axis: torch.export.Dim.DYNAMIC, height_axis + 1: torch.export.Dim.DYNAMIC},)
