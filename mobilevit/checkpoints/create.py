"""Networks with weights: `create_model`, `load`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mobilevit.checkpoints.config import ModelConfig, class_names
from mobilevit.checkpoints.keymap import CheckpointError, shorten
from mobilevit.checkpoints.read import Weights, read
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.models.classifier import Classifier
from mobilevit.models.mobilevit import Backbone
from mobilevit.models.variants import build

log = logging.getLogger(__name__)


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
) -> Classifier | Backbone:
    """Build a network, with new weights or with those of a file, in training mode.

    Where the weights come from a file, its configuration (preprocessing, and its class names where
    the classes are kept) goes into `model.config`. A head for other classes than the file's is new,
    and a logged warning names its tensors.

    Args:
        name: a model name; see `list_models`.
        num_classes: length of the logits; by default that of `classes`, or the weights', or 1000.
        classes: names of the classes, in the order of the logits.
        weights: whatever `load` reads, or a backbone alone.
        preprocessing: fields of `Preprocessing` that differ from the weights'.
        new_head: whether a head may be new where `weights` are given; if not, that is an error.
        features_only: return the backbone alone, which lists maps in place of logits.
        options: `in_channels`, `out_indices`, `output_stride`, `patch_sizes`, `heads`,
            `kernel_size`, `fusion`, `dropout`, `attention_dropout`, `ffn_dropout`,
            `classifier_dropout`; see `mobilevit.models.variants.build`.

    Raises:
        ValueError: an unknown name, or an option that does not fit.
        TypeError: an unknown option.
        FileNotFoundError, DownloadError, CheckpointError: see `load`.
    """
    classes = None if classes is None else tuple(classes)
    found = None if weights is None else read(weights)
    if num_classes is None:
        num_classes = len(classes) if classes else found.config.num_classes if found else 1000
    config = ModelConfig(model=name, num_classes=num_classes, classes=classes)
    if found:
        if found.config.model != name:
            raise CheckpointError(f"{weights} holds {found.config.model}, not {name}")
        options = {**found.config.options, **options}
        if classes is None and num_classes == found.config.num_classes:
            classes = found.config.classes
        elif classes and found.config.classes is None and num_classes == found.config.num_classes:
            log.warning(
                "%s does not name its %d classes: the head is kept, and its outputs taken to be %s",
                *(weights, num_classes, shorten(list(classes), 3)),
            )
        config = replace(found.config, num_classes=num_classes, classes=classes, metrics={})
    model = build(name, num_classes=num_classes, features_only=features_only, **options)
    model.config = _stating(replace(config, options=model.options), preprocessing)
    if found:
        _fill(model, found, file=str(weights), new_head=new_head)
    return model


def load(
    source: str | Path,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Classifier:
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
        CheckpointError: it can not be read, has no classifier, or does not fit; the message names
            what.
        ValueError: another number of names than of logits.
    """
    found = read(source)
    if "head.weight" not in found.tensors:
        raise CheckpointError(
            f"{source} holds a backbone without a classifier; create_model({found.config.model!r}, "
            "num_classes=..., weights=...) puts a new one on it, to be trained"
        )
    config = found.config
    if classes is not None:
        config = replace(config, classes=tuple(classes))
    config = _stating(config, preprocessing)
    model = build(config.model, num_classes=config.num_classes, **config.options)
    assert isinstance(model, Classifier)
    model.config = config
    _fill(model, found, file=str(source), new_head=False)
    return model.eval()


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
    model: str | Path | Classifier,
    *,
    classes: str | Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
) -> tuple[Classifier, str]:
    """The network that a command is given, and what to call it in messages.

    Raises:
        ValueError: `classes` or `preprocessing` beside a network, which has its own.
        CheckpointError: see `load`.
    """
    if not isinstance(model, Classifier):
        return load(model, classes=class_names(classes), preprocessing=preprocessing), str(model)
    if classes is not None or preprocessing:
        raise ValueError(
            "classes and preprocessing are for a model that is read from a file; those of a "
            "network are in its config: model.config = dataclasses.replace(model.config, ...)"
        )
    return model, model.name


def stated_classes(model: Classifier, name: str) -> tuple[str, ...]:
    """The class names of a network; `name` is what to call it in the message.

    Raises:
        ValueError: nobody has stated them.
    """
    classes: tuple[str, ...] | None = model.config.classes
    if classes is None:
        raise ValueError(
            f"{name} does not say what its {model.config.num_classes} classes are called; state "
            "them by --classes: names in the order of the outputs, a file of them, or imagenet1k"
        )
    return classes


def _fill(model: Classifier | Backbone, found: Weights, *, file: str, new_head: bool) -> None:
    """Copy weights into a network, all or nothing.

    New are at most the head and the convolution ahead of it, where the file lacks them, and the
    head where it is for other classes.
    """
    own = model.state_dict()
    tensors = dict(found.tensors)
    if isinstance(model, Backbone):
        prefix = "backbone."
        tensors = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    else:
        renamed = model.config.classes != found.config.classes and None not in (
            model.config.classes,
            found.config.classes,
        )
        theirs, wanted = found.config.num_classes, model.config.num_classes
        if "head.bias" in tensors and (renamed or theirs != wanted):
            if not new_head:
                kept = f"{theirs} classes, not {wanted}" if theirs != wanted else "other classes"
                background = "; is one of them background?" if abs(theirs - wanted) == 1 else ""
                raise CheckpointError(
                    f"{file} does not fit: head.weight and head.bias are for {kept}{background}"
                )
            del tensors["head.weight"], tensors["head.bias"]
    missing = [key for key in own if key not in tensors]
    extra = [key for key in tensors if key not in own]
    wrong = [
        f"{key} {list(tensors[key].shape)} where the model has {list(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    lost = [key for key in missing if not new_head or not key.startswith(("head.", "expand."))]
    for fault, names in (("lacks", lost), ("has no place for", extra), ("has", wrong)):
        if names:
            subject = "the model" if fault == "has no place for" else file
            raise CheckpointError(f"{file} does not fit: {subject} {fault} {shorten(names)}")
    model.load_state_dict({**own, **tensors})
    if missing:
        log.warning("new tensors, not from %s: %s", file, ", ".join(missing))
