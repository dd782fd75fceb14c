"""Int8 LiteRT files, by ai-edge-quantizer.

Convolutions and linear layers compute in int8: weights with a symmetric range per output channel,
inputs and outputs with one range each, measured on calibration images. The rest stays in float32.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from mobilevit.exports.toolchain import capture_stderr


def belongs_to(name: str, layers: Collection[str]) -> bool:
    """Whether a layer of the LiteRT graph is one of some layers, or a part of one."""
    # `GatedConv` adds a gate to an equalized convolution.
    name = name.removesuffix(".gate") + ".conv" if name.endswith(".gate") else name
    return any(name == one or name.startswith(f"{one}.") for one in layers)


def quantize_int8(
    content: bytes, input_name: str, images: Sequence[Tensor], float_tensors: Collection[str]
) -> bytes:
    """Quantize the layers of a float32 file except those whose outputs are `float_tensors`.

    `images`, for calibration, are as the file takes them. The result has the same input and
    outputs.
    """
    quantizers: Any = importlib.import_module("ai_edge_quantizer.quantizer")
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    names: Any = importlib.import_module("ai_edge_quantizer.qtyping").TFLOperationName
    algorithms: Any = importlib.import_module("ai_edge_quantizer.algorithm_manager").AlgorithmName
    layers = (names.CONV_2D, names.DEPTHWISE_CONV_2D, names.FULLY_CONNECTED)
    # The quantizer prints its progress.
    with capture_stderr(), contextlib.redirect_stdout(io.StringIO()):
        quantizer = quantizers.Quantizer(bytearray(content))
        for layer in layers:
            quantizer.add_static_config(
                regex=".*", operation_name=layer, activation_num_bits=8, weight_num_bits=8
            )
        for tensor in float_tensors:  # the last configuration that matches an operator is used
            for layer in layers:
                quantizer.update_quantization_recipe(
                    regex=f"(^|;){re.escape(tensor)};",
                    operation_name=layer,
                    algorithm_key=algorithms.NO_QUANTIZE,
                )
        (signature,) = litert.Interpreter(model_content=content).get_signature_list()
        samples = [{input_name: image.numpy()} for image in images]
        ranges = quantizer.calibrate({signature: samples}, num_threads=1)
        result = quantizer.quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)
