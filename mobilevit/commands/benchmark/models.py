"""What `mobilevit benchmark` times: networks, each at one size of image, and exported files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import WEIGHTS, digest, save
from mobilevit.commands.benchmark.peers import MAKERS, NEW, Alone, Home, outside
from mobilevit.exports.backends.base import Backend
from mobilevit.exports.backends.registry import backend_of, open_exported
from mobilevit.exports.spec import (
    ExportSpec,
    FileMetadata,
    Precision,
    Quantization,
    file_preprocessing,
)
from mobilevit.exports.wrap import PreparedModel
from mobilevit.models.config import ModelConfig
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network, NetworkOptions, list_models, split_name

MODEL, RECORD = "model", "subject.json"
"""Of a kept subject: its model folder, and what else is to be known."""
SPREAD_SIZE, SPREAD_BATCH = 128, 4
"""Pixels and number of the images of noise that new weights' norms are set on."""
SPREAD_GRAINS = (4, 16, 64, 256)
"""So many grains of noise lie along a side, beside those of one pixel."""


class Words(NamedTuple):
    """What a person calls a subject, `home:name:option=value:...@size`, taken apart."""

    home: Home | None
    """Whose the network is; None: ours."""
    name: str
    options: dict[str, Any]
    size: int | None

    @classmethod
    def read(cls, text: str) -> Words:
        """Take a text apart; what is a file or folder here, or may be elsewhere, stays whole.

        Raises:
            ValueError: an option without a value.
        """
        if Path(text).exists():
            return cls(None, text, {}, None)
        whole = re.fullmatch(r"(.+?)(?:@(\d{2,4}))?", text)
        assert whole is not None
        rest, size = whole[1], None if whole[2] is None else int(whole[2])
        home = next((home for home in MAKERS if rest.startswith(f"{home}:")), None)
        first, *given = rest.removeprefix(f"{home}:").split(":")
        if Path(rest).exists() or (home is None and "/" in rest):
            return cls(None, rest, {}, size)
        options = {}
        for option in given:
            key, _, value = option.partition("=")
            if not value:
                raise ValueError(
                    f"{text}: {option!r} is no option; options are written like "
                    "mobilevit_xs:patch_sizes=8,4,2:output_stride=16"
                )
            options[key] = yaml.safe_load(f"[{value}]" if "," in value else value)
        return cls(home, first, options, size)

    @property
    def called(self) -> str:
        """The same text without the size."""
        options = (
            f":{key}={','.join(map(str, v)) if isinstance(v, list) else v}"
            for key, v in self.options.items()
        )
        return "".join([f"{self.home}:" if self.home else "", self.name, *options])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network at one size of image."""

    name: str
    """As the person wrote it, without the size."""
    network: nn.Module
    """In evaluation mode, as it was trained: what every runtime's outputs are compared with."""
    config: ModelConfig
    """Its preprocessing makes squares of the size; its `model` is a name of this library, or says
    whose it is."""
    own_size: int
    """Side of the input in pixels that it has where nobody states one."""
    weights: str
    """Their digest; see `mobilevit.checkpoints.folder.digest`."""

    @property
    def size(self) -> int:
        """Side of the input in pixels."""
        return self.config.preprocessing.crop

    @property
    def new(self) -> bool:
        """Whether nobody has trained its weights."""
        return self.config.source.startswith(NEW)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(weight.numel() for weight in self.network.parameters())

    def inference(self, precision: Precision) -> Alone:
        """The form that PyTorch itself runs: channels-last, and fused where it is ours."""
        if isinstance(self.network, Alone):
            form = copy.deepcopy(self.network).to(memory_format=torch.channels_last)
        else:
            form = Alone(fuse(self.network))
        if precision == "fp16":
            form.halve()
        return form.eval().requires_grad_(False)

    def prepared(
        self, kind: Backend, *, batch: int, precision: Precision, quantize: Quantization | None
    ) -> PreparedModel:
        """The network alone, for a file of one size and batch: a tensor in, logits out.

        Raises:
            ExportError: such a file cannot be made.
        """
        spec = ExportSpec(raw=True, precision=precision, quantize=quantize)
        example = torch.zeros(batch, 3, self.size, self.size)
        if not isinstance(self.network, Alone):
            network: Any = self.network
            return replace(kind.prepare(network, spec), example=example)
        module = copy.deepcopy(self.network).requires_grad_(False)
        if precision == "fp16" and not kind.native_fp16:
            module.halve()
        metadata = FileMetadata(
            config=self.config,
            weights=self.weights,
            raw=True,
            precision=precision,
            quantize=quantize.mode if quantize else None,
        )
        return PreparedModel(
            module=module, example=example, metadata=metadata, spec=spec, dynamic_shapes=None
        )

    def keep(self, folder: Path) -> Path:
        """Write all that another process needs to have the same to a new folder.

        Returns:
            The file of the weights.
        """
        folder.mkdir()
        record = {
            "name": self.name,
            "own_size": self.own_size,
            "weights": self.weights,
            "size": self.size,
        }
        (folder / RECORD).write_text(json.dumps(record))
        if isinstance(self.network, Alone):
            save_file({k: v.contiguous() for k, v in self._tensors().items()}, folder / WEIGHTS)
            return folder / WEIGHTS
        network: Any = self.network
        return save(network, folder / MODEL) / WEIGHTS

    def _tensors(self) -> dict[str, torch.Tensor]:
        return self.network.state_dict()

    @classmethod
    def kept(cls, folder: Path) -> Subject:
        """Read what `keep` wrote."""
        record = json.loads((folder / RECORD).read_text())
        size = record.pop("size")
        if (folder / MODEL).exists():
            model = load(folder / MODEL)
            return cls(network=model, config=model.config, **record)
        words = Words.read(record["name"])
        assert words.home is not None
        network, config, _ = outside(words.home, words.name, words.options, size)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return cls(network=network, config=config, **record)


