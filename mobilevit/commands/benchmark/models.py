"""The subjects of `mobilevit benchmark`: networks and exported files, each at one image size."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import digest
from mobilevit.exports.backends.base import Backend
from mobilevit.exports.backends.registry import backend_of, open_exported
from mobilevit.exports.spec import FileMetadata, file_preprocessing
from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import Network, list_models, split_name

NOISE_SIZE, NOISE_BATCH = 128, 4
"""Side in pixels and number of the noise images on which batch norms of new weights are set."""
NOISE_GRAINS = (4, 16, 64, 256)
"""Grains of noise along a side, in addition to single pixels."""


class ModelSpec(NamedTuple):
    """A model as written on the command line: `name:option=value:...@size`."""

    name: str
    options: dict[str, Any]
    size: int | None

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Split a text; names of existing files, Hub ids and URLs are left alone.

        >>> ModelSpec.parse("mobilevit_xs:patch_sizes=8,4,2@320")
        ModelSpec(name='mobilevit_xs', options={'patch_sizes': [8, 4, 2]}, size=320)
        """
        found = re.fullmatch(r"(.+)@(\d{2,4})", text)
        if found is None or Path(text).exists():
            name, size = text, None
        else:
            name, size = found[1], int(found[2])
        if Path(name).exists() or "/" in name:
            return cls(name, {}, size)
        name, *given = name.split(":")
        options = {}
        for option in given:
            key, _, value = option.partition("=")
            if not value:
                raise ValueError(
                    f"{text}: {option!r} is not an option; options are written like "
                    "mobilevit_xs:patch_sizes=8,4,2:output_stride=16"
                )
            options[key] = yaml.safe_load(f"[{value}]" if "," in value else value)
        return cls(name, options, size)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network or an exported file, at one image size."""

    name: str
    """As the user wrote it, without the size."""
    config: ModelConfig
    """With preprocessing to squares of the size."""
    size: int
    """Side of the input in pixels."""
    own_size: int
    """Its side unless another one is requested."""
    weights: str
    """Their digest; see `mobilevit.checkpoints.folder.digest`."""
    network: Network | None = None
    """In evaluation mode and not fused: the reference for outputs. None for a file."""
    format: Backend | None = None
    """Of a file."""
    file: FileMetadata | None = None

    @property
    def is_new(self) -> bool:
        return self.network is not None and self.config.source == ModelConfig.source

    @property
    def end_to_end(self) -> bool:
        """Whether it takes pixels and gives predictions, rather than tensors and logits."""
        return self.file is not None and not self.file.raw

    def why_not(self, batch: int) -> str:
        """Why it cannot run such a batch; empty if it can."""
        if self.file is None:
            return ""
        if self.size != self.own_size and self.file.dynamic != "size":
            return f"the file is for {self.own_size} px; export one for {self.size} px"
        if batch > 1 and self.file.dynamic != "batch":
            return "the file takes one image at a time; export one with --dynamic batch"
        return ""


def find_subjects(
    models: Sequence[str | Path | Network], sizes: Sequence[int] | None
) -> list[Subject]:
    """The models to time, in the order given, each at all its sizes; networks are copied.

    `sizes` are for models whose name states none; by default each model's own.
    """
    found: list[Subject] = []
    for model in models:
        wanted, network, backend, file = sizes, None, None, None
        if isinstance(model, nn.Module):
            name, network = model.name, model
        else:
            spec = ModelSpec.parse(str(model))
            name, wanted = str(model), sizes
            if spec.size is not None:
                name, wanted = name.rpartition("@")[0], [spec.size]
            backend = backend_of(spec.name)
            network = _open_network(spec) if backend is None else None
        if network is not None:
            config, weights = network.config, digest(network.state_dict())
        else:
            file = open_exported(name, backend).metadata
            config, weights = file.config, file.weights
        own = config.preprocessing.crop
        for size in wanted or [own]:
            prepared = file_preprocessing(config.preprocessing.at(size), None)
            at_size = replace(config, preprocessing=prepared)
            found.append(
                Subject(
                    name=name,
                    config=at_size,
                    size=size,
                    own_size=own,
                    weights=weights,
                    network=None if network is None else _network_at(name, network, at_size),
                    format=backend,
                    file=file,
                )
            )
    return found


def _open_network(spec: ModelSpec) -> Network:
    """A variant with new weights, or anything that `load` reads."""
    if spec.name not in list_models():
        if spec.options:
            split_name(spec.name)  # only a model name has them: raises
        return load(spec.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network: Any = create_model(spec.name, **spec.options)
        except TypeError as error:  # an unknown option, or a value of the wrong type
            given = ", ".join(f"{name}={value}" for name, value in spec.options.items())
            raise ValueError(f"{spec.name} with {given}: {error}") from error
        set_batch_norms(network)
    return cast(Network, network)


def _network_at(name: str, model: Network, config: ModelConfig) -> Network:
    """A copy of a network, for images of one size."""
    size = config.preprocessing.crop
    network = copy.deepcopy(model).eval()
    network.config = config
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{name} cannot run at {size} px: {error}") from error
    return network


def set_batch_norms(network: nn.Module, size: int = NOISE_SIZE) -> None:
    """Set the batch norms of new weights on noise, and put the network in evaluation mode.

    Otherwise activations fade or explode from layer to layer and the outputs are the same for all
    images: neither speed nor agreement would be those of a trained network.
    """
    # Coarse and fine noise, as in photos.
    draws = [
        F.interpolate(torch.rand(NOISE_BATCH, 3, n, n) - 0.5, (size, size), mode="bilinear")
        for n in (*(grain for grain in NOISE_GRAINS if grain < size), size)
    ]
    noise = (torch.stack(draws).sum(0) / len(draws) ** 0.5 + 0.5).clamp(0, 1)
    update_bn([noise], network)
    network.eval()
