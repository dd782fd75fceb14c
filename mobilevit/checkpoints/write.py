"""Write networks in the layouts of the authors, timm and transformers."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from mobilevit.checkpoints.adapter import WEIGHT_SUFFIXES, Adapter, JsonFiles
from mobilevit.checkpoints.folder import WEIGHTS, save
from mobilevit.checkpoints.keymap import CheckpointError, Layout
from mobilevit.checkpoints.read import ADAPTERS, implied_options
from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import VARIANTS, Network, changed_options, split_name
from mobilevit.utils.files import write_file

Target = Literal["folder", "authors", "timm", "transformers"]

_STEM = "backbone.stem.conv.weight"


def write(model: Network, out: str | Path, *, to: Target) -> list[str]:
    """Write a network with its weights; each file is replaced in one step.

    Reading it back gives the same tensors, bit for bit, and the same outputs. If the layout fixes
    another channel order than the network's, the first convolution's input channels are reversed.

    Args:
        model: a network of `create_model` or `load`.
        out: a file for `authors`; for `timm` a file if it ends in `.safetensors`, `.pt` or `.pth`;
            otherwise a folder.
        to: the layout; `folder` is this library's model folder.

    Returns:
        What the layout has no place for, in words for the user.
    """
    out = Path(out)
    if to == "folder":
        save(model, out)
        return []
    adapter, config = ADAPTERS[to], model.config
    is_file = out.suffix in WEIGHT_SUFFIXES
    if adapter.write_config is None and not is_file:
        raise ValueError(f"a checkpoint of {to} is a file: {out} must end in .pt")
    if adapter.states_options and is_file:
        raise ValueError(f"a checkpoint of {to} is a folder, so it cannot be the file {out}")
    layout = _layout_for(model, adapter)
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    notes = []
    if not adapter.states_options:
        _refuse_unstated_options(model, layout, tensors)
        order, theirs = config.preprocessing.channel_order, layout.preprocessing.channel_order
        if order != theirs:
            tensors[_STEM] = tensors[_STEM].flip(1)
            notes.append(
                f"channel order {order}: the first convolution was reversed for {theirs}, which "
                "readers of this layout expect"
            )
    kept = {key: x for key, x in tensors.items() if not key.startswith(adapter.omitted_tensors)}
    tensors = {key: value.contiguous() for key, value in layout.from_ours(kept).items()}
    notes += adapter.notes(config)
    files: JsonFiles = {}
    if is_file:
        notes += _unstated(config, layout)
    elif adapter.write_config:
        files, out = adapter.write_config(config), out / WEIGHTS
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = BytesIO()
    if out.suffix == ".safetensors":
        weights.write(to_bytes(tensors, metadata={"format": "pt"}))
    else:
        torch.save(tensors, weights)
    write_file(out, weights.getvalue())
    for name, content in files.items():
        write_file(out.with_name(name), json.dumps(content, indent=2) + "\n")
    return notes


def _layout_for(model: Network, adapter: Adapter) -> Layout:
    """The first of a source's layouts for such networks, if possible with their align_corners."""
    head, variant = split_name(model.name)
    wanted = head.prefix, VARIANTS[variant].block
    layouts = [layout for layout in adapter.layouts if (layout.head, layout.block) == wanted]
    if not layouts:
        raise CheckpointError(f"{adapter.name} has no {head.prefix.rstrip('_')} networks")
    same = (None, getattr(model, "align_corners", None))
    return next((layout for layout in layouts if layout.align_corners in same), layouts[0])


def _refuse_unstated_options(model: Network, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a network whose options its file would neither state nor show."""
    implied = changed_options(model.name, implied_options(layout, tensors))
    options = {key: x for key, x in model.config.options.items() if not key.endswith("dropout")}
    if lost := [key for key in options | implied if options.get(key) != implied.get(key)]:
        raise CheckpointError(
            f"{model.name} with {', '.join(lost)} cannot be written: the layout does not state it"
        )


def _unstated(config: ModelConfig, layout: Layout) -> list[str]:
    """What a file of tensors alone loses, where readers assume something else."""
    notes = []
    if config.classes is not None:
        notes.append(f"the names of its {len(config.classes)} classes")
    for field in ("resize_mode", "resize", "crop", "interpolation", "mean", "std"):
        value, assumed = (getattr(x.preprocessing, field) for x in (config, layout))
        if value != assumed:
            notes.append(f"{field} {value}, where readers assume {assumed}")
    return notes
