"""The interface of a source of checkpoints: the authors, timm or transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mobilevit.checkpoints.keymap import Layout
from mobilevit.models.config import ModelConfig

JSON_FILES = CONFIG, PROCESSOR = ("config.json", "preprocessor_config.json")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")

JsonFiles: TypeAlias = Mapping[str, Mapping[str, Any]]
"""File name -> content, for the JSON files in a folder."""


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """What the JSON files of a folder state about its weights."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `create_model`."""
    classes: tuple[str, ...] | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `Preprocessing` that are stated."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A source of checkpoints: its layouts, and the JSON files of its folders."""

    name: str
    layouts: tuple[Layout, ...]
    read_config: Callable[[JsonFiles, Layout, str], FolderConfig] | None = None
    """(JSON files, layout, name for messages) -> what they state."""
    write_config: Callable[[ModelConfig], JsonFiles] | None = None
    """The JSON files of a network's folder; without it, checkpoints are single files."""
    states_options: bool = False
    """Whether its files state options and channel order; checkpoints must then be folders."""
    omitted_tensors: tuple[str, ...] = ()
    """Prefixes of our tensor names that the source has no place for and can do without."""
    notes: Callable[[ModelConfig], list[str]] = lambda config: []
    """What its folders lose of a network, or its own code computes differently, in words."""
