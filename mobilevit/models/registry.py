"""Networks by name: the variants of both papers, the heads, and their options.

A variant's own name is its classifier; the prefix `ssdlite_` makes it a detector, `deeplabv3_` or
`pspnet_` a network for segmentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mobilevit.models.classifier import Classifier
from mobilevit.models.config import ModelConfig, Preprocessing, TaskName
from mobilevit.models.layers import initialise, make_divisible
from mobilevit.models.mobilevit import (
    Architecture,
    Backbone,
    BackboneOptions,
    MobileViTBlock,
    MobileViTv2Block,
    check_three,
)
from mobilevit.models.segmentation import AtrousPyramid, PoolingPyramid, Segmenter
from mobilevit.models.ssdlite import SSDLite, initialise_heads
from mobilevit.utils.options import Count, Options

Network: TypeAlias = Classifier | SSDLite | Segmenter
"""A network with a head for a task; not a backbone alone."""


def _v1(
    channels: tuple[int, ...], dims: tuple[int, ...], *, expansion: int, dropout: float
) -> Architecture:
    return Architecture(
        block=MobileViTBlock,
        stem=16,
        channels=channels,
        dims=dims,
        expansion=expansion,
        stage2_blocks=3,
        dropout=dropout,
        classifier_dropout=0.1,
        classifier_channels=min(4 * channels[-1], 960),
    )


def _v2(width: float) -> Architecture:
    channels = [make_divisible(base * width, 8) for base in (128, 256, 384, 512)]
    return Architecture(
        block=MobileViTv2Block,
        stem=make_divisible(min(max(32 * width, 16), 64), 8, 16),
        channels=(make_divisible(64 * width, 16), *channels),
        dims=tuple(make_divisible(base * width, 8) for base in (128, 192, 256)),
        expansion=2,
        stage2_blocks=2,
        dropout=0.0,
        classifier_dropout=0.0,
        classifier_channels=None,
    )


VARIANTS: dict[str, Architecture] = {
    "mobilevit_xxs": _v1((16, 24, 48, 64, 80), (64, 80, 96), expansion=2, dropout=0.05),
    "mobilevit_xs": _v1((32, 48, 64, 80, 96), (96, 120, 144), expansion=4, dropout=0.1),
    "mobilevit_s": _v1((32, 64, 96, 128, 160), (144, 192, 240), expansion=4, dropout=0.1),
    **{f"mobilevitv2_{width:03d}": _v2(width / 100) for width in range(50, 201, 25)},
}
"""MobileViT: Table 4 of the paper. MobileViTv2: all channels scale with the width."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Options):
    """Options of a network and its head; None: those of the weights, or else the authors'."""

    patch_sizes: Sequence[int] | None = None
    """Patch sides in the last three stages; the paper's configuration A is 2,2,2 and B 8,4,2."""
    heads: int | Sequence[int] | None = None
    """Attention heads, one number or one for each of the last three stages (v1); else 4."""
    kernel_size: int | None = None
    """Side of the MobileViT blocks' convolutions, odd; else 3."""
    fusion: bool | None = None
    """Whether a block's input is fused with its output (v1; paper, Figure 12); else true."""
    dropout: float | None = None
    """Of the outputs of attention and feed-forward layers; else 0.1 for S and XS, 0.05 for XXS, 0
    for v2."""
    attention_dropout: float | None = None
    """Of attention weights; else 0."""
    ffn_dropout: float | None = None
    """Inside feed-forward layers; else 0."""
    classifier_dropout: float | None = None
    """Before the classifier; else 0.1 for v1 and in segmentation, 0 for v2."""
    output_stride: int | None = None
    """Coarsest stride: 8, 16 or 32; else 16 in segmentation, 32 in other tasks."""
    channels: Count | None = None
    """Segmentation: width of the head; else 256 for DeepLabv3 on v1, 512 for others."""
    rates: Sequence[int] | None = None
    """DeepLabv3: dilations of its pyramid; else 6,12,18, or twice that at an output stride of 8."""
    aspp_dropout: float | None = None
    """DeepLabv3: after its pyramid; else 0.1 for v1, 0 for v2."""
    aux: bool | None = None
    """Segmentation: whether training has a second head, on stage 4; else for all but DeepLabv3 on
    v1."""
    align_corners: bool | None = None
    """Segmentation: how logits are resized to the image's size; else as `aux`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rates is not None:
            check_three(rates=self.rates)


HEAD_OPTIONS = tuple(
    field.name
    for field in fields(NetworkOptions)
    if field.name not in BackboneOptions.__dataclass_fields__
)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A kind of head on a backbone, and all that depends on it."""

    prefix: str
    """What model names have before the variant."""
    task: TaskName
    num_classes: int
    """The default: the number of classes of ImageNet-1k, COCO or VOC."""
    preprocessing: Preprocessing
    """For new weights: the authors', in segmentation that of their later code."""
    class_tensors: tuple[str, ...]
    """Name prefixes of the tensors whose shapes depend on the number of classes; all networks with
    this head have the last."""
    classes_of: Callable[[Tensor], int] = len
    """The last one's bias -> number of classes."""
    defaults: Callable[[Architecture, int | None], dict[str, Any]]
    """(architecture, output stride) -> the head's options with the authors' values."""
    stages: tuple[int, ...] = (4,)
    """Indices of the maps that it takes, without the auxiliary head's."""
    build: Callable[..., Network]
    """(architecture, backbone, num_classes=..., **options) -> network."""
    initialise: Callable[[Any], None]

    def count_classes(self, tensors: Mapping[str, Tensor]) -> int | None:
        """The number of classes of a network with these tensors; None if they have no such head."""
        bias = tensors.get(f"{self.class_tensors[-1]}bias")
        return None if bias is None else self.classes_of(bias)


