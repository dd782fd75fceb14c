"""Names to networks: the variants of the two papers, and the options that their ablations vary.

A variant's own name is its classifier; `ssdlite_` ahead of it makes a detector, `deeplabv3_` or
`pspnet_` a network for segmentation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from mobilevit.models.classifier import Classifier
from mobilevit.models.config import Preprocessing, Task
from mobilevit.models.deeplabv3 import DeepLabv3, initialise_segmenter
from mobilevit.models.layers import initialise, make_divisible
from mobilevit.models.mobilevit import Architecture, Backbone, BlockOptions
from mobilevit.models.pspnet import PSPNet
from mobilevit.models.ssdlite import SSDLite, initialise_heads

Network: TypeAlias = Classifier | SSDLite | DeepLabv3 | PSPNet
"""A network that does a task, as model folders hold it."""


def _v1(
    channels: tuple[int, int, int, int, int],
    dims: tuple[int, int, int],
    *,
    expansion: int,
    dropout: float,
) -> Architecture:
    return Architecture(
        version=1,
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
    return Architecture(
        version=2,
        stem=make_divisible(min(max(32 * width, 16), 64), 8, 16),
        channels=(
            make_divisible(64 * width, 16),
            make_divisible(128 * width, 8),
            make_divisible(256 * width, 8),
            make_divisible(384 * width, 8),
            make_divisible(512 * width, 8),
        ),
        dims=(
            make_divisible(128 * width, 8),
            make_divisible(192 * width, 8),
            make_divisible(256 * width, 8),
        ),
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


TASKS: dict[str, Task] = {
    "": "classification",
    "ssdlite_": "detection",
    "deeplabv3_": "segmentation",
    "pspnet_": "segmentation",
}
"""What stands ahead of a variant's name -> what the network does."""

CLASSES: dict[Task, int] = {"classification": 1000, "detection": 80, "segmentation": 21}
"""Of ImageNet-1k, COCO and VOC: the default number of classes."""

CUSTOM: dict[Task, Preprocessing] = {
    "classification": Preprocessing(),
    "detection": Preprocessing(resize_mode="stretch", resize=320, crop=320),
    "segmentation": Preprocessing(resize_mode="shortest_edge", resize=512, crop=512),
}
"""How images are prepared for new weights: as the authors did, in segmentation by their later code.
"""

HEAD_OPTIONS = ("classifier_dropout", "channels", "rates", "aspp_dropout", "aux", "align_corners")
"""Options of `build` that are not the backbone's; which of them a network has, `defaults` says."""


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return [head + variant for head in TASKS for variant in VARIANTS]


def split_name(name: str) -> tuple[str, str]:
    """A model name -> the head ahead of it (a key of `TASKS`) and the variant.

    Raises:
        ValueError: there is no such model; the message names near ones, or all variants.
    """
    for head in TASKS:
        if (variant := name.removeprefix(head)) in VARIANTS and name == head + variant:
            return head, variant
    near = difflib.get_close_matches(name, list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(VARIANTS)}"
    raise ValueError(f"there is no model named {name!r}; {hint}")


def task_of(name: str) -> Task:
    """What the network of this name does.

    Raises:
        ValueError: there is no such model.
    """
    return TASKS[split_name(name)[0]]


def architecture(name: str) -> Architecture:
    """The architecture of a model's backbone.

    Raises:
        ValueError: there is no such model; the message names near ones, or all variants.
    """
    return VARIANTS[split_name(name)[1]]


def defaults(name: str, output_stride: int | None = None) -> dict[str, Any]:
    """What this network's options stand for where they are None: the authors' values.

    DeepLabv3 on v1 has its paper's form. On v2 it has that of the authors' later code, as PSPNet;
    with an output stride of 8 its rates double.

    Raises:
        ValueError: there is no such model.
    """
    head, variant = split_name(name)
    arch = VARIANTS[variant]
    own: dict[str, Any] = {"output_stride": 32, "dropout": arch.dropout}
    if head == "":
        own["classifier_dropout"] = arch.classifier_dropout
    elif TASKS[head] == "segmentation":
        later = head == "pspnet_" or arch.version == 2
        own |= {
            "output_stride": 16,
            "channels": 512 if later else 256,
            "aux": later,
            "align_corners": later,
            "classifier_dropout": 0.1,
        }
        if head == "deeplabv3_":
            own["rates"] = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
            own["aspp_dropout"] = 0.0 if later else 0.1
    return own


