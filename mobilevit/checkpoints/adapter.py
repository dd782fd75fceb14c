"""What a source of checkpoints has to offer, so that `read` and `write` know nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mobilevit.checkpoints.keymap import Layout
from mobilevit.models.config import ModelConfig

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")

JsonFiles: TypeAlias = Mapping[str, Mapping[str, Any]]
"""File name -> content, of the JSON files in a folder."""


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """What a folder's JSON files state about the weights next to them."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `create_model`."""
    classes: tuple[str, ...] | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `Preprocessing` that they state."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A source of checkpoints: its layouts, and the JSON files of its folders."""

    name: str
    layouts: tuple[Layout, ...]
    read_config: Callable[[JsonFiles, Layout, str], FolderConfig] | None = None
    """(JSON files, layout, name for messages); raises `CheckpointError` for what this library does
    not support."""
    write_config: Callable[[ModelConfig], JsonFiles] | None = None
    """The JSON files for a network, without which its checkpoints are single files; raises
    `CheckpointError` where they have no place for it."""
    states_options: bool = False
    """Whether these files state a network's options and channel order; then its checkpoints are
    folders."""
    omitted_tensors: tuple[str, ...] = ()
    """Beginnings of our names of tensors that it has no place for and can do without."""
    notes: Callable[[ModelConfig], list[str]] = lambda config: []
    """What its folders do not hold of a network, or its own code does otherwise."""