def _deeplabv3(
    arch: Architecture,
    backbone: Backbone,
    *,
    rates: tuple[int, int, int],
    aspp_dropout: float,
    **options: Any,
) -> Segmenter:
    channels = options["channels"]
    context = AtrousPyramid(backbone.channels, channels, rates=rates, dropout=aspp_dropout)
    return Segmenter(backbone, context, **options)


def _pspnet(arch: Architecture, backbone: Backbone, **options: Any) -> Segmenter:
    return Segmenter(backbone, PoolingPyramid(backbone.channels, options["channels"]), **options)


def _pspnet_defaults(arch: Architecture, output_stride: int | None) -> dict[str, Any]:
    own = {"output_stride": 16, "channels": 512, "aux": True, "align_corners": True}
    return own | {"classifier_dropout": 0.1}


def _deeplabv3_defaults(arch: Architecture, output_stride: int | None) -> dict[str, Any]:
    rates = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
    own = {**_pspnet_defaults(arch, output_stride), "rates": rates, "aspp_dropout": 0.0}
    if arch.block is MobileViTBlock:  # the paper's; on v2 that of the authors' later code
        own |= {"channels": 256, "aux": False, "align_corners": False, "aspp_dropout": 0.1}
    return own


_segmentation_head = partial(
    Head,
    task="segmentation",
    num_classes=21,
    preprocessing=Preprocessing(resize_mode="shortest_edge", resize=512, crop=512),
    class_tensors=("aux.predict.", "predict."),
    initialise=partial(initialise, linear_std=0.01),  # as the 2021 code for segmentation
)

HEADS: dict[str, Head] = {
    head.prefix: head
    for head in (
        Head(
            prefix="",
            task="classification",
            num_classes=1000,
            preprocessing=Preprocessing(),
            class_tensors=("head.",),
            defaults=lambda arch, _: {"classifier_dropout": arch.classifier_dropout},
            build=lambda arch, backbone, **options: Classifier(
                backbone, channels=arch.classifier_channels, **options
            ),
            initialise=initialise,
        ),
        Head(
            prefix="ssdlite_",
            task="detection",
            num_classes=80,
            preprocessing=Preprocessing(resize_mode="stretch", resize=320, crop=320),
            class_tensors=tuple(f"heads.{index}.predict." for index in range(6)),
            # each of 4 anchors: 4 offsets, background, the classes
            classes_of=lambda bias: len(bias) // 4 - 5,
            defaults=lambda arch, _: {},
            stages=(3, 4),
            build=lambda arch, backbone, **options: SSDLite(backbone, **options),
            initialise=initialise_heads,
        ),
        _segmentation_head(prefix="deeplabv3_", defaults=_deeplabv3_defaults, build=_deeplabv3),
        _segmentation_head(prefix="pspnet_", defaults=_pspnet_defaults, build=_pspnet),
    )
}


def list_models() -> list[str]:
    """The names that `create_model` takes.

    >>> list_models()[:3]
    ['mobilevit_xxs', 'mobilevit_xs', 'mobilevit_s']
    """
    return [prefix + variant for prefix in HEADS for variant in VARIANTS]


