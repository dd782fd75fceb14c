"""The authors' checkpoints: flat state dicts of the networks of both papers.

The 2021 weights of v1 expect blue-green-red pixels, because that code read images with OpenCV. The
code behind v2's weights and v1's later ones read red-green-blue. No file states it: blue-green-red
is assumed for v1, except for files with RangeAugment's scalars, which are later, and red-green-blue
for v2. The published checkpoints of v1 are known by their names.

DeepLabv3 on v1 has two generations, which differ in a tensor's name. The 2021 code resized logits
without aligned corners and images to a square of 512 px; later code aligned corners and kept an
image's aspect ratio. No file states its output stride.
"""

from dataclasses import replace
from typing import Any

from mobilevit.checkpoints.adapter import Adapter
from mobilevit.checkpoints.keymap import Layout, Row
from mobilevit.models.config import Preprocessing
from mobilevit.models.mobilevit import MobileViTBlock, MobileViTv2Block

_RANGE_AUGMENT = "neural_augmentor."
"""RangeAugment's scalars, which inference does not use."""

_SHARED = (
    Row("conv_norm", "backbone.stem", "conv_1"),
    Row("conv_norm", "backbone.stage{s}.{i}.expand", "layer_{s}.{i}.block.exp_1x1"),
    Row("conv_norm", "backbone.stage{s}.{i}.depthwise", "layer_{s}.{i}.block.conv_3x3"),
    Row("conv_norm", "backbone.stage{s}.{i}.project", "layer_{s}.{i}.block.red_1x1"),
)
# A transformer's last norm is numbered after its layers, of which the stages have 2, 4 and 3.
_LAST_NORMS = (
    Row("same", "backbone.stage3.1.norm", "layer_3.1.global_rep.2"),
    Row("same", "backbone.stage4.1.norm", "layer_4.1.global_rep.4"),
    Row("same", "backbone.stage5.1.norm", "layer_5.1.global_rep.3"),
)
_BLOCK = "backbone.stage{s}.1"
_LAYER = "backbone.stage{s}.1.transformer.{t}"
_ATTENTION = "layer_{s}.1.global_rep.{t}.pre_norm_mha"
_V2_ATTENTION = "layer_{s}.1.global_rep.{t}.pre_norm_attn"
_FFN = "layer_{s}.1.global_rep.{t}.pre_norm_ffn"

V1 = Layout(
    name="authors'",
    block=MobileViTBlock,
    preprocessing=Preprocessing(channel_order="bgr", assumed=("channel_order",)),
    conv=".block.conv",
    norm=".block.norm",
    rows=(
        Row("conv_norm", f"{_BLOCK}.local_conv", "layer_{s}.1.local_rep.conv_3x3"),
        Row("same", f"{_BLOCK}.local_project", "layer_{s}.1.local_rep.conv_1x1.block.conv"),
        Row("same", f"{_LAYER}.attention_norm", f"{_ATTENTION}.0"),
        Row("same", f"{_LAYER}.attention.qkv", f"{_ATTENTION}.1.qkv_proj"),
        Row("same", f"{_LAYER}.attention.out", f"{_ATTENTION}.1.out_proj"),
        Row("same", f"{_LAYER}.feed_forward_norm", f"{_FFN}.0"),
        Row("same", f"{_LAYER}.feed_forward.expand", f"{_FFN}.1"),
        Row("same", f"{_LAYER}.feed_forward.project", f"{_FFN}.4"),
        *_LAST_NORMS,
        Row("conv_norm", f"{_BLOCK}.global_project", "layer_{s}.1.conv_proj"),
        Row("conv_norm", f"{_BLOCK}.fusion", "layer_{s}.1.fusion"),
        *_SHARED,
        Row("conv_norm", "expand", "conv_1x1_exp"),
        Row("same", "head", "classifier.fc"),
    ),
)

V2 = Layout(
    name="authors'",
    block=MobileViTv2Block,
    ignored=(_RANGE_AUGMENT,),
    preprocessing=Preprocessing(interpolation="bicubic", assumed=("channel_order",)),
    conv=".block.conv",
    norm=".block.norm",
    rows=(
        Row("conv_norm", f"{_BLOCK}.local_conv", "layer_{s}.1.local_rep.0"),
        Row("same", f"{_BLOCK}.local_project", "layer_{s}.1.local_rep.1.block.conv"),
        Row("same", f"{_LAYER}.attention_norm", f"{_V2_ATTENTION}.0"),
        Row("pointwise", f"{_LAYER}.attention.qkv", f"{_V2_ATTENTION}.1.qkv_proj.block.conv"),
        Row("pointwise", f"{_LAYER}.attention.out", f"{_V2_ATTENTION}.1.out_proj.block.conv"),
        Row("same", f"{_LAYER}.feed_forward_norm", f"{_FFN}.0"),
        Row("pointwise", f"{_LAYER}.feed_forward.expand", f"{_FFN}.1.block.conv"),
        Row("pointwise", f"{_LAYER}.feed_forward.project", f"{_FFN}.3.block.conv"),
        *_LAST_NORMS,
        Row("conv_norm", f"{_BLOCK}.global_project", "layer_{s}.1.conv_proj"),
        *_SHARED,
        Row("same", "head", "classifier.1"),
    ),
)