def changed(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `build` that differ from this network's own, sequences as JSON's lists.

    Raises:
        ValueError: there is no such model.
    """
    parameters = inspect.signature(build).parameters
    own = defaults(name, options.get("output_stride"))
    usual = {key: own.get(key, parameters[key].default) for key in options}
    return {
        key: _plain(value)
        for key, value in options.items()
        if value is not None and _plain(value) != _plain(usual[key])
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) else value


def build(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3, 4),
    output_stride: int | None = None,
    patch_sizes: Sequence[int] = (2, 2, 2),
    heads: int | Sequence[int] = 4,
    kernel_size: int = 3,
    fusion: bool = True,
    dropout: float | None = None,
    attention_dropout: float = 0.0,
    ffn_dropout: float = 0.0,
    classifier_dropout: float | None = None,
    channels: int | None = None,
    rates: Sequence[int] | None = None,
    aspp_dropout: float | None = None,
    aux: bool | None = None,
    align_corners: bool | None = None,
) -> Network | Backbone:
    """Build a network with the paper's initial weights, in training mode, channels-last.

    Where an option may be None, that is the authors' value for this network; see `defaults`.

    Args:
        name: see `list_models`.
        num_classes: length of the logits; in detection, background comes on top, in segmentation,
            a background class is one of them.
        in_channels: channels of an image.
        features_only: return the backbone alone, which lists maps in place of logits.
        out_indices: which of the five stages' maps a backbone lists, 0 to 4.
        output_stride: 8, 16 or 32, the coarsest stride; None: 16 in segmentation, 32 elsewhere.
        patch_sizes: patch side h = w in the last three stages; the paper's configuration A is
            (2, 2, 2), B is (8, 4, 2).
        heads: attention heads, one number or one for each of the last three stages (v1 only).
        kernel_size: side n of a MobileViT block's local convolutions, odd.
        fusion: whether a block's input is joined to its output (v1 only; paper, Figure 12).
        dropout: on what attention and feed-forward add; None: 0.1 for S and XS, 0.05 for XXS, 0
            for v2.
        attention_dropout: on attention weights.
        ffn_dropout: inside the feed-forward layers.
        classifier_dropout: before the classifier, in segmentation of whole channels; None: 0.1 for
            v1 and in segmentation, 0 for v2.
        channels: segmentation: width of the head; None: 256 for DeepLabv3 on v1, else 512.
        rates: DeepLabv3: dilations of its three 3x3 convolutions; None: 6, 12, 18, and twice that
            at an output stride of 8.
        aspp_dropout: DeepLabv3: on single values behind its pyramid; None: 0.1 for v1, 0 for v2.
        aux: segmentation: whether training has a head on stage 4 too; None: not for DeepLabv3 on
            v1, else yes.
        align_corners: segmentation: how logits are stretched to the image's size; None: as `aux`.

    Raises:
        ValueError: an unknown name, or an option out of its range or of no meaning to the variant.
    """
    given = {
        key: value
        for key, value in locals().items()
        if key not in ("name", "features_only", "num_classes")
    }
    head, variant = split_name(name)
    arch = VARIANTS[variant]
    own = defaults(name, output_stride)
    if foreign := [key for key in HEAD_OPTIONS if given[key] is not None and key not in own]:
        raise ValueError(f"{name} has no {', '.join(foreign)}: no such part is in it")
    chosen = own | {key: given[key] for key in own if given[key] is not None}
    if arch.version == 2 and (heads != 4 or not fusion):
        raise ValueError(f"{name} has one attention head and no fusion: neither is an option of it")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, not {kernel_size}")
    stage_heads = (heads,) * 3 if isinstance(heads, int) else tuple(heads)
    three = {"patch_sizes": tuple(patch_sizes), "heads": stage_heads}
    if "rates" in own:
        three["rates"] = tuple(chosen["rates"])
    for option, values in three.items():
        if len(values) != 3 or min(values) < 1:
            raise ValueError(f"{option} needs three numbers of at least 1, not {values}")
    if "channels" in own and chosen["channels"] < 1:
        raise ValueError(f"channels must be at least 1, not {channels}")
    first, second, third = (
        BlockOptions(
            patch=patch,
            heads=count,
            kernel_size=kernel_size,
            fusion=fusion,
            dropout=chosen["dropout"],
            attention_dropout=attention_dropout,
            ffn_dropout=ffn_dropout,
        )
        for patch, count in zip(patch_sizes, stage_heads, strict=True)
    )
    listed = (3, 4) if head == "ssdlite_" or chosen.get("aux") else (4,)
    backbone = Backbone(
        arch,
        in_channels=in_channels,
        output_stride=chosen["output_stride"],
        blocks=(first, second, third),
        out_indices=tuple(out_indices) if features_only else listed,
    )
    model: Network | Backbone = backbone
    if features_only:
        initialise(model)
    elif head == "ssdlite_":
        model = SSDLite(backbone, num_classes=num_classes)
        initialise_heads(model)
    elif TASKS[head] == "segmentation":
        parts: dict[str, Any] = {
            "num_classes": num_classes,
            "dropout": chosen["classifier_dropout"],
            **{key: chosen[key] for key in ("channels", "aux", "align_corners")},
        }
        if head == "deeplabv3_":
            parts |= {"rates": three["rates"], "aspp_dropout": chosen["aspp_dropout"]}
            model = DeepLabv3(backbone, **parts)
        else:
            model = PSPNet(backbone, **parts)
        initialise_segmenter(model)
    else:
        model = Classifier(
            backbone,
            num_classes=num_classes,
            channels=arch.classifier_channels,
            dropout=chosen["classifier_dropout"],
        )
        initialise(model)
    model.name = name
    model.options = changed(name, given)
    return model.to(memory_format=torch.channels_last)