def split_name(name: str) -> tuple[Head, str]:
    """Split a model name into its head and its variant; ValueError if there is no such model."""
    for prefix, head in HEADS.items():
        if (variant := name.removeprefix(prefix)) in VARIANTS and name == prefix + variant:
            return head, variant
    model, _, tag = name.rpartition("/")[2].partition(".")
    if tag and model in list_models():
        weights = name if "/" in name or tag.startswith("apple") else f"timm/{name}"
        raise ValueError(f"{name!r} is no model but weights: {model!r} with weights={weights!r}")
    near = difflib.get_close_matches(name, list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(VARIANTS)}"
    raise ValueError(f"there is no model named {name!r}; {hint}")


def default_config(name: str) -> ModelConfig:
    """The configuration of a new network."""
    head, _ = split_name(name)
    return ModelConfig(
        model=name,
        num_classes=head.num_classes,
        task=head.task,
        preprocessing=head.preprocessing,
    )


def task_of(name: str) -> TaskName:
    """The task of a network, by its name.

    >>> task_of("ssdlite_mobilevit_xs")
    'detection'
    """
    return split_name(name)[0].task


def defaults(name: str, output_stride: int | None = None) -> dict[str, Any]:
    """The authors' values for the options of this network that are None.

    DeepLabv3 on v1 is the paper's; on v2 it follows the authors' later code, as PSPNet does.
    """
    head, variant = split_name(name)
    arch = VARIANTS[variant]
    return {"output_stride": 32, "dropout": arch.dropout, **head.defaults(arch, output_stride)}


def _own_options(name: str, output_stride: int | None) -> dict[str, Any]:
    return asdict(BackboneOptions()) | defaults(name, output_stride)


def changed_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from this network's defaults; sequences become lists, as in JSON."""
    own, given = (
        {key: list(x) if isinstance(x, Sequence) else x for key, x in values.items()}
        for values in (_own_options(name, options.get("output_stride")), options)
    )
    return {key: x for key, x in given.items() if x is not None and x != own[key]}


_ELSEWHERE = {
    "pretrained": "weights=NAME, as `mobilevit models --pretrained` lists them, or a file",
    "checkpoint_path": "weights",
    "in_chans": "in_channels",
    "num_channels": "in_channels",
    "num_labels": "num_classes",
    "drop_rate": "classifier_dropout",
    "attn_drop_rate": "attention_dropout",
    "proj_drop_rate": "dropout",
    "patch_size": "patch_sizes",
    "num_heads": "heads",
}
"""Options of networks in other libraries -> ours."""


def build(
    name: str,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
    in_channels: int = BackboneOptions.in_channels,
    out_indices: Sequence[int] = BackboneOptions.out_indices,
    **options: Any,
) -> Network | Backbone:
    """Build a network with the paper's initial weights, in training mode, channels-last.

    The arguments are those of `create_model`, which can also load weights.
    """
    head, variant = split_name(name)
    arch, known = VARIANTS[variant], [field.name for field in fields(NetworkOptions)]
    if unknown := [key for key in options if key not in known]:
        near = _ELSEWHERE.get(unknown[0]) or " or ".join(
            difflib.get_close_matches(unknown[0], known)
        )
        hint = f"did you mean {near}?" if near else f"it has {', '.join(known)}"
        raise TypeError(f"create_model has no option {', '.join(unknown)}; {hint}")
    given = {k: v for k, v in asdict(NetworkOptions(**options)).items() if v is not None}
    own = _own_options(name, given.get("output_stride"))
    foreign = [
        key
        for key, value in given.items()
        if key not in own or (key in arch.block.unsupported and value != own[key])
    ]
    if foreign:
        raise ValueError(f"{name} has no option {', '.join(foreign)}")
    given |= {"in_channels": in_channels, "out_indices": out_indices}
    values = own | given
    if not features_only:
        values["out_indices"] = (3, 4) if values.get("aux") else head.stages
    of_backbone = BackboneOptions(**{f.name: values[f.name] for f in fields(BackboneOptions)})
    model: Network | Backbone = Backbone(arch, of_backbone)
    count = head.num_classes if num_classes is None else num_classes
    if features_only:
        initialise(model)
    else:
        head_values = {key: value for key, value in values.items() if key in HEAD_OPTIONS}
        model = head.build(arch, model, num_classes=count, **head_values)
        head.initialise(model)
    model.name = name
    options = changed_options(name, given)
    model.config = replace(default_config(name), num_classes=count, options=options)
    return model.to(memory_format=torch.channels_last)
