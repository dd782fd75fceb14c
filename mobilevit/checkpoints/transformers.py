"""transformers' layout of MobileViT and MobileViTv2: image classifiers, and DeepLabv3.

A folder holds `config.json` (the network), `model.safetensors` or `pytorch_model.bin` (the weights)
and `preprocessor_config.json`, whose `do_flip_channel_order` says whether pixels become
blue-green-red; its weights are the authors', unchanged.

transformers' DeepLabv3 ends ahead of the last step: its logits are at the output stride, ours are
stretched to the image's size. It has no auxiliary head. Below an output stride of 32 its v2 leaves
out the dilation of the local convolutions that the authors' code has, so that it gives other
logits; v1 has no such dilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobilevit.checkpoints import transformers_processor
from mobilevit.checkpoints.keymap import CheckpointError, Layout, Row, Stated
from mobilevit.data.class_names import unique_names
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import VARIANTS, defaults, split_name

_BLOCK = "backbone.stage{s}.1"
_LAYER = f"{_BLOCK}.transformer.{{t}}"


def _shared(encoder: str) -> tuple[Row, ...]:
    """Rows that both versions have, with `encoder` ahead of all but the classifier."""
    parts = (("expand", "expand_1x1"), ("depthwise", "conv_3x3"), ("project", "reduce_1x1"))
    stages = (  # the first two stages are lists, the others begin with a layer of their own
        ("backbone.stage1.{i}", f"{encoder}.encoder.layer.0.layer.{{i}}"),
        ("backbone.stage2.{i}", f"{encoder}.encoder.layer.1.layer.{{i}}"),
        ("backbone.stage{s}.0", f"{encoder}.encoder.layer.{{s-1}}.downsampling_layer"),
    )
    block = f"{encoder}.encoder.layer.{{s-1}}"
    layer = f"{block}.transformer.layer.{{t}}"
    return (
        Row("conv_norm", "backbone.stem", f"{encoder}.conv_stem"),
        *(
            Row("conv_norm", f"{ours}.{part}", f"{theirs}.{their_part}")
            for ours, theirs in stages
            for part, their_part in parts
        ),
        Row("conv_norm", f"{_BLOCK}.local_conv", f"{block}.conv_kxk"),
        Row("same", f"{_BLOCK}.local_project", f"{block}.conv_1x1.convolution"),
        Row("same", f"{_LAYER}.attention_norm", f"{layer}.layernorm_before"),
        Row("same", f"{_LAYER}.feed_forward_norm", f"{layer}.layernorm_after"),
        Row("same", f"{_BLOCK}.norm", f"{block}.layernorm"),
        Row("conv_norm", f"{_BLOCK}.global_project", f"{block}.conv_projection"),
        Row("same", "head", "classifier"),
    )


_V1_BLOCK = "mobilevit.encoder.layer.{s-1}"
_V1_LAYER = f"{_V1_BLOCK}.transformer.layer.{{t}}"
_V2_LAYER = "mobilevitv2.encoder.layer.{s-1}.transformer.layer.{t}"

V1 = Layout(
    name="transformers",
    version=1,
    conv=".convolution",
    norm=".normalization",
    rows=(
        *_shared("mobilevit"),
        Row("query_key_value", f"{_LAYER}.attention.qkv", f"{_V1_LAYER}.attention.attention"),
        Row("same", f"{_LAYER}.attention.out", f"{_V1_LAYER}.attention.output.dense"),
        Row("same", f"{_LAYER}.feed_forward.expand", f"{_V1_LAYER}.intermediate.dense"),
        Row("same", f"{_LAYER}.feed_forward.project", f"{_V1_LAYER}.output.dense"),
        Row("conv_norm", f"{_BLOCK}.fusion", f"{_V1_BLOCK}.fusion"),
        Row("conv_norm", "expand", "mobilevit.conv_1x1_exp"),
    ),
)

V2 = Layout(
    name="transformers",
    version=2,
    conv=".convolution",
    norm=".normalization",
    rows=(
        *_shared("mobilevitv2"),
        Row("pointwise", f"{_LAYER}.attention.qkv", f"{_V2_LAYER}.attention.qkv_proj.convolution"),
        Row("pointwise", f"{_LAYER}.attention.out", f"{_V2_LAYER}.attention.out_proj.convolution"),
        Row("pointwise", f"{_LAYER}.feed_forward.expand", f"{_V2_LAYER}.ffn.conv1.convolution"),
        Row("pointwise", f"{_LAYER}.feed_forward.project", f"{_V2_LAYER}.ffn.conv2.convolution"),
    ),
)

_HEAD = "segmentation_head."
DEEPLAB_V1, DEEPLAB_V2 = (
    replace(
        layout,
        head="deeplabv3_",
        marks=(_HEAD,),
        rows=(
            *(row for row in layout.rows if row.ours.startswith("backbone.")),
            Row("conv_norm", "context.pool", f"{_HEAD}aspp.convs.4.conv_1x1"),
            Row("conv_norm", "context.branches.{i}", f"{_HEAD}aspp.convs.{{i}}"),
            Row("conv_norm", "context.project", f"{_HEAD}aspp.project"),
            Row("same", "predict", f"{_HEAD}classifier.convolution"),
        ),
    )
    for layout in (V1, V2)
)

LAYOUTS = (DEEPLAB_V1, DEEPLAB_V2, V1, V2)  # a classifier's layout matches the others' files too

_FRAME = ("resize", "crop", "interpolation")
_SQUASH_512 = Preprocessing(resize_mode="stretch", resize=512, crop=512)
PREPROCESSING = {
    V1: Preprocessing(channel_order="bgr", assumed=("channel_order", *_FRAME)),
    V2: Preprocessing(interpolation="bicubic", assumed=("channel_order", *_FRAME)),
    DEEPLAB_V1: replace(
        _SQUASH_512, channel_order="bgr", assumed=("channel_order", "resize_mode", *_FRAME)
    ),
    DEEPLAB_V2: replace(
        _SQUASH_512, interpolation="bicubic", assumed=("channel_order", "resize_mode", *_FRAME)
    ),
}
"""Where there is no `preprocessor_config.json`."""

# What transformers takes where a config.json is silent.
_DEFAULTS = {
    "patch_size": 2,
    "num_attention_heads": 4,
    "conv_kernel_size": 3,
    "output_stride": 32,
    "num_channels": 3,
    "layer_norm_eps": 1e-5,
    "hidden_act": "silu",
}
_OPTIONS_V1 = {  # theirs -> ours, and their default
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.0),
    "classifier_dropout_prob": ("classifier_dropout", 0.1),
}
_OPTIONS_V2 = {
    "attn_dropout": ("attention_dropout", 0.0),
    "ffn_dropout": ("ffn_dropout", 0.0),
}
_OPTIONS_DEEPLAB = {
    "aspp_out_channels": ("channels", None),
    "atrous_rates": ("rates", (6, 12, 18)),
    "aspp_dropout_prob": ("aspp_dropout", 0.1),
    "classifier_dropout_prob": ("classifier_dropout", 0.1),
    "align_corners": ("align_corners", None),  # ours alone: transformers ignores it
}


def stated(
    config: Mapping[str, Any], processor: Mapping[str, Any] | None, *, layout: Layout, file: str
) -> Stated:
    """What a folder's JSON files say beside the weights.

    Args:
        config: `config.json`.
        processor: `preprocessor_config.json`, if there is one.
        layout: of the weights beside them.
        file: what to call the folder in messages.

    Raises:
        CheckpointError: it asks for what this library's networks or images' preparation are not.
    """
    values = {**_DEFAULTS, **config}
    for key, wanted in (("layer_norm_eps", (1e-5,)), ("hidden_act", ("silu", "swish"))):
        if values[key] not in wanted:
            raise CheckpointError(f"{file}: {key} is {values[key]}; only {wanted[0]} is known here")
    patch, kernel = values["patch_size"], values["conv_kernel_size"]
    options: dict[str, Any] = {
        "patch_sizes": list(patch if isinstance(patch, list) else [patch]) * 3,
        "kernel_size": kernel,
        "output_stride": values["output_stride"],
        "in_channels": values["num_channels"],
    }
    if len(options["patch_sizes"]) != 3:
        raise CheckpointError(f"{file}: patches of {patch} are not square")
    if layout.version == 1:
        options["heads"] = values["num_attention_heads"]
    named: dict[str, tuple[str, Any]] = _OPTIONS_V1 if layout.version == 1 else _OPTIONS_V2
    for key, (ours, default) in (named | (_OPTIONS_DEEPLAB if layout.head else {})).items():
        options[ours] = values.get(key, default)
    preprocessing = None
    if processor is not None:
        preprocessing = transformers_processor.preprocessing(
            processor, fallback=PREPROCESSING[layout], whole=bool(layout.head), file=file
        )
    return Stated(options, _names(config, file=file), preprocessing)


def _names(config: Mapping[str, Any], *, file: str) -> tuple[str, ...] | None:
    """The labels, where they are names and not numbers alone."""
    labels = config.get("id2label")
    if not labels:
        return None
    try:
        names = [str(labels[str(index)]) for index in range(len(labels))]
    except KeyError as error:
        raise CheckpointError(f"{file}: id2label has no entry {error}") from error
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        return None
    return unique_names(names)


def files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """File name -> JSON content, of a folder for a network with this configuration.

    Raises:
        CheckpointError: transformers has no place for an option or for the preprocessing.
    """
    head, variant = split_name(config.model)
    arch, own = VARIANTS[variant], defaults(config.model, config.options.get("output_stride"))
    given = own | dict(config.options)
    common: dict[str, Any] = {
        "num_channels": given.pop("in_channels", 3),
        "image_size": config.preprocessing.crop,
        "patch_size": _one(given.pop("patch_sizes", [2]), "patch_sizes"),
        "expand_ratio": float(arch.expansion),
        "conv_kernel_size": given.pop("kernel_size", 3),
        "output_stride": given.pop("output_stride"),
        "layer_norm_eps": 1e-5,
        "dtype": "float32",
        "classifier_dropout_prob": given.pop("classifier_dropout"),
    }
    task = "ImageClassification"
    if head.prefix:
        task = "SemanticSegmentation"
        del given["aux"]
        for theirs, (ours, _) in _OPTIONS_DEEPLAB.items():
            if ours in given:
                value = given.pop(ours)
                common[theirs] = list(value) if ours == "rates" else value
        common["semantic_loss_ignore_index"] = 255
    dropout = given.pop("dropout")
    attention_dropout = given.pop("attention_dropout", 0.0)
    ffn_dropout = given.pop("ffn_dropout", 0.0)
    if arch.version == 1:
        heads = given.pop("heads", 4)
        own = {
            "architectures": [f"MobileViTFor{task}"],
            "model_type": "mobilevit",
            "hidden_sizes": list(arch.dims),
            "neck_hidden_sizes": [arch.stem, *arch.channels, arch.classifier_channels],
            "num_attention_heads": heads if isinstance(heads, int) else _one(heads, "heads"),
            "mlp_ratio": 2.0,
            "hidden_act": "silu",
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": attention_dropout,
            "qkv_bias": True,
        }
        if ffn_dropout:
            given["ffn_dropout"] = ffn_dropout
    else:
        own = {
            "architectures": [f"MobileViTV2For{task}"],
            "model_type": "mobilevitv2",
            "width_multiplier": arch.channels[-1] / 512,
            "hidden_act": "swish",
            "n_attn_blocks": [2, 4, 3],
            "base_attn_unit_dims": [128, 192, 256],
            "ffn_multiplier": 2,
            "attn_dropout": attention_dropout,
            "ffn_dropout": ffn_dropout,
        }
    if given:
        raise CheckpointError(f"transformers' layout has no place for {', '.join(given)}")
    names = config.classes or [f"LABEL_{index}" for index in range(config.num_classes)]
    labels = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    return {
        "config.json": own | common | labels,
        "preprocessor_config.json": transformers_processor.content(config),
    }


def unsaid(config: ModelConfig) -> list[str]:
    """What such a folder does not hold of this network, or transformers does otherwise."""
    head, variant = split_name(config.model)
    options = defaults(config.model) | dict(config.options)
    notes = []
    if options.get("aux"):
        notes.append("the auxiliary head, which training alone uses")
    if options.get("align_corners"):
        notes.append("aligned corners: transformers' processor stretches logits without them")
    if head.prefix and config.preprocessing.resize_mode == "shortest_edge":
        notes.append("sides rounded down to multiples of 32: transformers keeps them as they come")
    if VARIANTS[variant].version == 2 and options["output_stride"] < 32:
        notes.append(
            f"the dilation of local convolutions at an output stride of {options['output_stride']}:"
            " transformers leaves it out, and its logits differ"
        )
    return notes


def _one(values: list[int], option: str) -> int:
    """The number that all of these are."""
    if len({*values}) != 1:
        raise CheckpointError(
            f"transformers' layout has one number for {option}, not one a stage: {values}"
        )
    return values[0]