def _encoder(layout: Layout) -> tuple[Row, ...]:
    """A classifier's rows for its backbone, as it is named in the authors' other networks."""
    return tuple(
        row._replace(theirs=f"encoder.{row.theirs}")
        for row in layout.rows
        if row.ours.startswith("backbone.")
    )


_SSD_ROWS = (
    *(
        Row("conv_norm", f"extra.{index}.{part}", f"extra_layers.os_{stride}.{theirs}")
        for index, stride in enumerate((64, 128, 256))
        for part, theirs in (("depthwise", "dw_conv"), ("pointwise", "pw_conv"))
    ),
    Row("same", "pool", "extra_layers.os_-1.1.block.conv"),
    Row("conv_norm", "heads.{h}.project", "ssd_heads.{h}.proj_layer"),
    Row("conv_norm", "heads.{h}.depthwise", "ssd_heads.{h}.loc_cls_layer.dw_conv"),
    Row("same", "heads.5.predict", "ssd_heads.5.loc_cls_layer.block.conv"),
    Row("same", "heads.{h}.predict", "ssd_heads.{h}.loc_cls_layer.pw_conv.block.conv"),
)
SSD_V1, SSD_V2 = (
    replace(
        layout,
        head="ssdlite_",
        preprocessing=replace(layout.preprocessing, resize_mode="stretch", resize=320, crop=320),
        rows=(*_encoder(layout), *_SSD_ROWS),
    )
    for layout in (V1, V2)
)

_ASPP = "seg_head.aspp.aspp_layer."
_ASPP_ROWS = (
    Row("conv_norm", "context.pool", f"{_ASPP}convs.4.aspp_pool.conv_1x1"),
    Row("conv_norm", "context.branches.{i}", f"{_ASPP}convs.{{i}}"),
    Row("conv_norm", "context.project", f"{_ASPP}project"),
)
_PSP = "seg_head.psp_layer."
_PSP_ROWS = (
    Row("conv_norm", "context.branches.{i}", f"{_PSP}psp_branches.{{i}}.1"),
    Row("conv_norm", "context.fusion", f"{_PSP}fusion.0"),
)
_SEGMENTER_ROWS = (
    Row("conv_norm", "aux.conv", "seg_head.aux_head.0"),
    Row("same", "aux.predict", "seg_head.aux_head.2.block.conv"),
    Row("same", "predict", "seg_head.classifier.block.conv"),
)
_SHORT_512: dict[str, Any] = {"resize_mode": "shortest_edge", "resize": 512, "crop": 512}
DEEPLAB_V1_2021 = replace(
    V1,
    head="deeplabv3_",
    align_corners=False,
    preprocessing=V1.preprocessing.with_fields({**_SHORT_512, "resize_mode": "stretch"}),
    rows=(
        *_encoder(V1),
        *_ASPP_ROWS,
        Row("same", "predict", "seg_head.classifier.classifier.block.conv"),
    ),
)
DEEPLAB_V1, DEEPLAB_V2, PSP_V1, PSP_V2 = (
    replace(
        layout,
        head=head,
        ignored=(_RANGE_AUGMENT,),
        align_corners=True,
        output_stride=output_stride,
        preprocessing=preprocessing,
        rows=(*_encoder(layout), *rows, *_SEGMENTER_ROWS),
    )
    for head, rows, stride in (("deeplabv3_", _ASPP_ROWS, 8), ("pspnet_", _PSP_ROWS, 16))
    for layout, output_stride, preprocessing in (
        (V1, stride, Preprocessing(**_SHORT_512)),
        (V2, 16, replace(V2.preprocessing, **_SHORT_512)),
    )
)
# Files that differ from those of 2021 by their RangeAugment scalars alone.
V1_LATER, SSD_V1_LATER, DEEPLAB_V1_2021_LATER = (
    replace(
        layout,
        ignored=(_RANGE_AUGMENT,),
        preprocessing=layout.preprocessing.with_fields({"channel_order": "rgb"}),
    )
    for layout in (V1, SSD_V1, DEEPLAB_V1_2021)
)

ADAPTER = Adapter(
    name="authors",
    layouts=(
        *(V1, V2, SSD_V1, SSD_V2),
        *(DEEPLAB_V1_2021, DEEPLAB_V1, DEEPLAB_V2, PSP_V1, PSP_V2),
        *(V1_LATER, SSD_V1_LATER, DEEPLAB_V1_2021_LATER),
    ),
)
