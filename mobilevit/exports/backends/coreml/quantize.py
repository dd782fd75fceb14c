"""Core ML packages of fewer bits: of the weights alone, or of what is computed as well."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mobilevit.exports.prepare import Prepared, need
from mobilevit.exports.sensitivity import quantised_layers
from mobilevit.exports.spec import ExportError

PALETTES = {"palette8": 8, "palette6": 6, "palette4": 4}
"""Bits of a place in a tensor's palette, by kind of quantisation."""

KINDS = ("int8", "int8-weights", *PALETTES)
"""Of `int8`, layers compute in 8 bits; of the others, weights alone are kept in fewer bits."""

SMALL = 2048
"""Weights of fewer values than this stay float: they are a small part of the file."""

LEAST_SCALE = 2.0**-20
"""Of a step in 8 bits: float16 keeps four digits of it."""


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
            f"Core ML packages cannot be quantised as {quantize.kind!r}; {', '.join(KINDS)} can "
            "be done"
        )
    quantised_layers(prepared)
    if quantize.kind in PALETTES:
        need("sklearn", extra="coreml")
    if quantize.kind == "int8":
        need("torchao.quantization.pt2e", extra="coreml")


def in_int8(prepared: Prepared) -> Prepared:
    """Put the rounding to 8 bits into a network's graph, ahead of each layer and of its weights.

    Weights are symmetric around 0, with a scale for each channel of the output; what goes into a
    layer has one range, which the photos show. What lies between layers computes in float.

    Raises:
        ExportError: there are no photos.
    """
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    with torch.no_grad():
        module = pt2e.prepare_pt2e(prepared.program().module(), _quantizer(prepared))
        for photo in prepared.calibration():
            module(photo)
        module = pt2e.convert_pt2e(module)
    return replace(prepared, module=module)


def _quantizer(prepared: Prepared) -> Any:
    """What tells torchao which nodes of a graph round, and how."""
    observers: Any = importlib.import_module("torchao.quantization.pt2e.observer")
    quantizers: Any = importlib.import_module("torchao.quantization.pt2e.quantizer")
    given = quantizers.QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observers.MinMaxObserver.with_args(eps=LEAST_SCALE),
    )
    weight = quantizers.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=observers.PerChannelMinMaxObserver.with_args(eps=LEAST_SCALE),
    )
    layers = quantised_layers(prepared)
    weighted = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)

    class Layers(quantizers.Quantizer):
        """Marks layers by their names."""

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            """Mark the nodes."""
            for node in model.graph.nodes:
                path = (name for name, _ in node.meta.get("nn_module_stack", {}).values())
                if node.target in weighted and not layers.isdisjoint(path):
                    node.meta["quantization_annotation"] = quantizers.QuantizationAnnotation(
                        input_qspec_map={node.args[0]: given, node.args[1]: weight},
                        _annotated=True,
                    )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """There is nothing that can be wrong."""

    return Layers()


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
    if quantize.kind == "int8-weights":
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
        if parameter.rpartition(".")[0] not in keep:
            continue
        found = [one for one in (name, f"{name}_to_fp16") if one in weights]
        if not found and sizes[parameter] > SMALL:
            raise ExportError(f"{parameter} is to stay float, but is not in Core ML's graph alone")
        kept += found
    return kept
