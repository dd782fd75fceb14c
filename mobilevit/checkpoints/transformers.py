"""transformers' layout of MobileViT and MobileViTv2: image classifiers, and DeepLabv3.

A folder holds `config.json` (the network), `model.safetensors` or `pytorch_model.bin` (the authors'
weights, unchanged) and `preprocessor_config.json`, whose `do_flip_channel_order` states whether
pixels become blue-green-red.

transformers' DeepLabv3 has no auxiliary head and returns logits at the output stride; ours resizes
them to the image's size. Below an output stride of 32 its v2 omits the dilation of the local
convolutions that the authors' code has, so its logits differ; v1 has no such dilation.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mobilevit.checkpoints.adapter import CONFIG, PROCESSOR, Adapter, FolderConfig, JsonFiles
from mobilevit.checkpoints.keymap import CheckpointError, Layout, Row
from mobilevit.data.class_names import ADE20K_CLASSES, unique_names
from mobilevit.models.config import Interpolation, ModelConfig, Preprocessing
from mobilevit.models.mobilevit import MobileViTBlock, MobileViTv2Block
from mobilevit.models.registry import VARIANTS, defaults, split_name

log = logging.getLogger(__name__)

_FRAME = ("resize", "crop", "interpolation")
_BLOCK = "backbone.stage{s}.1"
_LAYER = f"{_BLOCK}.transformer.{{t}}"


def _shared(encoder: str) -> tuple[Row, ...]:
    """Rows of both blocks; all of their names but the classifier's begin with `encoder`."""
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
    block=MobileViTBlock,
    prefix="mobilevit.",
    preprocessing=Preprocessing(channel_order="bgr", assumed=("channel_order", *_FRAME)),
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
    block=MobileViTv2Block,
    prefix="mobilevitv2.",
    preprocessing=Preprocessing(interpolation="bicubic", assumed=("channel_order", *_FRAME)),
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
        preprocessing=replace(
            layout.preprocessing,
            resize_mode="stretch",
            resize=512,
            crop=512,
            assumed=("channel_order", "resize_mode", *_FRAME),
        ),
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

# Theirs -> our option, and what transformers assumes where `config.json` is silent.
_SHARED = {
    "num_channels": ("in_channels", 3),
    "patch_size": ("patch_sizes", 2),
    "conv_kernel_size": ("kernel_size", 3),
    "output_stride": ("output_stride", 32),
}
_OPTIONS: dict[type, dict[str, tuple[str, Any]]] = {
    MobileViTBlock: {
        "num_attention_heads": ("heads", 4),
        "hidden_dropout_prob": ("dropout", 0.1),
        "attention_probs_dropout_prob": ("attention_dropout", 0.0),
        "classifier_dropout_prob": ("classifier_dropout", 0.1),
    },
    MobileViTv2Block: {
        "attn_dropout": ("attention_dropout", 0.0),
        "ffn_dropout": ("ffn_dropout", 0.0),
    },
}
_DEEPLAB_OPTIONS = {
    "aspp_out_channels": ("channels", None),
    "atrous_rates": ("rates", (6, 12, 18)),
    "aspp_dropout_prob": ("aspp_dropout", 0.1),
    "classifier_dropout_prob": ("classifier_dropout", 0.1),
    "align_corners": ("align_corners", None),  # ours alone: transformers ignores it
}
_DROPPED = ("aux", "dropout", "classifier_dropout")
"""Options that may be lost, since inference does not use them."""

_RESAMPLE: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers -> names."""


def _option_table(block: type, head: str) -> dict[str, tuple[str, Any]]:
    return _SHARED | _OPTIONS[block] | (_DEEPLAB_OPTIONS if head else {})


def read_config(files: JsonFiles, layout: Layout, file: str) -> FolderConfig:
    """Read what the JSON files state; see `Adapter`."""
    config = files[CONFIG]
    for key, known in (("layer_norm_eps", (1e-5,)), ("hidden_act", ("silu", "swish"))):
        if (value := config.get(key, known[0])) not in known:
            raise CheckpointError(f"{file}: {key} is {value}; only {known[0]} is supported")
    options = {
        ours: config.get(theirs, default)
        for theirs, (ours, default) in _option_table(layout.block, layout.head).items()
    }
    patch = options["patch_sizes"]
    if isinstance(patch, list) and len(patch) != 1:
        raise CheckpointError(f"{file}: patches of {patch} are not square")
    options["patch_sizes"] = (patch if isinstance(patch, list) else [patch]) * 3
    return FolderConfig(
        options=options,
        classes=_class_names(config, file),
        preprocessing=_read_processor(files.get(PROCESSOR, {}), layout, file),
    )


def _class_names(config: Mapping[str, Any], file: str) -> tuple[str, ...] | None:
    """The labels, unless they are transformers' placeholders."""
    try:
        names = unique_names(config.get("id2label") or ())
    except KeyError as error:
        raise CheckpointError(f"{file}: id2label has no entry {error}") from error
    return None if names == _placeholders(len(names)) else names


def _placeholders(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(count))


