"""Networks with weights: `create_model` and `load`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit.checkpoints.keymap import CheckpointError, shorten
from mobilevit.checkpoints.read import Weights, read
from mobilevit.data.class_names import class_names, coco_classes
from mobilevit.models.config import ModelConfig
from mobilevit.models.mobilevit import Backbone
from mobilevit.models.registry import HEAD_OPTIONS, Network, build, default_config, split_name

log = logging.getLogger(__name__)

_BACKBONE = "backbone."
_STEM = "backbone.stem.conv.weight"
_FRAME = ("resize_mode", "resize", "crop")
"""Fields of `Preprocessing` that depend on the task rather than on the weights."""
_NAMES_SHOWN = 12
"""Up to this many new tensors are named one by one."""


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
    """Build a network in training mode, with new weights or with those of a file.

    `model.config` takes a file's preprocessing, and its class names unless the classes change. A
    head for classes other than the file's is new, and a logged warning names its tensors.

    Args:
        name: a model name; see `list_models`.
        num_classes: by default that of `classes`, or the weights', or ImageNet's 1000, COCO's 80 or
            VOC's 21; in segmentation a background class is one of them.
        classes: names of the classes, in the order of the logits.
        weights: whatever `load` reads, or a backbone alone.
        preprocessing: fields of `Preprocessing` that differ from the weights'.
        new_head: whether the head may be new if `weights` are given; if not, that is an error.
        features_only: return the backbone alone, which gives a list of maps instead of logits.
        options: `in_channels`, `out_indices`, `output_stride`, `patch_sizes`, `heads`,
            `kernel_size`, `fusion`, `dropout`, `attention_dropout`, `ffn_dropout`,
            `classifier_dropout`, and for segmentation `channels`, `rates`, `aspp_dropout`, `aux`,
            `align_corners`; see `mobilevit.models.registry.NetworkOptions`.

    Raises:
        ValueError: an unknown name, or an option that is out of range or does not apply.
        TypeError: an unknown option.
        FileNotFoundError, DownloadError, CheckpointError: see `load`.

    >>> model = create_model("mobilevit_xxs", classes=["cat", "dog"])
    >>> model.config.num_classes
    2
    """
    file, found, config = str(weights), None, default_config(name)
    if weights is not None:
        found = read(weights, preprocessing=preprocessing)
        config = _config_for(name, found.config, file=file)
    if num_classes is None:
        num_classes = len(classes) if classes else config.num_classes
    if classes is not None or num_classes != config.num_classes:
        has_head = found is not None and found.config.model == name
        if has_head and classes and not config.classes and num_classes == config.num_classes:
            log.warning(
                "%s does not name its %d classes: the head is kept, and its outputs are taken to "
                "be %s",
                *(file, num_classes, shorten(list(classes), 3)),
            )
        names = None if classes is None else tuple(classes)
        config = replace(config, num_classes=num_classes, classes=names, category_ids=None)
    random_state = torch.get_rng_state()
    model = build(
        name,
        num_classes=config.num_classes,
        features_only=features_only,
        **{**config.options, **options},
    )
    model.config = replace(
        config,
        options=model.config.options,
        preprocessing=config.preprocessing.with_fields(preprocessing or {}),
    )
    if found is not None and not _copy_weights(model, found, file=file, new_head=new_head):
        torch.set_rng_state(random_state)
    return model


def _config_for(name: str, found: ModelConfig, *, file: str) -> ModelConfig:
    """The configuration of weights, as far as it applies to a network of this name."""
    if split_name(found.model)[1] != split_name(name)[1]:
        raise CheckpointError(f"{file} holds {found.model}, not {name}")
    if found.model == name:
        return replace(found, metrics={})
    # Another task: pixel values as they were, size and shape as the task has them.
    new = default_config(name)
    frame = {field: getattr(new.preprocessing, field) for field in _FRAME}
    foreign = (*HEAD_OPTIONS, "output_stride")
    return replace(
        new,
        options={key: value for key, value in found.options.items() if key not in foreign},
        preprocessing=found.preprocessing.with_fields(frame),
        source=found.source,
    )


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
            or a URL, `https://...`, which may end in `#sha256=` and the file's digest. Files that
            are not cached are downloaded.
        classes: names of the classes in the order of the logits, if the file has none.
        preprocessing: fields of `Preprocessing` that differ from the file's or its layout's.

    Raises:
        FileNotFoundError: `source` is neither a file or folder nor any of the others.
        DownloadError: it could not be downloaded.
        CheckpointError: it cannot be read, has no head, or lacks tensors; the message says which.
        ValueError: another number of names than of logits.
    """
    found = read(source, preprocessing=preprocessing)
    config = found.config
    if split_name(config.model)[0].count_classes(found.tensors) is None:
        raise CheckpointError(
            f"{source} holds a backbone without a head; create_model({config.model!r}, "
            "num_classes=..., weights=...) puts a new one on it, to be trained"
        )
    if classes is not None:
        config = replace(config, classes=tuple(classes))
    with torch.random.fork_rng(devices=[]):
        model = build(config.model, num_classes=config.num_classes, **config.options)
    assert not isinstance(model, Backbone)
    model.config = _with_coco_ids(config)
    _copy_weights(model, found, file=str(source), new_head=False)
    return model.eval()


