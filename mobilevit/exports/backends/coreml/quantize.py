"""Quantized Core ML packages: weights and activations, or weights only."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mobilevit.exports.quantize import layers_to_quantize
from mobilevit.exports.spec import ExportError
from mobilevit.exports.wrap import PreparedModel

PALETTES = {"palette8": 8, "palette6": 6, "palette4": 4}
"""Bits of an index into a weight's palette, by mode of quantization."""

MIN_WEIGHTS = 2048
"""Layers with fewer weights stay in float: they are a small part of the file."""

MIN_SCALE = 2.0**-20
"""Least scale of int8 values: float16 represents it to four digits."""


QUANTIZERS: Mapping[str | None, Sequence[str]] = {
    "int8": ("torchao.quantization.pt2e",),
    **dict.fromkeys(PALETTES, ("sklearn",)),
}
"""Packages that a mode of quantization needs."""


def quantize_int8(prepared: PreparedModel) -> PreparedModel:
    """Insert rounding to 8 bits before each layer's input and weights.

    Weights are symmetric, with a scale per output channel; a layer's input has the range observed
    on the calibration images. Everything between layers computes in float.
    """
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    with torch.no_grad():
        module = pt2e.prepare_pt2e(prepared.program().module(), _quantizer(prepared))
        for image in prepared.calibration():
            module(image)
        module = pt2e.convert_pt2e(module)
    return replace(prepared, module=module)


def _quantizer(prepared: PreparedModel) -> Any:
    observers: Any = importlib.import_module("torchao.quantization.pt2e.observer")
    quantizers: Any = importlib.import_module("torchao.quantization.pt2e.quantizer")
    activation = quantizers.QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observers.MinMaxObserver.with_args(eps=MIN_SCALE),
    )
    weight = quantizers.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=observers.PerChannelMinMaxObserver.with_args(eps=MIN_SCALE),
    )
    layers = layers_to_quantize(prepared)
    weighted = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)

    class Layers(quantizers.Quantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                path = (name for name, _ in node.meta.get("nn_module_stack", {}).values())
                if node.target in weighted and not layers.isdisjoint(path):
                    node.meta["quantization_annotation"] = quantizers.QuantizationAnnotation(
                        input_qspec_map={node.args[0]: activation, node.args[1]: weight},
                        _annotated=True,
                    )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """Accept any graph."""

    return Layers()


def compress_weights(model: Any, prepared: PreparedModel, parameters: Mapping[str, str]) -> Any:
    """Compress a model's weights by `prepared.spec`.

    In every mode of palettes, transformer layers and 3x3 convolutions get the mode's number of
    values, and all others, a tenth of a network, 256: some channels of an inverted residual reach a
    hundred times as far as others, so a small palette has no values for most of them.

    `parameters` maps names of weights in torch's graph, which coremltools keeps, to those in the
    module.
    """
    cto: Any = importlib.import_module("coremltools.optimize.coreml")
    spec, weights = prepared.spec, cto.get_weights_metadata(model, weight_threshold=MIN_WEIGHTS)
    if spec.quantize == "int8-weights":
        compress = cto.linear_quantize_weights
        default = fine = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int8",
            granularity="per_channel",
            weight_threshold=MIN_WEIGHTS,
        )
    else:
        compress = cto.palettize_weights
        default, fine = (
            cto.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=MIN_WEIGHTS)
            for bits in (PALETTES[str(spec.quantize)], 8)
        )
    known = {name: parameters.get(name.removesuffix("_to_fp16"), "") for name in weights}
    for parameter, values in prepared.module.named_parameters():
        missing = values.numel() > MIN_WEIGHTS and parameter not in known.values()
        if missing and parameter.rpartition(".")[0] in spec.float_layers:
            raise ExportError(
                f"float_layers: {parameter} has no weights of its own in Core ML's graph"
            )
    configs: dict[str, Any] = {}
    for name, about in weights.items():
        parameter = known[name]
        if parameter.rpartition(".")[0] in spec.float_layers:
            configs[name] = None
        elif ".layers." not in parameter and about.val.shape[2:] in ((), (1, 1)):
            configs[name] = fine
    config = cto.OptimizationConfig(global_config=default, op_name_configs=configs)
    return compress(model, config)
