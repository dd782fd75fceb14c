"""The subjects of `mobilevit benchmark`: networks and exported files, each at one image size."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn
from torch.nn import functional as F

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import digest
from mobilevit.exports.backends.base import Backend
from mobilevit.exports.backends.registry import backend_of, open_exported
from mobilevit.exports.spec import FileMetadata, file_preprocessing
from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import Network, NetworkOptions, list_models, split_name

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
        if Path(text).exists():
            return cls(text, {}, None)
        parts = re.fullmatch(r"(.+?)(?:@(\d{2,4}))?", text)
        assert parts is not None
        rest, size = parts[1], None if parts[2] is None else int(parts[2])
        if Path(rest).exists() or "/" in rest:
            return cls(rest, {}, size)
        name, *given = rest.split(":")
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

    @property
    def label(self) -> str:
        """The text without the size."""
        options = (
            f":{key}={','.join(map(str, v)) if isinstance(v, list) else v}"
            for key, v in self.options.items()
        )
        return "".join([self.name, *options])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network or an exported file, at one image size."""

    name: str
    """As the user wrote it, without the size."""
    config: ModelConfig
    """Of a network: with preprocessing to squares of the size."""
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

    @property
    def parameters(self) -> int | None:
        """Number of weights; None for a file."""
        if self.network is None:
            return None
        return sum(weight.numel() for weight in self.network.parameters())

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
    """The models to time, in the order given, each at all its sizes.

    `sizes` are for models whose name states none; by default each model's own.
    """
    found: list[Subject] = []
    for model in models:
        if isinstance(model, nn.Module):
            found += _network_subjects(model.name, model, sizes)
            continue
        spec = ModelSpec.parse(str(model))
        wanted = sizes if spec.size is None else [spec.size]
        backend = backend_of(spec.name)
        if backend is None:
            found += _network_subjects(spec.label, _open_network(spec), wanted)
            continue
        metadata = open_exported(spec.name, backend).metadata
        own = metadata.config.preprocessing.crop
        found += [
            Subject(
                name=spec.name,
                config=metadata.config,
                size=size,
                own_size=own,
                weights=metadata.weights,
                format=backend,
                file=metadata,
            )
            for size in wanted or [own]
        ]
    return found


def _open_network(spec: ModelSpec) -> Network:
    """A variant with new weights, or anything that `load` reads."""
    if spec.name not in list_models():
        # What looks like a model name or has options is treated as a misspelt model name.
        if spec.options or re.fullmatch(r"[a-z0-9_]+", spec.name):
            split_name(spec.name)
        return load(spec.name)
    known = {"num_classes", "in_channels", *(field.name for field in fields(NetworkOptions))}
    if unknown := sorted(spec.options.keys() - known):
        raise ValueError(
            f"{spec.name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model: Any = create_model(spec.name, **spec.options)
        except TypeError as error:  # a value of the wrong type
            raise ValueError(f"{spec.label}: {error}") from error
        _require_rgb(spec.label, model)
        set_batch_norms(model)
    network: Network = model
    return network


def _require_rgb(name: str, model: Network) -> None:
    channels = model.backbone.in_channels
    if channels != 3:
        raise ValueError(f"{name} takes {channels} channels; the images to time it on have 3")


def _network_subjects(name: str, model: Network, sizes: Sequence[int] | None) -> list[Subject]:
    """A network at several sizes; the original is not changed."""
    _require_rgb(name, model)
    own = model.config.preprocessing.crop
    weights = digest(model.state_dict())
    found: list[Subject] = []
    for size in sizes or [own]:
        network = copy.deepcopy(model).eval()
        rule = file_preprocessing(model.config.preprocessing.at(size), None)
        network.config = replace(model.config, preprocessing=rule)
        try:
            with torch.inference_mode():
                network(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(f"{name} cannot run at {size} px: {error}") from error
        found.append(
            Subject(
                name=name,
                config=network.config,
                size=size,
                own_size=own,
                weights=weights,
                network=network,
            )
        )
    return found


def set_batch_norms(network: nn.Module, size: int = NOISE_SIZE) -> None:
    """Set the batch norms of new weights on noise, and put the network in evaluation mode.

    Otherwise activations fade or explode from layer to layer and the outputs are the same for all
    images: neither speed nor agreement would be those of a trained network.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean of all batches
    with torch.no_grad():
        network.train()(_noise(NOISE_BATCH, size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _noise(count: int, size: int) -> torch.Tensor:
    """Coarse and fine noise, as in photos: `[count, 3, size, size]` in [0, 1]."""
    grains = [*(grain for grain in NOISE_GRAINS if grain < size), size]
    draws = [
        F.interpolate(torch.rand(count, 3, grain, grain) - 0.5, (size, size), mode="bilinear")
        for grain in grains
    ]
    return (torch.stack(draws).sum(0) / len(draws) ** 0.5 + 0.5).clamp(0, 1)
