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
from mobilevit.exports.whole import Raw, Whole

ACTIVATIONS = "int8-activations"
"""The kind for weights and activations of 8 bits; the other kinds are of weights alone."""

PALETTES = {"palette8": 8, "palette6": 6, "palette4": 4}
"""Bits of a place in a tensor's palette, by kind of quantisation."""

KINDS = ("int8", ACTIVATIONS, *PALETTES)

SMALL = 2048
"""Weights of fewer values than this stay float: they are a small part of the file."""


def check(prepared: Prepared) -> None:
    """See that a network can be quantised as it is asked for.

    Raises:
        ExportError: there is no such kind, or no layer of a name that is to stay float.
        MissingExtraError: the packages for it are not installed.
    """
    quantize = prepared.request.quantize
    if quantize is None:
        return
    if quantize.kind not in KINDS:
        raise ExportError(
            f"Core ML packages can not be quantised as {quantize.kind!r}; {', '.join(KINDS)} can "
            "be done"
        )
    unknown = quantize.keep - dict(prepared.module.named_modules()).keys()
    if unknown:
        raise ExportError(f"there is no layer {', '.join(sorted(unknown))} to keep in float")
    if quantize.kind in PALETTES:
        need("sklearn", extra="coreml")
    if quantize.kind == ACTIVATIONS:
        need("torchao", "executorch", extra="executorch")


def with_int8_activations(prepared: Prepared) -> Prepared:
    """Put the rounding to 8 bits into a network's graph, of weights and of what is computed.

    Ranges are those on the photos. What belongs around the network, such as the suppression of
    boxes, and layers that are to stay float are left out.

    Raises:
        ExportError: there are no photos.
    """
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    quantizers: Any = importlib.import_module("executorch.backends.apple.coreml.quantizer")
    configs: Any = importlib.import_module("coremltools.optimize.torch.quantization")
    prepared = equalised(prepared)
    quantize = prepared.request.quantize
    assert quantize is not None

    def wanted(node: torch.fx.Node) -> bool:
        path = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
        inside = not isinstance(prepared.module, Whole | Raw) or "form" in path
        return inside and not quantize.keep.intersection(path)

    class Chosen(quantizers.CoreMLQuantizer):
        """Core ML's quantiser of some nodes; its own choice by names takes one name's all."""

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            """Mark the nodes."""
            self._annotate_all_patterns(model, self._config.global_config, wanted)
            return model

    # Affine: what SiLU gives lies above 0 but for a little.
    config = {"quantization_scheme": "affine", "weight_per_channel": True}
    quantizer = Chosen(configs.LinearQuantizerConfig.from_dict({"global_config": config}))
    with torch.no_grad():
        module = pt2e.prepare_pt2e(prepared.program().module(), quantizer)
        for photo in prepared.calibration():
            module(photo)
        module = pt2e.convert_pt2e(module)
    return replace(prepared, module=module)


def compressed(model: Any, prepared: Prepared, parameters: Mapping[str, str]) -> Any:
    """A model whose weights are kept in fewer bits.

    Args:
        model: coremltools' model.
        prepared: what it was made of, which says how it is to be quantised.
        parameters: names of weights in the module by those in torch's graph, which coremltools'
            keeps.

    Raises:
        ExportError: weights that are to stay float are not found.
    """
    cto: Any = importlib.import_module("coremltools.optimize.coreml")
    quantize = prepared.request.quantize
    assert quantize is not None
    weights = cto.get_weights_metadata(model, weight_threshold=SMALL)
    names: dict[str, Any] = dict.fromkeys(_kept(weights, prepared, parameters))
    if quantize.kind == "int8":
        way = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int8",
            granularity="per_channel",
            weight_threshold=SMALL,
        )
        config = cto.OptimizationConfig(global_config=way, op_name_configs=names)
        return cto.linear_quantize_weights(model, config)
    way, fine = (
        cto.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=SMALL)
        for bits in (PALETTES[quantize.kind], 8)
    )
    names = dict.fromkeys(_fine(weights, parameters), fine) | names
    config = cto.OptimizationConfig(global_config=way, op_name_configs=names)
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


def _kept(
    weights: Mapping[str, Any], prepared: Prepared, parameters: Mapping[str, str]
) -> list[str]:
    """Names in coremltools' graph of the weights that are to stay float.

    Raises:
        ExportError: they are not found.
    """
    assert prepared.request.quantize is not None
    keep = prepared.request.quantize.keep
    sizes = {name: values.numel() for name, values in prepared.module.named_parameters()}
    kept = []
    for name, parameter in parameters.items():
        if not any(parameter.startswith(f"{layer}.") for layer in keep):
            continue
        found = [one for one in (name, f"{name}_to_fp16") if one in weights]
        if not found and sizes[parameter] > SMALL:
            raise ExportError(f"{parameter} is to stay float, but is not in Core ML's graph alone")
        kept += found
    return kept
