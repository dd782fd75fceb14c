"""The specification of an exported file, and its metadata."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from mobilevit.checkpoints.folder import config_from_json, config_to_json
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.models.config import ModelConfig, Preprocessing

Dynamic = Literal["batch", "size"]
Precision = Literal["fp32", "fp16"]

LICENCE = (
    "The MobileViT library is under the MIT licence. The weights are under the licence of whoever "
    "published or trained them; their source: {source}"
)


class ExportError(ValueError):
    """A model cannot be exported, or an exported file cannot be used, as requested."""


class MissingExtraError(ExportError, ImportError):
    """A format needs packages that are not installed."""


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """The kind of an exported file."""

    dynamic: Dynamic | None = None
    """`batch` for any number of images, `size` for images of any size, one at a time."""
    raw: bool = False
    """A normalized tensor in and logits out, in place of pixels in and predictions out."""
    precision: Precision = "fp32"
    """Of what is not quantized. `fp16` computes in half precision, at half the file size; inputs
    and outputs are the same."""
    quantize: str | None = None
    """`int8`: weights per channel and static activations; other modes belong to one format."""

    def format_fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(FileFormat)}


@dataclass(frozen=True, kw_only=True)
class ExportSpec(FileFormat):
    """The file to write."""

    calibration: tuple[Image.Image, ...] = ()
    """RGB images of any size on which ranges of activations are measured."""
    float_layers: frozenset[str] = frozenset()
    """Layers that are not quantized, by their names in `PreparedModel.module.named_modules()`, such
    as `network.backbone.stages.2.1.layers.0.attention.qkv.query`."""


FRAMING = ("resize_mode", "resize", "crop", "interpolation")
"""Fields of `Preprocessing` about the size of an image, not about its values."""


class PixelPreprocessing(Preprocessing):
    """Resizes and crops an image, and leaves its values to the file."""

    as_pixels: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FileMetadata(FileFormat):
    """All that is needed to feed a file and to read its outputs; stored inside it."""

    config: ModelConfig
    """Of the network. The preprocessing of a file, unless it is raw, is a `PixelPreprocessing`."""
    weights: str
    """Digest of the network's weights; see `mobilevit.checkpoints.folder.digest`."""

    @property
    def values(self) -> str:
        """The pixel values that the file expects, in words."""
        if not self.raw:
            return "v in 0 to 255: red, green, blue"
        order = "red, green, blue"
        if self.config.preprocessing.channel_order == "bgr":
            order = "blue, green, red"
        return f"(v / 255 - mean) / std of v in 0 to 255: {order}"

    def to_strings(self) -> dict[str, str]:
        """Strings by key, as every format stores them; structured values are JSON.

        Only `config` and `format` are read back; the others are for people and other programs.
        Preprocessing is what is left to do outside the file.
        """
        config, steps = self.config, asdict(self.config.preprocessing)
        steps = {name: steps[name] for name in steps if self.raw or name in FRAMING}
        stored = json.loads(config_to_json(config, weights=self.weights))
        return {
            "model": config.model,
            "task": config.task,
            "classes": json.dumps(config.classes, ensure_ascii=False),
            "preprocessing": json.dumps(steps),
            "values": self.values,
            "format": json.dumps(self.format_fields()),
            "source": config.source,
            "weights_sha256": self.weights,
            "licence": LICENCE.format(source=config.source),
            "mobilevit_version": importlib.metadata.version("mobilevit"),
            "config": json.dumps({**stored, "preprocessing": steps}, indent=2),
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], *, file: str | Path) -> FileMetadata:
        """The inverse of `to_strings`; ExportError if the file was not written by this library."""
        try:
            config, weights = config_from_json(strings["config"], file=str(file))
            format_fields = json.loads(strings["format"])
            if not format_fields["raw"]:
                pixels = PixelPreprocessing(**asdict(config.preprocessing))
                config = replace(config, preprocessing=pixels)
            return cls(config=config, weights=weights, **format_fields)
        except (KeyError, TypeError, ValueError, CheckpointError) as error:
            raise ExportError(
                f"{file} was not written by `mobilevit export`: its metadata is missing or invalid "
                f"({error!r})"
            ) from error


def file_preprocessing(preprocessing: Preprocessing, dynamic: Dynamic | None) -> Preprocessing:
    """The preprocessing for a file: one of fixed size takes squares, so images may be stretched."""
    stretch = preprocessing.resize_mode == "shortest_edge" and dynamic != "size"
    return replace(preprocessing, resize_mode="stretch") if stretch else preprocessing
