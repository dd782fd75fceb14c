"""transformers' layout of MobileViT and MobileViTv2 image classifiers.

A folder holds `config.json` (the network), `model.safetensors` or `pytorch_model.bin` (the weights)
and `preprocessor_config.json`, whose `do_flip_channel_order` says whether pixels become
blue-green-red; its weights are the authors', unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilevit.checkpoints.config import ModelConfig, Stated, distinct
from mobilevit.checkpoints.keymap import CheckpointError, Layout, Row
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.models.variants import VARIANTS

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

LAYOUTS = (V1, V2)

PREPROCESSING = {
    ("", 1): Preprocessing(
        channel_order="bgr", assumed=("channel_order", "resize", "crop", "interpolation")
    ),
    ("", 2): Preprocessing(
        interpolation="bicubic", assumed=("channel_order", "resize", "crop", "interpolation")
    ),
}
"""Where there is no `preprocessor_config.json`."""

_RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""

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


def stated(
    config: Mapping[str, Any], processor: Mapping[str, Any] | None, *, version: int, file: str
) -> Stated:
    """What a folder's JSON files say beside the weights.

    Args:
        config: `config.json`.
        processor: `preprocessor_config.json`, if there is one.
        version: 1 or 2, of the network.
        file: what to call the folder in messages.

    Raises:
        CheckpointError: it asks for what this library's networks or pictures' preparation are not.
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
    if version == 1:
        options["heads"] = values["num_attention_heads"]
    for key, (ours, default) in (_OPTIONS_V1 if version == 1 else _OPTIONS_V2).items():
        options[ours] = values.get(key, default)
    return Stated(
        options=options,
        classes=_names(config, file=file),
        preprocessing=None if processor is None else _preprocessing(processor, version, file),
    )


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
    return distinct(names)


def _preprocessing(values: Mapping[str, Any], version: int, file: str) -> Preprocessing:
    """The processor's rule as ours.

    Older files give `size` as a number; files of 2022 say `do_flip_channel_order` for v1 and v2.
    """

    def refuse(key: str) -> CheckpointError:
        return CheckpointError(
            f"{file}: {key} = {values[key]!r} in preprocessor_config.json is not something that "
            "pictures' preparation here can do; it resizes the short side, cuts the centre out "
            "and divides by 255"
        )

    for key, wanted in (
        ("do_resize", True),
        ("do_center_crop", True),
        ("do_rescale", True),
        ("do_normalize", False),
    ):
        if (value := values.get(key)) is not None and value is not wanted:
            raise refuse(key)
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise refuse("rescale_factor")
    found: dict[str, Any] = {}
    if (size := values.get("size")) is not None:
        resize = size.get("shortest_edge") if isinstance(size, Mapping) else size
        if not isinstance(resize, int):
            raise refuse("size")
        found["resize"] = resize
    if (size := values.get("crop_size")) is not None:
        sides = {*size.values()} if isinstance(size, Mapping) else {size}
        if len(sides) != 1:
            raise refuse("crop_size")
        found["crop"] = sides.pop()
    if (resample := values.get("resample")) is not None:
        if resample not in _RESAMPLE:
            raise refuse("resample")
        found["interpolation"] = _RESAMPLE[resample]
    if (flip := values.get("do_flip_channel_order")) is not None:
        found["channel_order"] = "bgr" if flip else "rgb"
    fallback = PREPROCESSING["", version]
    assumed = tuple(name for name in fallback.assumed if name not in found)
    try:
        return Preprocessing(
            **{
                "channel_order": fallback.channel_order,
                "interpolation": fallback.interpolation,
                **found,
            },
            assumed=assumed,
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """File name -> JSON content, of a folder for a network with this configuration.

    Raises:
        CheckpointError: transformers has no place for an option or for the preprocessing.
    """
    arch = VARIANTS[config.model]
    given = {**config.options}
    common: dict[str, Any] = {
        "num_channels": given.pop("in_channels", 3),
        "image_size": config.preprocessing.crop,
        "patch_size": _one(given.pop("patch_sizes", [2]), "patch_sizes"),
        "expand_ratio": float(arch.expansion),
        "conv_kernel_size": given.pop("kernel_size", 3),
        "output_stride": given.pop("output_stride", 32),
        "layer_norm_eps": 1e-5,
        "dtype": "float32",
    }
    dropout = given.pop("dropout", arch.dropout)
    attention_dropout = given.pop("attention_dropout", 0.0)
    ffn_dropout = given.pop("ffn_dropout", 0.0)
    classifier_dropout = given.pop("classifier_dropout", arch.classifier_dropout)
    if arch.version == 1:
        heads = given.pop("heads", 4)
        own = {
            "architectures": ["MobileViTForImageClassification"],
            "model_type": "mobilevit",
            "hidden_sizes": list(arch.dims),
            "neck_hidden_sizes": [arch.stem, *arch.channels, arch.classifier_channels],
            "num_attention_heads": heads if isinstance(heads, int) else _one(heads, "heads"),
            "mlp_ratio": 2.0,
            "hidden_act": "silu",
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": attention_dropout,
            "classifier_dropout_prob": classifier_dropout,
            "qkv_bias": True,
        }
        if ffn_dropout:
            given["ffn_dropout"] = ffn_dropout
    else:
        own = {
            "architectures": ["MobileViTV2ForImageClassification"],
            "model_type": "mobilevitv2",
            "width_multiplier": arch.channels[-1] / 512,
            "hidden_act": "swish",
            "n_attn_blocks": [2, 4, 3],
            "base_attn_unit_dims": [128, 192, 256],
            "ffn_multiplier": 2,
            "attn_dropout": attention_dropout,
            "ffn_dropout": ffn_dropout,
            "classifier_dropout_prob": classifier_dropout,
        }
    if given:
        raise CheckpointError(f"transformers' layout has no place for {', '.join(given)}")
    if (config.preprocessing.mean, config.preprocessing.std) != ((0.0,) * 3, (1.0,) * 3):
        raise CheckpointError("transformers' processor of MobileViT has no place for mean and std")
    names = config.classes or [f"LABEL_{index}" for index in range(config.num_classes)]
    labels = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    size = config.preprocessing.crop
    numbers = {name: number for number, name in _RESAMPLE.items()}
    return {
        "config.json": own | common | labels,
        "preprocessor_config.json": {
            "image_processor_type": "MobileViTImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": config.preprocessing.resize},
            "resample": numbers[config.preprocessing.interpolation],
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_flip_channel_order": config.preprocessing.channel_order == "bgr",
        },
    }


def _one(values: list[int], option: str) -> int:
    """The number that all of these are."""
    if len({*values}) != 1:
        raise CheckpointError(
            f"transformers' layout has one number for {option}, not one a stage: {values}"
        )
    return values[0]