def _read_processor(values: Mapping[str, Any], layout: Layout, file: str) -> dict[str, Any]:
    """Read the processor's file; older ones give `size` as a number, and `do_flip_channels`."""

    def refuse(key: str) -> CheckpointError:
        return CheckpointError(
            f"{file}: {key} = {values[key]!r} in {PROCESSOR} is not supported: images are resized "
            "by their short side, cropped at the centre and divided by 255"
        )

    for key, expected in (("do_resize", True), ("do_rescale", True), ("do_normalize", False)):
        if values.get(key) not in (None, expected):
            raise refuse(key)
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise refuse("rescale_factor")
    crops, size = values.get("do_center_crop") is not False, values.get("size")
    if layout.head and crops and size is not None:  # in segmentation nothing may be cut off
        log.info("%s crops images at the centre; here they are not cropped", file)
    crops = crops and not layout.head
    is_square = isinstance(size, Mapping) and "shortest_edge" not in size
    if crops and is_square:
        raise refuse("size")
    if not (crops or is_square or layout.head):
        raise refuse("do_center_crop")
    stated: dict[str, Any] = {}
    for field, key in (("resize", "size"), ("crop", "crop_size" if crops else "size")):
        if values.get(key) is not None:
            if (side := _side(values[key])) is None:
                raise refuse(key)
            stated[field] = side
    if stated and not crops:
        stated["resize_mode"] = "stretch" if is_square else "shortest_edge"
    if (resample := values.get("resample")) is not None:
        if resample not in _RESAMPLE:
            raise refuse("resample")
        stated["interpolation"] = _RESAMPLE[resample]
    flip = values.get("do_flip_channel_order", values.get("do_flip_channels"))
    if flip is not None:
        stated["channel_order"] = "bgr" if flip else "rgb"
    return stated


def _side(size: object) -> int | None:
    """The one number in a processor's size: the short side, or both sides of a square."""
    sides: list[Any] = [*{*size.values()}] if isinstance(size, Mapping) else [size]
    return sides[0] if len(sides) == 1 and isinstance(sides[0], int) else None


_CLASSES: dict[type, str] = {MobileViTBlock: "MobileViT", MobileViTv2Block: "MobileViTV2"}
_TASKS = {"classification": "ForImageClassification", "segmentation": "ForSemanticSegmentation"}


def write_config(config: ModelConfig) -> JsonFiles:
    """The JSON files of a network's folder, without what transformers assumes; see `Adapter`."""
    head, variant = split_name(config.model)
    arch = VARIANTS[variant]
    options = defaults(config.model, config.options.get("output_stride")) | dict(config.options)
    written = {"classifier_dropout_prob": options["classifier_dropout"]}
    for theirs, (ours, default) in _option_table(arch.block, head.prefix).items():
        value = options.pop(ours, default)
        if ours in ("patch_sizes", "heads"):
            value = _single(value, ours)
        written[theirs] = list(value) if isinstance(value, tuple) else value
    if left := [key for key in options if key not in _DROPPED]:
        raise CheckpointError(f"transformers' layout has no place for {', '.join(left)}")
    names = config.classes or _placeholders(config.num_classes)
    content = {
        "architectures": [f"{_CLASSES[arch.block]}{_TASKS[config.task]}"],
        "model_type": _CLASSES[arch.block].lower(),
        **written,
        "image_size": config.preprocessing.crop,
        "expand_ratio": float(arch.expansion),
        "dtype": "float32",
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if arch.block is MobileViTBlock:
        content["hidden_sizes"] = list(arch.dims)
        content["neck_hidden_sizes"] = [arch.stem, *arch.channels, arch.classifier_channels]
    else:
        content["width_multiplier"] = arch.channels[-1] / 512
    return {CONFIG: content, PROCESSOR: _processor(config)}


def _single(values: int | Sequence[int], option: str) -> int:
    """The one number that all of these are."""
    numbers = {values} if isinstance(values, int) else {*values}
    if len(numbers) != 1:
        raise CheckpointError(
            f"transformers' layout has one number for {option}, not one a stage: {values}"
        )
    return numbers.pop()


def _processor(config: ModelConfig) -> dict[str, Any]:
    preprocessing = config.preprocessing
    if (preprocessing.mean, preprocessing.std) != ((0.0,) * 3, (1.0,) * 3):
        raise CheckpointError("transformers' processor of MobileViT has no place for mean and std")
    square = {"height": preprocessing.crop, "width": preprocessing.crop}
    stretch = preprocessing.resize_mode == "stretch"
    content = {
        "image_processor_type": "MobileViTImageProcessor",
        "do_resize": True,
        "size": square if stretch else {"shortest_edge": preprocessing.resize},
        "resample": next(n for n, name in _RESAMPLE.items() if name == preprocessing.interpolation),
        "do_center_crop": preprocessing.resize_mode == "crop",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_flip_channel_order": preprocessing.channel_order == "bgr",
    }
    if config.task == "segmentation":
        # ADE20K's own masks count its classes from 1, and 0 is none of them.
        content["do_reduce_labels"] = config.num_classes == len(ADE20K_CLASSES)
    return content


def _notes(config: ModelConfig) -> list[str]:
    head, variant = split_name(config.model)
    options = defaults(config.model) | dict(config.options)
    notes = []
    if options.get("aux"):
        notes.append("the auxiliary head, which training alone uses")
    if options.get("align_corners"):
        notes.append("aligned corners: transformers' processor resizes logits without them")
    if head.prefix and config.preprocessing.resize_mode == "shortest_edge":
        notes.append("sides rounded down to multiples of 32: transformers does not round them")
    if VARIANTS[variant].block is MobileViTv2Block and options["output_stride"] < 32:
        notes.append(
            f"the dilation of local convolutions at an output stride of {options['output_stride']}:"
            " transformers leaves it out, and its logits differ"
        )
    return notes


ADAPTER = Adapter(
    name="transformers",
    layouts=(V1, V2, DEEPLAB_V1, DEEPLAB_V2),
    read_config=read_config,
    write_config=write_config,
    states_options=True,
    omitted_tensors=("aux.",),
    notes=_notes,
)
