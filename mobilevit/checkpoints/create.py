"""Networks with weights: `create_model`, `load`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mobilevit.checkpoints.keymap import CheckpointError, shorten
from mobilevit.checkpoints.read import Weights, read
from mobilevit.data.class_names import class_names, coco_classes
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.mobilevit import Backbone
from mobilevit.models.registry import (
    HEAD_OPTIONS,
    Network,
    build,
    split_name,
)

log = logging.getLogger(__name__)

MOST_NAMES = 12
"""Up to so many new tensors are named one by one."""

FRAME = ("resize_mode", "resize", "crop")
"""The fields of `Preprocessing` that belong to a task more than to weights."""


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    weights: str | Path | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    new_head: bool = True,
    features_only: bool = False,
    **options: Any,
) -> Network | Backbone:
    """Build a network, with new weights or with those of a file, in training mode.

    Where the weights come from a file, its configuration (preprocessing, and its class names where
    the classes are kept) goes into `model.config`. A head for other classes than the file's is new,
    and a logged warning names its tensors.

    Args:
        name: a model name; see `list_models`.
        num_classes: by default that of `classes`, or the weights', or ImageNet's 1000, COCO's 80 or
            VOC's 21; in segmentation a background class is one of them.
        classes: names of the classes, in the order of the logits.
        weights: whatever `load` reads, or a backbone alone.
        preprocessing: fields of `Preprocessing` that differ from the weights'.
        new_head: whether a head may be new where `weights` are given; if not, that is an error.
        features_only: return the backbone alone, which lists maps in place of logits.
        options: `in_channels`, `out_indices`, `output_stride`, `patch_sizes`, `heads`,
            `kernel_size`, `fusion`, `dropout`, `attention_dropout`, `ffn_dropout`,
            `classifier_dropout`, and for segmentation `channels`, `rates`, `aspp_dropout`, `aux`,
            `align_corners`; see `mobilevit.models.registry.build`.

    Raises:
        ValueError: an unknown name, or an option that does not fit.
        TypeError: an unknown option.
        FileNotFoundError, DownloadError, CheckpointError: see `load`.
    """
    classes = None if classes is None else tuple(classes)
    found = None if weights is None else read(weights)
    head, variant = split_name(name)
    if found and split_name(found.config.model)[1] != variant:
        raise CheckpointError(f"{weights} holds {found.config.model}, not {name}")
    same_head = found is not None and found.config.model == name
    if num_classes is None:
        theirs = found.config.num_classes if found and same_head else None
        num_classes = len(classes) if classes else theirs or head.num_classes
    config = ModelConfig(
        model=name,
        num_classes=num_classes,
        classes=classes,
        task=head.task,
        preprocessing=head.preprocessing,
    )
    if found:
        theirs = found.config.num_classes
        options = {**_kept(found.config.options, same_head), **options}
        if same_head and classes is None and num_classes == theirs:
            config = replace(
                config, classes=found.config.classes, category_ids=found.config.category_ids
            )
        elif same_head and classes and not found.config.classes and num_classes == theirs:
            log.warning(
                "%s does not name its %d classes: the head is kept, and its outputs taken to be %s",
                *(weights, num_classes, shorten(list(classes), 3)),
            )
        rule = found.config.preprocessing
        if not same_head:  # another task: the pixels as they were, the frame as the task has it
            custom = config.preprocessing
            kept = tuple(field for field in rule.assumed if field not in FRAME)
            frame = {field: getattr(custom, field) for field in FRAME}
            rule = replace(rule, **frame, assumed=kept)
        config = replace(config, preprocessing=rule, source=found.config.source)
    model = build(name, num_classes=num_classes, features_only=features_only, **options)
    model.config = _stating(replace(config, options=model.config.options), preprocessing)
    if found:
        _fill(model, found, file=str(weights), new_head=new_head)
    return model


def _kept(options: Mapping[str, Any], same_head: bool) -> dict[str, Any]:
    """The options of weights that a network with another head has as well."""
    heads = () if same_head else (*HEAD_OPTIONS, "output_stride")
    return {key: value for key, value in options.items() if key not in heads}


def load(
    source: str | Path,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Network:
    """Read a network with its weights, in evaluation mode.

    Args:
        source: a model folder; a checkpoint of the authors, timm or transformers (a `.pt`, `.pth`
            or `.safetensors` file, or a folder with its `config.json`); a name that
            `mobilevit models --pretrained` lists; a Hub id, `owner/name` or `owner/name@revision`;
            or an address, `https://...`, at whose end `#sha256=` may state the file's digest.
            What is not here yet is downloaded.
        classes: names of the classes in the order of the logits, where the file has none.
        preprocessing: fields of `Preprocessing` that differ from the file's or its layout's.

    Raises:
        FileNotFoundError: there is no such file or folder, and it is none of the others.
        DownloadError: it could not be downloaded.
        CheckpointError: it cannot be read, has no classifier, or does not fit; the message names
            what.
        ValueError: another number of names than of logits.
    """
    found = read(source)
    head = split_name(found.config.model)[0]
    if head.count_classes(found.tensors) is None:
        raise CheckpointError(
            f"{source} holds a backbone without a head; create_model({found.config.model!r}, "
            "num_classes=..., weights=...) puts a new one on it, to be trained"
        )
    config = found.config
    if classes is not None:
        config = replace(config, classes=tuple(classes))
    config = _stating(_with_coco_ids(config), preprocessing)
    model = build(config.model, num_classes=config.num_classes, **config.options)
    assert not isinstance(model, Backbone)
    model.config = config
    _fill(model, found, file=str(source), new_head=False)
    return model.eval()


def _with_coco_ids(config: ModelConfig) -> ModelConfig:
    """The same with COCO's own numbers of its classes, where it has these and no numbers."""
    if config.task != "detection" or config.num_classes != 80 or config.category_ids:
        return config
    names, numbers = coco_classes()
    return replace(config, category_ids=numbers) if config.classes == names else config


