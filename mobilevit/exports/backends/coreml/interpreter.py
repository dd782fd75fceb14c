"""An interpreter of Core ML programs, to check packages on any machine.

It runs the saved package: its graph, the stored weights, their decompression and the types of all
values. coremltools computes most operations, as it does to fold constants, and torch those that it
cannot compute. Float16 values are summed in float32 and each result is rounded to float16, the
least rounding of any device. How a device's kernels sum, and which of its units runs an operation,
shows only on that device.
"""

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilevit.exports.backends.coreml.operations import OPERATIONS, tensor
from mobilevit.exports.spec import ExportError
from mobilevit.exports.toolchain import quiet


class Program:
    """A saved ML program of one function."""

    def __init__(self, path: Path) -> None:
        self._mil: Any = importlib.import_module("coremltools.converters.mil.mil")
        ct: Any = importlib.import_module("coremltools")
        load = importlib.import_module("coremltools.converters.mil.frontend.milproto.load").load
        decode_error = importlib.import_module("google.protobuf.message").DecodeError
        if not (path / "Manifest.json").is_file():  # or coremltools makes one
            raise ExportError(f"{path} is not a Core ML package: it has no Manifest.json")
        weights = path / "Data" / "com.apple.CoreML" / "weights"
        try:
            spec = ct.utils.load_spec(str(path))
            main = load(spec, spec.specificationVersion, str(weights)).functions["main"]
        except (RuntimeError, ValueError, LookupError, OSError, decode_error) as error:
            raise ExportError(f"{path} is damaged, or not a Core ML program: {error!r}") from error
        self._main = main
        self.description = spec.description
        self.metadata = dict(spec.description.metadata.userDefined)
        self.compressed: Counter[str] = Counter()
        """Compressed constants by their type: `int8`, `palette of 16`."""
        self._constants: dict[Any, Any] = {}
        self.steps: list[Any] = []
        """Operations by coremltools, those on constants left out."""
        for step in main.operations:
            if step.op_type == "const":
                self._constants[step.outputs[0]] = step.outputs[0].val
            elif step.op_type.startswith("constexpr_"):
                lut = step.inputs.get("lut")
                self.compressed[f"palette of {lut.val.size}" if lut is not None else "int8"] += 1
                self._constants[step.outputs[0]] = step.materialized_val_inference()
            else:
                self.steps.append(step)
        self._last_use = {v: step for step in self.steps for v in _variables(step)}

    def _dtype(self, variable: Any) -> str:
        return np.dtype(self._mil.types.nptype_from_builtin(variable.dtype)).name

    def _check(self, name: str, variable: Any, value: Any) -> None:
        """Raise ExportError if a value does not have the type and shape of its variable."""
        dtype, symbolic = self._dtype(variable), self._mil.types.symbolic.is_symbolic
        shape = ["?" if symbolic(size) else str(size) for size in variable.shape]
        found = [str(size) for size in value.shape]
        fits = str(value.dtype) == dtype and len(found) == len(shape)
        if not fits or any(
            want not in ("?", size) for want, size in zip(shape, found, strict=True)
        ):
            raise ExportError(
                f"{name} is {dtype} [{', '.join(shape)}], not {value.dtype} [{', '.join(found)}]"
            )

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the program on inputs by name, and return its outputs by name."""
        variables = self._main.inputs
        if inputs.keys() != variables.keys():
            raise ExportError(f"the program takes {', '.join(variables)}, not {', '.join(inputs)}")
        values = dict(self._constants)
        for name, value in inputs.items():
            self._check(f"the program's {name}", variables[name], value)
            values[variables[name]] = value
        with torch.inference_mode(), quiet():
            for step in self.steps:
                values |= zip(step.outputs, self._run(step, values), strict=True)
                for variable in set(_variables(step)):
                    if self._last_use[variable] is step and variable not in self._main.outputs:
                        del values[variable]
        return {variable.name: values[variable] for variable in self._main.outputs}

    def _run(self, step: Any, values: dict[Any, Any]) -> Iterator[Any]:
        """The results of one operation, in their types in the program."""

        def wide(variable: Any) -> Any:
            value = values[variable]
            if isinstance(value, np.bool):
                return bool(value)  # which coremltools passes on to NumPy
            half = getattr(value, "dtype", None) == np.float16
            return tensor(value).float().numpy()[()] if half else value

        inputs = {
            name: [wide(v) for v in item] if isinstance(item, list | tuple) else wide(item)
            for name, item in step.inputs.items()
            if item is not None
        }
        label = f"Core ML's operation {step.op_type} ({step.name})"
        try:
            results = self._results(step.op_type, inputs)
        except (IndexError, TypeError, ValueError) as error:
            raise ExportError(f"{label}: {error}") from error
        for variable, result in zip(step.outputs, results, strict=True):
            if result is None:
                raise ExportError(f"{label} is not implemented")
            value = np.asarray(result)
            if value.dtype == np.float32 and self._dtype(variable) == "float16":
                value = tensor(value).half().numpy()  # NumPy is ten times as slow
            self._check(f"{variable.name} of {label}", variable, value)
            yield value if value.ndim else value[()]

    def _results(self, operation: str, inputs: dict[str, Any]) -> list[Any]:
        if operation in OPERATIONS:
            tensors = OPERATIONS[operation](**inputs)
            tensors = (tensors,) if isinstance(tensors, torch.Tensor) else tensors
            return [result.numpy() for result in tensors]
        with self._mil.Function({}, self._main.opset_version):
            folded = getattr(self._mil.Builder, operation)(**inputs)
        if operation == "dequantize":  # not folded, since it is smaller than its result
            return [folded.op.materialized_val_inference()]
        return [v.val for v in (folded if isinstance(folded, list | tuple) else [folded])]

    @property
    def types(self) -> Counter[str]:
        """Number of operations by the type that they compute in.

        Layers with a dequantized input count as int8, which a device can compute them in.
        """
        counts: Counter[str] = Counter()
        for step in self.steps:
            source = step.inputs["x"].op if step.op_type in ("conv", "linear") else None
            if step.op_type in ("quantize", "dequantize"):
                counts["rounding to 8 bits"] += 1
            elif source is not None and source.op_type == "dequantize":
                counts["int8"] += 1
            else:
                counts[self._dtype(step.outputs[0])] += 1
        return counts


def _variables(step: Any) -> list[Any]:
    """All variables that an operation reads."""
    items = (item for item in step.inputs.values() if item is not None)
    return [v for item in items for v in (item if isinstance(item, list | tuple) else [item])]