def _with_coco_ids(config: ModelConfig) -> ModelConfig:
    """Add COCO's category ids to a detector of COCO's classes that has none."""
    if config.task != "detection" or config.num_classes != 80 or config.category_ids:
        return config
    names, numbers = coco_classes()
    return replace(config, category_ids=numbers) if config.classes == names else config


def open_model(
    model: str | Path | Network,
    *,
    classes: str | Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
) -> tuple[Network, str]:
    """The network that a command was given, loaded if necessary, and its name for messages."""
    if isinstance(model, str | Path):
        return load(model, classes=class_names(classes), preprocessing=preprocessing), str(model)
    if classes is not None or preprocessing:
        raise ValueError(
            "classes and preprocessing are for a model that is read from a file; those of a "
            "network are in its config: model.config = dataclasses.replace(model.config, ...)"
        )
    return model, model.name


def require_classes(config: ModelConfig, name: str) -> tuple[str, ...]:
    """The class names of the network called `name` in messages; ValueError if they are unknown."""
    if config.classes is None:
        raise ValueError(
            f"{name} does not name its {config.num_classes} classes; state the names with "
            "--classes: names in the order of the outputs, a file of them, or one of imagenet1k, "
            "coco, voc and ade20k"
        )
    return config.classes


def _copy_weights(
    model: Network | Backbone, weights: Weights, *, file: str, new_head: bool
) -> list[str]:
    """Copy weights into a network, and return the names of its tensors that stay new.

    These may be new: everything but the backbone, if the file is of another task or a backbone
    alone; an auxiliary head that the file lacks; the tensors that count classes, if the classes
    differ. An auxiliary head that the network lacks is left out, and the first convolution is
    adapted to another number of channels.
    """
    network: nn.Module = model
    if not isinstance(model, Backbone) and model.config.model == weights.config.model:
        tensors = _with_same_classes(model, weights, file=file, new_head=new_head)
    else:
        tensors = {key: x for key, x in weights.tensors.items() if key.startswith(_BACKBONE)}
    if isinstance(model, Backbone):
        network = nn.ModuleDict({"backbone": model})
    theirs, ours = (x.config.options.get("in_channels", 3) for x in (weights, model))
    if theirs != ours:
        tensors[_STEM] = adapt_channels(tensors[_STEM], ours)
        log.warning(
            "%s is for images of %d channels: its first convolution is adapted to %d",
            *(file, theirs, ours),
        )
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # other shapes, a line each
        _, *shapes = map(str.strip, str(error).splitlines())
        raise CheckpointError(f"{file} cannot be used: {shorten(shapes)}") from error
    required = [key for key in missing if not new_head or key.startswith(_BACKBONE)]
    for problem, keys in ((f"{file} lacks", required), ("the model has no place for", unexpected)):
        if keys:
            raise CheckpointError(f"{file} cannot be used: {problem} {shorten(keys)}")
    if missing:
        modules = sorted({key.partition(".")[0] for key in missing})
        shown = missing if len(missing) <= _NAMES_SHOWN else [f"all of {', '.join(modules)}"]
        log.warning("new tensors, not from %s: %s", file, ", ".join(shown))
    return missing


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a convolution's weights `[out, in, k, k]` to images of another number of channels.

    A grey image gives the same outputs: fewer channels have equal shares of the sum over all, more
    repeat them in turn, scaled down by how often each is repeated.
    """
    given = weight.shape[1]
    if channels < given:
        return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)
    source = torch.arange(channels) % given
    return weight[:, source] / source.bincount()[source].view(-1, 1, 1)


def _with_same_classes(
    model: Network, weights: Weights, *, file: str, new_head: bool
) -> dict[str, Tensor]:
    """The file's tensors, without those for classes that the network does not have."""
    ours, theirs = model.config, weights.config
    has_aux = getattr(model, "aux", None) is not None
    tensors = {key: x for key, x in weights.tensors.items() if has_aux or key[:4] != "aux."}
    same_names = None in (ours.classes, theirs.classes) or ours.classes == theirs.classes
    counting = [key for key in tensors if key.startswith(split_name(model.name)[0].class_tensors)]
    if not counting or (same_names and ours.num_classes == theirs.num_classes):
        return tensors
    if not new_head:
        off_by = abs(ours.num_classes - theirs.num_classes)
        other = (
            f"{theirs.num_classes} classes, not {ours.num_classes}" if off_by else "other classes"
        )
        raise CheckpointError(
            f"{file} cannot be used: {' and '.join(counting[-2:])} are for {other}"
            + ("; is one of them background?" if off_by == 1 else "")
        )
    return {key: value for key, value in tensors.items() if key not in counting}
