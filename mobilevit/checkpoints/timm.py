"""timm's layout of MobileViT and MobileViTv2 classifiers.

timm's conversion of the authors' v1 weights reversed the input channels of the first convolution,
so all of its weights take red-green-blue pixels in [0, 1] without mean or std. A folder, as on the
Hub, states in `config.json` how images are resized; for a file alone, the paper's way is assumed.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from mobilevit.checkpoints.adapter import CONFIG, Adapter, FolderConfig, JsonFiles
from mobilevit.checkpoints.keymap import CheckpointError, Layout, Row
from mobilevit.data.class_names import imagenet_classes, unique_names
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.mobilevit import MobileViTBlock, MobileViTv2Block

_FRAME = ("resize", "crop", "interpolation")
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
    block=MobileViTBlock,
    preprocessing=Preprocessing(assumed=_FRAME),
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
    block=MobileViTv2Block,
    preprocessing=Preprocessing(interpolation="bicubic", assumed=("channel_order", *_FRAME)),
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

_IMAGENET = re.compile(r"_in1k(_\d+)?$")
"""How tags of weights end that were last trained on ImageNet-1k, perhaps with an image size."""


def read_config(files: JsonFiles, layout: Layout, file: str) -> FolderConfig:
    """Read what `config.json` states; see `Adapter`."""
    config = files[CONFIG]
    if unknown := [
        key
        for key in config.get("model_args") or {}
        if key not in ("in_chans", "num_classes") and "drop" not in key
    ]:
        raise CheckpointError(f"{file}: model_args {', '.join(unknown)} are not supported")
    values = {**(config.get("pretrained_cfg") or {}), **config}
    if values.get("crop_mode", "center") != "center":
        raise CheckpointError(f"{file}: crop_mode {values['crop_mode']} is not supported")
    stated = {
        key: tuple(map(float, values[key])) if key != "interpolation" else values[key]
        for key in ("interpolation", "mean", "std")
        if values.get(key) is not None
    }
    _, height, width = values.get("input_size") or (3, None, None)
    if height != width:
        raise CheckpointError(f"{file}: input_size {height} x {width} is not square")
    if width is not None:
        share = values.get("crop_pct")
        resize = math.floor(width / share) if share else layout.preprocessing.at(width).resize
        stated |= {"crop": width, "resize": resize}  # rounded as timm does
    return FolderConfig(classes=_class_names(values), preprocessing=stated)


def _class_names(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    if labels := values.get("label_names"):
        return unique_names(labels)
    if values.get("num_classes") == 1000 and _IMAGENET.search(str(values.get("tag"))):
        return imagenet_classes()
    return None


def write_config(config: ModelConfig) -> JsonFiles:
    """The JSON files of a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    preprocessing, mode = config.preprocessing, config.preprocessing.resize_mode
    if mode != "crop":
        raise CheckpointError(f"timm's layout has no place for resize_mode {mode}, only for crop")
    margin = preprocessing.resize > preprocessing.crop
    pretrained = {
        "input_size": [3, preprocessing.crop, preprocessing.crop],
        "interpolation": preprocessing.interpolation,
        # half a pixel more, so that timm's rounding down gives `resize` again
        "crop_pct": preprocessing.crop / (preprocessing.resize + 0.5) if margin else 1.0,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": config.num_classes,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }
    content = {
        "architecture": config.model,
        "num_classes": config.num_classes,
        "pretrained_cfg": pretrained,
    }
    if config.classes is not None:
        content["label_names"] = list(config.classes)
    return {CONFIG: content}


ADAPTER = Adapter(name="timm", layouts=(V1, V2), read_config=read_config, write_config=write_config)
