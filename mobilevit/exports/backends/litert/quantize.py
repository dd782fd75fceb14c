"""Smaller LiteRT files, by ai-edge-quantizer.

In int8, convolutions and linear layers compute in 8 bits: weights with a symmetric range per output
channel, inputs and outputs with one range each, measured on calibration images. The rest stays in
float32, as does everything but the stored weights in the other modes.
"""

import contextlib
import importlib
import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mobilevit.exports.toolchain import capture_stderr


def belongs_to(name: str, layers: Collection[str]) -> bool:
    """Whether a layer of the LiteRT graph is one of some layers, or a part of one."""
    # `GatedConv` adds a gate to an equalized convolution.
    name = name.removesuffix(".gate") + ".conv" if name.endswith(".gate") else name
    return any(name == one or name.startswith(f"{one}.") for one in layers)


def quantize(
    content: bytes, mode: str, float_tensors: Collection[str], samples: Sequence[Mapping[str, Any]]
) -> bytes:
    """Quantize the layers of a float32 file except those whose outputs are `float_tensors`.

    Args:
        content: the file.
        mode: `int8`, `int8-weights` or `fp16`; the last two store weights in fewer bits.
        float_tensors: names of tensors.
        samples: inputs by name, for calibration in int8.
    """
    quantizers: Any = importlib.import_module("ai_edge_quantizer.quantizer")
    types: Any = importlib.import_module("ai_edge_quantizer.qtyping")
    algorithms: Any = importlib.import_module("ai_edge_quantizer.algorithm_manager").AlgorithmName
    operations = types.TFLOperationName
    layers = (operations.CONV_2D, operations.DEPTHWISE_CONV_2D, operations.FULLY_CONNECTED)
    half = types.OpQuantizationConfig(
        weight_tensor_config=types.TensorQuantizationConfig(
            num_bits=16, dtype=types.TensorDataType.FLOAT
        ),
        explicit_dequantize=True,
    )
    # The quantizer prints its progress.
    with capture_stderr(), contextlib.redirect_stdout(io.StringIO()):
        quantizer = quantizers.Quantizer(bytearray(content))
        for layer in layers:
            if mode == "int8":
                quantizer.add_static_config(".*", layer, activation_num_bits=8, weight_num_bits=8)
            elif mode == "int8-weights":
                quantizer.add_weight_only_config(".*", layer, num_bits=8)
            else:
                quantizer.update_quantization_recipe(".*", layer, half, algorithms.FLOAT_CASTING)
        for tensor in float_tensors:  # the last configuration that matches an operator is used
            for layer in layers:
                quantizer.update_quantization_recipe(
                    regex=f"(^|;){re.escape(tensor)};",
                    operation_name=layer,
                    algorithm_key=algorithms.NO_QUANTIZE,
                )
        ranges = None
        if mode == "int8":
            litert: Any = importlib.import_module("ai_edge_litert.interpreter")
            (signature,) = litert.Interpreter(model_content=content).get_signature_list()
            ranges = quantizer.calibrate({signature: samples}, num_threads=1)
        result = quantizer.quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)