def _stating(config: ModelConfig, stated: Mapping[str, Any] | None) -> ModelConfig:
    """The same with these fields of its preprocessing, which are then no longer assumed."""
    if not stated:
        return config
    known = {field.name for field in fields(Preprocessing)} - {"assumed"}
    if unknown := sorted(stated.keys() - known):
        raise ValueError(
            f"preprocessing has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    rule = config.preprocessing
    assumed = tuple(name for name in rule.assumed if name not in stated)
    return replace(config, preprocessing=replace(rule, **stated, assumed=assumed))


def opened(
    model: str | Path | Network,
    *,
    classes: str | Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
) -> tuple[Network, str]:
    """The network that a command is given, and what to call it in messages.

    Raises:
        ValueError: `classes` or `preprocessing` beside a network, which has its own.
        CheckpointError: see `load`.
    """
    if isinstance(model, str | Path):
        return load(model, classes=class_names(classes), preprocessing=preprocessing), str(model)
    if classes is not None or preprocessing:
        raise ValueError(
            "classes and preprocessing are for a model that is read from a file; those of a "
            "network are in its config: model.config = dataclasses.replace(model.config, ...)"
        )
    return model, model.name


def stated_classes(config: ModelConfig, name: str) -> tuple[str, ...]:
    """The class names of a network; `name` is what to call it in the message.

    Raises:
        ValueError: nobody has stated them.
    """
    classes = config.classes
    if classes is None:
        raise ValueError(
            f"{name} does not say what its {config.num_classes} classes are called; state "
            "them by --classes: names in the order of the outputs, a file of them, or one of "
            "imagenet1k, coco, voc and ade20k"
        )
    return classes


def _fill(model: Network | Backbone, found: Weights, *, file: str, new_head: bool) -> None:
    """Copy weights into a network, all or nothing.

    New are at most all that is not backbone, where the file is of another task or a backbone alone,
    an auxiliary head that it lacks, and the tensors that count classes, where it is for others. An
    auxiliary head that the network lacks is left out.
    """
    own = model.state_dict()
    tensors = dict(found.tensors)
    prefix = "backbone."
    if isinstance(model, Backbone):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    elif model.config.model != found.config.model:
        tensors = {k: v for k, v in tensors.items() if k.startswith(prefix)}
    else:
        if getattr(model, "aux", None) is None:
            tensors = {k: v for k, v in tensors.items() if not k.startswith("aux.")}
        _without_other_classes(tensors, model.config, found.config, file=file, new_head=new_head)
    missing = [key for key in own if key not in tensors]
    extra = [key for key in tensors if key not in own]
    wrong = [
        f"{key} {list(tensors[key].shape)} where the model has {list(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    is_backbone = isinstance(model, Backbone)
    lost = [k for k in missing if not new_head or is_backbone or k.startswith(prefix)]
    for fault, names in (("lacks", lost), ("has no place for", extra), ("has", wrong)):
        if names:
            subject = "the model" if fault == "has no place for" else file
            raise CheckpointError(f"{file} does not fit: {subject} {fault} {shorten(names)}")
    model.load_state_dict({**own, **tensors})
    if missing:
        every = {key.partition(".")[0] for key in own} - {"backbone"}
        whole = [key for key in own if not key.startswith(prefix)] == missing
        whole = whole and len(missing) > MOST_NAMES
        named = f"all of {', '.join(sorted(every))}" if whole else ", ".join(missing)
        log.warning("new tensors, not from %s: %s", file, named)


def _without_other_classes(
    tensors: dict[str, Tensor],
    wanted: ModelConfig,
    found: ModelConfig,
    *,
    file: str,
    new_head: bool,
) -> None:
    """Take out the tensors that count classes, where the weights are for others than wanted.

    Raises:
        CheckpointError: no head may be new.
    """
    head, _ = split_name(wanted.model)
    keys = [key for key in tensors if key.startswith(head.class_tensors)]
    named = None not in (wanted.classes, found.classes) and wanted.classes != found.classes
    ours, theirs = wanted.num_classes, found.num_classes
    if not keys or not (named or ours != theirs):
        return
    if not new_head:
        what = f"{theirs} classes, not {ours}" if ours != theirs else "other classes"
        background = "; is one of them background?" if abs(ours - theirs) == 1 else ""
        if wanted.task == "detection" and ours != theirs:
            what = f"{1 + theirs} outputs ({theirs} classes and background), not {1 + ours}"
        raise CheckpointError(
            f"{file} does not fit: {' and '.join(keys[-2:])} are for {what}{background}"
        )
    for key in keys:
        del tensors[key]
