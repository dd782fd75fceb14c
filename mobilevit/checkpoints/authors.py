"""The authors' checkpoints: flat state dicts, the networks of both papers.

The 2021 weights of v1 expect blue-green-red pixels, since the code of that time read images with
OpenCV. The code behind v2's weights read red-green-blue; that is taken for v2, and said to be
assumed, because no file states it. So did the code behind v1's later weights, whose files look like
those of 2021; only the ones that were trained with RangeAugment can be told, by its scalars.

DeepLabv3 on v1 is told by a tensor's name: the 2021 code stretched logits without aligned corners
and squashed images to 512 px, the later code aligned corners and kept an image's shape. No file
states its output stride; `custom_stride` is what the authors' recipes had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mobilevit.checkpoints.keymap import Layout, Row
from mobilevit.models.config import Preprocessing

ADE20K_CLASSES = 150
"""So many has no other data set that the authors used."""

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
_THEIR_LAYER = "layer_{s}.1.global_rep.{t}"

V1 = Layout(
    name="authors'",
    version=1,
    conv=".block.conv",
    norm=".block.norm",
    rows=(
        Row("conv_norm", f"{_BLOCK}.local_conv", "layer_{s}.1.local_rep.conv_3x3"),
        Row("same", f"{_BLOCK}.local_project", "layer_{s}.1.local_rep.conv_1x1.block.conv"),
        Row("same", f"{_LAYER}.attention_norm", f"{_THEIR_LAYER}.pre_norm_mha.0"),
        Row("same", f"{_LAYER}.attention.qkv", f"{_THEIR_LAYER}.pre_norm_mha.1.qkv_proj"),
        Row("same", f"{_LAYER}.attention.out", f"{_THEIR_LAYER}.pre_norm_mha.1.out_proj"),
        Row("same", f"{_LAYER}.feed_forward_norm", f"{_THEIR_LAYER}.pre_norm_ffn.0"),
        Row("same", f"{_LAYER}.feed_forward.expand", f"{_THEIR_LAYER}.pre_norm_ffn.1"),
        Row("same", f"{_LAYER}.feed_forward.project", f"{_THEIR_LAYER}.pre_norm_ffn.4"),
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
    version=2,
    conv=".block.conv",
    norm=".block.norm",
    rows=(
        Row("conv_norm", f"{_BLOCK}.local_conv", "layer_{s}.1.local_rep.0"),
        Row("same", f"{_BLOCK}.local_project", "layer_{s}.1.local_rep.1.block.conv"),
        Row("same", f"{_LAYER}.attention_norm", f"{_THEIR_LAYER}.pre_norm_attn.0"),
        Row(
            "pointwise",
            f"{_LAYER}.attention.qkv",
            f"{_THEIR_LAYER}.pre_norm_attn.1.qkv_proj.block.conv",
        ),
        Row(
            "pointwise",
            f"{_LAYER}.attention.out",
            f"{_THEIR_LAYER}.pre_norm_attn.1.out_proj.block.conv",
        ),
        Row("same", f"{_LAYER}.feed_forward_norm", f"{_THEIR_LAYER}.pre_norm_ffn.0"),
        Row(
            "pointwise",
            f"{_LAYER}.feed_forward.expand",
            f"{_THEIR_LAYER}.pre_norm_ffn.1.block.conv",
        ),
        Row(
            "pointwise",
            f"{_LAYER}.feed_forward.project",
            f"{_THEIR_LAYER}.pre_norm_ffn.3.block.conv",
        ),
        *_LAST_NORMS,
        Row("conv_norm", f"{_BLOCK}.global_project", "layer_{s}.1.conv_proj"),
        *_SHARED,
        Row("same", "head", "classifier.1"),
    ),
)


def _encoder(layout: Layout) -> tuple[Row, ...]:
    """A classifier's rows for its backbone, as it stands inside the authors' other networks."""
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
    replace(layout, head="ssdlite_", marks=("ssd_heads.",), rows=(*_encoder(layout), *_SSD_ROWS))
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
DEEPLAB_V1_2021 = replace(
    V1,
    head="deeplabv3_",
    marks=(_ASPP, "seg_head.classifier.classifier."),
    align_corners=False,
    rows=(
        *_encoder(V1),
        *_ASPP_ROWS,
        Row("same", "predict", "seg_head.classifier.classifier.block.conv"),
    ),
)
DEEPLAB_V1, DEEPLAB_V2 = (
    replace(
        layout,
        head="deeplabv3_",
        marks=(_ASPP, "seg_head.classifier.block."),
        align_corners=True,
        rows=(*_encoder(layout), *_ASPP_ROWS, *_SEGMENTER_ROWS),
    )
    for layout in (V1, V2)
)
PSP_V1, PSP_V2 = (
    replace(
        layout,
        head="pspnet_",
        marks=(_PSP,),
        align_corners=True,
        rows=(*_encoder(layout), *_PSP_ROWS, *_SEGMENTER_ROWS),
    )
    for layout in (V1, V2)
)
LAYOUTS = (V1, V2, SSD_V1, SSD_V2, DEEPLAB_V1_2021, DEEPLAB_V1, DEEPLAB_V2, PSP_V1, PSP_V2)

_SQUASH_320 = Preprocessing(resize_mode="stretch", resize=320, crop=320)
_SHORT_512 = Preprocessing(resize_mode="shortest_edge", resize=512, crop=512)
_SHORT_512_V2 = replace(_SHORT_512, interpolation="bicubic", assumed=("channel_order",))
PREPROCESSING = {
    V1: Preprocessing(channel_order="bgr"),
    V2: Preprocessing(interpolation="bicubic", assumed=("channel_order",)),
    SSD_V1: replace(_SQUASH_320, channel_order="bgr"),
    SSD_V2: replace(_SQUASH_320, interpolation="bicubic", assumed=("channel_order",)),
    DEEPLAB_V1_2021: Preprocessing(
        channel_order="bgr", resize_mode="stretch", resize=512, crop=512
    ),
    DEEPLAB_V1: _SHORT_512,
    DEEPLAB_V2: _SHORT_512_V2,
    PSP_V1: _SHORT_512,
    PSP_V2: _SHORT_512_V2,
}


def custom_stride(layout: Layout, classes: int | None) -> int:
    """The output stride of the authors' networks for segmentation in this layout.

    8 in the later recipe of DeepLabv3 on v1, and in later code for ADE20K, which is recognised by
    its 150 classes; 16 elsewhere.
    """
    is_ade20k = layout.align_corners and classes == ADE20K_CLASSES
    return 8 if layout == DEEPLAB_V1 or is_ade20k else 16


def generation(
    tensors: Mapping[str, Tensor], preprocessing: Preprocessing
) -> tuple[dict[str, Tensor], Preprocessing]:
    """Leave out what RangeAugment added, and correct the preprocessing where it did."""
    kept = {key: value for key, value in tensors.items() if not key.startswith(_RANGE_AUGMENT)}
    if len(kept) == len(tensors):
        return kept, preprocessing
    return kept, replace(preprocessing, channel_order="rgb")


_RANGE_AUGMENT = "neural_augmentor."
