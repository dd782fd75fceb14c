"""timm's layout of MobileViT and MobileViTv2 classifiers.

timm's conversion of the authors' v1 weights reversed the input channels of the first convolution,
so all of its weights take red-green-blue pixels in [0, 1] without mean or std. A file of weights
does not say how its pictures were resized: the paper's rule is assumed.
"""

from __future__ import annotations

from mobilevit.checkpoints.keymap import Layout, Row
from mobilevit.data.preprocessing import Preprocessing

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

PREPROCESSING = {
    1: Preprocessing(assumed=("resize", "crop", "interpolation")),
    2: Preprocessing(
        interpolation="bicubic", assumed=("channel_order", "resize", "crop", "interpolation")
    ),
}
