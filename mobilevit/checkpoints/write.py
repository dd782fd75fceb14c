"""Networks written as the authors', timm or transformers keep theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from mobilevit.checkpoints import authors, timm, transformers
from mobilevit.checkpoints.folder import WEIGHTS, save
from mobilevit.checkpoints.keymap import CheckpointError, Layout
from mobilevit.checkpoints.read import implied_options
from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import Network, architecture, changed_options, split_name
from mobilevit.utils.files import replace_file, write_file

Target = Literal["folder", "authors", "timm", "transformers"]

# Options that change nothing about a trained network's answer.
_HARMLESS = ("dropout", "attention_dropout", "ffn_dropout", "classifier_dropout", "aspp_dropout")


def write(model: Network, out: str | Path, *, to: Target) -> list[str]:
    """Write a network with its weights, in one step each file.

    Reading it back gives the same tensors, bit for bit, and the same answers: where a layout has
    one fixed order of channels and the network another, its first convolution's input channels
    are reversed.

    Args:
        model: a network of `create_model` or `load`.
        out: a folder, or a file for `authors`, or for `timm` if it ends in `.safetensors`, `.pt`
            or `.pth`.
        to: the layout: `folder` is this library's model folder.

    Returns:
        What the layout has no place for, in words: its reader has to be told.

    Raises:
        CheckpointError: the layout cannot hold this network.
        ValueError: `out` has the wrong form for this layout, or see `save`.
    """
    out = Path(out)
    if to == "folder":
        save(model, out)
        return []
    config: ModelConfig = model.config
    home: Any = {"authors": authors, "timm": timm, "transformers": transformers}[to]
    is_file = out.suffix in (".safetensors", ".pt", ".pth")
    if to == "authors" and not is_file:
        raise ValueError(f"the authors' checkpoints are files: {out} must end in .pt")
    if to == "transformers" and is_file:
        raise ValueError(f"transformers keeps a network in a folder, not in a file like {out}")
    layout = _layout(model, home.LAYOUTS, to)
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    implied = changed_options(model.name, implied_options(layout, tensors))
    if to != "transformers" and (
        lost := [
            key
            for key in {**config.options, **implied}
            if key not in _HARMLESS and config.options.get(key) != implied.get(key)
        ]
    ):
        raise CheckpointError(
            f"{model.name} with {', '.join(lost)} cannot be written: its reader would not know"
        )
    notes = []
    custom: str = config.preprocessing.channel_order
    if to != "transformers":
        custom = home.PREPROCESSING[layout].channel_order
    if custom != config.preprocessing.channel_order:
        tensors["backbone.stem.conv.weight"] = tensors["backbone.stem.conv.weight"].flip(1)
        notes.append(
            f"channel order {config.preprocessing.channel_order}: the first convolution was "
            f"reversed for {custom}, which this layout's readers take"
        )
    if to == "transformers":
        tensors = {key: value for key, value in tensors.items() if not key.startswith("aux.")}
        notes += transformers.unsaid(config)
    theirs = {key: value.contiguous() for key, value in layout.from_ours(tensors).items()}
    if to == "authors" or is_file:
        notes += _unsaid(config, home.PREPROCESSING[layout])
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_tensors(theirs, out)
        return notes
    described = home.files(config)
    out.mkdir(parents=True, exist_ok=True)
    _write_tensors(theirs, out / WEIGHTS)
    for name, content in described.items():
        write_file(out / name, json.dumps(content, indent=2) + "\n")
    return notes


def _layout(model: Network, layouts: Sequence[Layout], to: str) -> Layout:
    """The one of a source's layouts that holds such a network.

    Raises:
        CheckpointError: none does.
    """
    version, head = architecture(model.name).version, split_name(model.name)[0].prefix
    fitting = [one for one in layouts if (one.head, one.version) == (head, version)]
    if not fitting:
        raise CheckpointError(f"{to} has no {head.rstrip('_')} networks")
    corners = getattr(model, "align_corners", None)
    fitting = [one for one in fitting if one.align_corners in (None, corners)]
    if not fitting:
        raise CheckpointError(
            f"{model.name} with align_corners {corners} cannot be written: {to} has no such form"
        )
    return fitting[0]


def _unsaid(config: ModelConfig, custom: Any) -> list[str]:
    """What a file of tensors alone does not say, or says otherwise by its layout's custom."""
    rule = config.preprocessing
    plain = replace(rule, channel_order=custom.channel_order, assumed=custom.assumed)
    notes = []
    if config.classes is not None:
        notes.append(f"the names of its {len(config.classes)} classes")
    for field in ("resize_mode", "resize", "crop", "interpolation", "mean", "std"):
        if (value := getattr(plain, field)) != getattr(custom, field):
            notes.append(f"{field} {value}, where its reader takes {getattr(custom, field)}")
    return notes


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    with replace_file(path) as fresh:
        if path.suffix == ".safetensors":
            save_file(dict(tensors), fresh, metadata={"format": "pt"})
        else:
            torch.save(dict(tensors), fresh)
