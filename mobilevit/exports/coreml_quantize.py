"""Core ML packages of fewer bits: of the weights alone, or of what is computed as well."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mobilevit.exports.equalise import equalised
from mobilevit.exports.facts import ExportError
from mobilevit.exports.prepare import Prepared, need

SMALL = 2048
"""Weights of fewer values than this stay float: they are a small part of the file."""

PALETTES = {"palette8": 8, "palette6": 6, "palette4": 4}
"""Bits of a place in a tensor's palette, by kind of quantisation."""


def compressed(model: Any, prepared: Prepared, parameters: Mapping[str, str]) -> Any:
    """A model whose weights are kept in fewer bits, but for those of some names."""
    cto: Any = importlib.import_module("coremltools.optimize.coreml")
    floats = dict.fromkeys(_kept(model, prepared, parameters))
    assert prepared.request.quantize is not None
    kind = prepared.request.quantize.kind
    if kind == "int8":
        way = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int8",
            granularity="per_channel",
            weight_threshold=SMALL,
        )
        config = cto.OptimizationConfig(global_config=way, op_name_configs=floats)
        return cto.linear_quantize_weights(model, config)
    if kind not in PALETTES:
        raise ExportError(
            f"Core ML packages can not be quantised as {kind!r}; int8, {', '.join(PALETTES)} can "
            "be done"
        )
    need("sklearn", extra="coreml")
    way, fine = (
        cto.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=SMALL)
        for bits in (PALETTES[kind], 8)
    )
    weights = cto.get_weights_metadata(model, SMALL)
    finer = dict.fromkeys(_fine(weights, parameters), fine)
    config = cto.OptimizationConfig(global_config=way, op_name_configs=finer | floats)
    return cto.palettize_weights(model, config)


def _fine(weights: Mapping[str, Any], parameters: Mapping[str, str]) -> list[str]:
    """Names of the weights that get palettes of 256 values whatever is asked for.

    All but those of transformer layers and of 3x3 convolutions, which are nine tenths of a network.
    Some channels of an inverted residual reach a hundred times as far as others, so that a palette
    of few values has none for most of them.
    """
    return [
        name
        for name, about in weights.items()
        if about.val.ndim != 4 or about.val.shape[2:] == (1, 1)
        if ".layers." not in parameters.get(name.removesuffix("_to_fp16"), "")
    ]


def _kept(model: Any, prepared: Prepared, parameters: Mapping[str, str]) -> list[str]:
    """Names in the graph of the weights that are to stay float.

    Args:
        model: coremltools' model.
        prepared: what it was made of.
        parameters: names in the module by those in torch's graph, which the former keeps.

    Raises:
        ExportError: there is no such layer, or its weights are not found.
    """
    assert prepared.request.quantize is not None
    keep = prepared.request.quantize.keep
    cto: Any = importlib.import_module("coremltools.optimize.coreml")
    large = cto.get_weights_metadata(model, weight_threshold=SMALL)
    sizes = {name: values.numel() for name, values in prepared.module.named_parameters()}
    kept = []
    for name, parameter in parameters.items():
        if not any(parameter.startswith(f"{layer}.") for layer in keep):
            continue
        found = [one for one in (name, f"{name}_to_fp16") if one in large]
        if not found and sizes[parameter] > SMALL:
            raise ExportError(f"{parameter} is to stay float, and is not in Core ML's graph alone")
        kept += found
    return kept


