"""timm's layout of MobileViT and MobileViTv2 classifiers.

timm's conversion of the authors' v1 weights reversed the input channels of the first convolution,
so all of its weights take red-green-blue pixels in [0, 1] without mean or std. A file of weights
does not say how its images were resized: the paper's rule is assumed. In a folder, as on the Hub,
`config.json` says it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from mobilevit.checkpoints.keymap import CheckpointError, Layout, Row, Stated
from mobilevit.data.class_names import imagenet_classes, unique_names
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import VARIANTS

_SHARED = (
    Row("conv_norm", "backbone.stem", "stem"),
    Row("conv_norm", "backbone.stage{s}.{i}.expand", "stages.{s-1}.{i}.conv1_1x1"),
    Row("conv_norm", "backbone.stage{s}.{i}.depthwise", "stages.{s-1}.{i}.conv2_kxk"),
    Row("conv_norm", "backbone.stage{s}.{i}.project", "stages.{s-1}.{i}.conv3_1x1"),
    Row("same", "head", "head.fc"),
)
_BLOCK = "backbone.stage{s}.1"
_THEIR_BLOCK = "stages.{s-1}.1"
_LAYER = f"{_BLOCK}.transformer.{{t}}"
_THEIR_LAYER = f"{_THEIR_BLOCK}.transformer.{{t}}"
_BLOCK_SHARED = (
    Row("conv_norm", f"{_BLOCK}.local_conv", f"{_THEIR_BLOCK}.conv_kxk"),
    Row("same", f"{_BLOCK}.local_project", f"{_THEIR_BLOCK}.conv_1x1"),
    Row("same", f"{_LAYER}.attention_norm", f"{_THEIR_LAYER}.norm1"),
    Row("same", f"{_LAYER}.feed_forward_norm", f"{_THEIR_LAYER}.norm2"),
    Row("same", f"{_BLOCK}.norm", f"{_THEIR_BLOCK}.norm"),
    Row("conv_norm", f"{_BLOCK}.global_project", f"{_THEIR_BLOCK}.conv_proj"),
)

V1 = Layout(
    name="timm",
    version=1,
    conv=".conv",
    norm=".bn",
    rows=(
        *_BLOCK_SHARED,
        Row("same", f"{_LAYER}.attention.qkv", f"{_THEIR_LAYER}.attn.qkv"),
        Row("same", f"{_LAYER}.attention.out", f"{_THEIR_LAYER}.attn.proj"),
        Row("same", f"{_LAYER}.feed_forward.expand", f"{_THEIR_LAYER}.mlp.fc1"),
        Row("same", f"{_LAYER}.feed_forward.project", f"{_THEIR_LAYER}.mlp.fc2"),
        Row("conv_norm", f"{_BLOCK}.fusion", f"{_THEIR_BLOCK}.conv_fusion"),
        *_SHARED,
        Row("conv_norm", "expand", "final_conv"),
    ),
)

V2 = Layout(
    name="timm",
    version=2,
    conv=".conv",
    norm=".bn",
    rows=(
        *_BLOCK_SHARED,
        Row("pointwise", f"{_LAYER}.attention.qkv", f"{_THEIR_LAYER}.attn.qkv_proj"),
        Row("pointwise", f"{_LAYER}.attention.out", f"{_THEIR_LAYER}.attn.out_proj"),
        Row("pointwise", f"{_LAYER}.feed_forward.expand", f"{_THEIR_LAYER}.mlp.fc1"),
        Row("pointwise", f"{_LAYER}.feed_forward.project", f"{_THEIR_LAYER}.mlp.fc2"),
        *_SHARED,
    ),
)

LAYOUTS = (V1, V2)

PREPROCESSING = {
    V1: Preprocessing(assumed=("resize", "crop", "interpolation")),
    V2: Preprocessing(
        interpolation="bicubic", assumed=("channel_order", "resize", "crop", "interpolation")
    ),
}

_IMAGENET = re.compile(r"_in1k(_\d+)?$")
"""What the tag of weights that end on ImageNet-1k ends with, and perhaps their size in pixels."""


def stated(config: Mapping[str, Any], *, layout: Layout, file: str) -> Stated:
    """What a folder's `config.json` says beside the weights.

    Args:
        config: its content.
        layout: of the weights beside it.
        file: what to call the folder in messages.

    Raises:
        CheckpointError: it asks for what this library's networks or images' preparation are not.
    """
    arguments = config.get("model_args") or {}
    if unknown := [
        key for key in arguments if key not in ("in_chans", "num_classes") and "drop" not in key
    ]:
        raise CheckpointError(f"{file}: model_args {', '.join(unknown)} are not known here")
    own = config.get("pretrained_cfg") or config
    found: dict[str, Any] = {}
    if (size := own.get("input_size")) is not None:
        channels, height, width = size
        if height != width:
            raise CheckpointError(f"{file}: input_size {height} x {width} is not square")
        found["crop"] = width
        if (share := own.get("crop_pct")) is not None:
            found["resize"] = math.floor(width / share)  # as timm rounds
    else:
        channels = 3
    if own.get("crop_mode", "center") != "center":
        raise CheckpointError(f"{file}: crop_mode {own['crop_mode']} is not known here")
    if (interpolation := own.get("interpolation")) is not None:
        found["interpolation"] = interpolation
    for key in ("mean", "std"):
        if (values := own.get(key)) is not None:
            found[key] = tuple(map(float, values))
    fallback = PREPROCESSING[layout]
    if "crop" in found and "resize" not in found:
        found["resize"] = fallback.at(found["crop"]).resize
    try:
        preprocessing = Preprocessing(
            **{
                "interpolation": fallback.interpolation,
                **found,
                "assumed": tuple(name for name in fallback.assumed if name not in found),
            }
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    classes = None
    if labels := config.get("label_names") or own.get("label_names"):
        names = [labels[str(i)] for i in range(len(labels))] if isinstance(labels, dict) else labels
        classes = unique_names([str(name) for name in names])
    elif config.get("num_classes", own.get("num_classes")) == 1000 and _IMAGENET.search(
        str(own.get("tag"))
    ):
        classes = imagenet_classes()
    return Stated(
        options={"in_channels": arguments.get("in_chans", channels)},
        classes=classes,
        preprocessing=preprocessing,
    )


def files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """File name -> JSON content, of a folder for a network with this configuration.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` opens it.

    Raises:
        CheckpointError: images are prepared otherwise than by resizing and cropping.
    """
    rule = config.preprocessing
    if rule.resize_mode != "crop":
        raise CheckpointError(
            f"timm's layout has no place for resize_mode {rule.resize_mode}, only for crop"
        )
    arch = VARIANTS[config.model]
    content: dict[str, Any] = {
        "architecture": config.model,
        "num_classes": config.num_classes,
        "num_features": arch.classifier_channels or arch.channels[-1],
        "global_pool": "avg",
    }
    if config.classes is not None:
        content["label_names"] = list(config.classes)
    content["pretrained_cfg"] = {
        "custom_load": False,
        "input_size": [3, rule.crop, rule.crop],
        "fixed_input_size": False,
        "interpolation": rule.interpolation,
        # rounded down after division by it: half a pixel more keeps it on the right side
        "crop_pct": rule.crop / (rule.resize + 0.5) if rule.resize > rule.crop else 1.0,
        "crop_mode": "center",
        "mean": list(rule.mean),
        "std": list(rule.std),
        "num_classes": config.num_classes,
        "pool_size": [-(-rule.crop // 32)] * 2,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }
    return {"config.json": content}