@dataclass(frozen=True, kw_only=True)
class FileSubject:
    """An exported file, which only its own runtime can run."""

    name: str
    format: Backend
    metadata: FileMetadata
    size: int
    """Side of the images in pixels."""

    @property
    def config(self) -> ModelConfig:
        """Of the network that it was made of."""
        return self.metadata.config

    @property
    def own_size(self) -> int:
        """The size that it was made for."""
        return self.config.preprocessing.crop

    def refusal(self, batch: int) -> str | None:
        """Why it cannot run such a batch; None where it can."""
        if self.size != self.own_size and self.metadata.dynamic != "size":
            return f"the file is for {self.own_size} px; export one for {self.size} px"
        if batch > 1 and self.metadata.dynamic != "batch":
            return "the file takes one image at a time; export one with --dynamic batch"
        return None


AnySubject = Subject | FileSubject


def subjects(
    models: Sequence[str | Path | Network], sizes: Sequence[int] | None
) -> list[AnySubject]:
    """What is to be timed, in the order given, each at all its sizes.

    Args:
        models: what people write, or networks.
        sizes: in pixels, for those that state none themselves; by default each has its own.

    Raises:
        ValueError: one is unknown, or cannot be had at a size; the message says what can.
        OSError: a file cannot be read.
    """
    found: list[AnySubject] = []
    for model in models:
        if isinstance(model, nn.Module):
            found += _at_sizes(model.name, model, sizes)
            continue
        words = Words.read(str(model))
        wanted = sizes if words.size is None else [words.size]
        kind = backend_of(words.name)
        if words.home is not None:
            found += _outsiders(words, wanted)
        elif kind is not None:
            metadata = open_exported(words.name, kind).metadata
            found += [
                FileSubject(name=words.name, format=kind, metadata=metadata, size=size)
                for size in wanted or [metadata.config.preprocessing.crop]
            ]
        else:
            found += _at_sizes(words.called, _named(words), wanted)
    return found


def _named(words: Words) -> Network:
    """A network of this library by what people write: with new weights, or with those of a file.

    Raises:
        ValueError: there is none, or an option is none of it.
        OSError: there is no such file.
    """
    if words.name not in list_models():
        # What looks like a name of a network, or has options, is taken for a slip in one.
        if words.options or re.fullmatch(r"[a-z0-9_]+", words.name):
            split_name(words.name)
        return load(words.name)
    known = {"num_classes", *(field.name for field in fields(NetworkOptions))}
    if unknown := sorted(words.options.keys() - known):
        raise ValueError(
            f"{words.name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model: Any = create_model(words.name, **words.options)
        except TypeError as error:  # a value of the wrong kind
            raise ValueError(f"{words.called}: {error}") from error
        spread(_taking_photos(words.called, model), SPREAD_SIZE)
    network: Network = model
    return network


def _taking_photos(name: str, model: Network) -> Network:
    """The same.

    Raises:
        ValueError: it does not take red, green and blue.
    """
    channels = model.backbone.in_channels
    if channels != 3:
        raise ValueError(f"{name} takes {channels} channels; the photos to time it on have 3")
    return model


def _at_sizes(name: str, model: Network, sizes: Sequence[int] | None) -> list[AnySubject]:
    """One of ours at several sizes; the original is left as it was.

    Raises:
        ValueError: it takes no photos, or not of such a size.
    """
    own = _taking_photos(name, model).config.preprocessing.crop
    found: list[AnySubject] = []
    for size in sizes or [own]:
        network = copy.deepcopy(model).eval()
        rule = file_preprocessing(model.config.preprocessing.at(size), None)
        network.config = replace(model.config, preprocessing=rule)
        found.append(_tried(name, network, network.config, own))
    return found


def _outsiders(words: Words, sizes: Sequence[int] | None) -> list[AnySubject]:
    assert words.home is not None
    found: list[AnySubject] = []
    wanted: Sequence[int | None] = sizes or [None]
    for size in wanted:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, config, own = outside(words.home, words.name, words.options, size)
            spread(network, config.preprocessing.crop)
        found.append(_tried(words.called, network, config, own))
    return found


def _tried(name: str, network: nn.Module, config: ModelConfig, own: int) -> Subject:
    """A subject that runs at its size.

    Raises:
        ValueError: it does not.
    """
    subject = Subject(
        name=name,
        network=network,
        config=config,
        own_size=own,
        weights=digest(network.state_dict()),
    )
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, subject.size, subject.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{name} cannot run at {subject.size} px: {error}") from error
    return subject


def spread(network: nn.Module, size: int) -> None:
    """Set the batch norms of new weights on noise, and leave the network in evaluation mode.

    Else activations fade or burst from layer to layer, and the answer is the same for all images:
    neither speed nor agreement would be those of a trained network.

    Args:
        network: with new weights.
        size: side of the noise in pixels.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean of all batches
    if norms:
        with torch.no_grad():
            network.train()(_noise(SPREAD_BATCH, size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _noise(count: int, size: int) -> torch.Tensor:
    """Noise with coarse and fine parts, as photos have: `[count, 3, size, size]` in [0, 1]."""
    grains = [*(grain for grain in SPREAD_GRAINS if grain < size), size]
    draws = [
        F.interpolate(torch.rand(count, 3, grain, grain) - 0.5, (size, size), mode="bilinear")
        for grain in grains
    ]
    return (torch.stack(draws).sum(0) / len(draws) ** 0.5 + 0.5).clamp(0, 1)
