"""An interpreter of Core ML programs in torch, to check packages on any machine.

It runs the saved package: its graph, the stored weights, their decompression and the types of all
values. Float16 values are summed in float32 and each result is rounded to float16, the least
rounding of any device. How a device's kernels sum, and which of its units runs an operation, shows
only on that device.
"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilevit.exports.backends.coreml.mil_ops import OPERATIONS
from mobilevit.exports.backends.coreml.mil_shape_ops import SHAPE_OPERATIONS, Function
from mobilevit.exports.backends.coreml.mil_types import TYPES, MilError

Value = Tensor | str | list[Tensor]
Shape = tuple[int | None, ...]
"""None where a size is dynamic."""


@dataclass(frozen=True)
class TensorType:
    """Type and shape of a tensor in a program."""

    dtype: torch.dtype
    shape: Shape

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{name_of(self.dtype)} [{sizes}]"

    def fits(self, value: Tensor) -> bool:
        return (
            value.dtype == self.dtype
            and value.ndim == len(self.shape)
            and all(
                wanted in (None, size) for wanted, size in zip(self.shape, value.shape, strict=True)
            )
        )


@dataclass(frozen=True)
class Step:
    """One operation."""

    operation: str
    name: str
    function: Function
    inputs: Mapping[str, Any]
    """Name -> coremltools' variable, or a list of them."""
    outputs: tuple[Any, ...]
    types: tuple[TensorType, ...]
    free: tuple[Any, ...]
    """Variables that no later step reads."""


def name_of(dtype: torch.dtype) -> str:
    """The name of a type, such as `float32`."""
    return str(dtype).removeprefix("torch.")


class Program:
    """A saved ML program of one function."""

    def __init__(self, path: Path) -> None:
        spec, weights = _read(path)
        load = importlib.import_module("coremltools.converters.mil.frontend.milproto.load").load
        self._types: Any = importlib.import_module("coremltools.converters.mil.mil").types
        try:
            program = load(spec, spec.specificationVersion, weights)
        except (RuntimeError, ValueError) as error:  # as the reader of weights puts it
            raise MilError(f"{path} is damaged: {error}") from error
        if set(program.functions) != {"main"}:
            raise MilError(
                f"{path} has the functions {', '.join(program.functions)}, not only main"
            )
        main = program.functions["main"]
        self.description = spec.description
        self.metadata = dict(spec.description.metadata.userDefined)
        self._inputs = dict(main.inputs)
        self.inputs = {name: self._type(variable) for name, variable in main.inputs.items()}
        self.outputs = {variable.name: self._type(variable) for variable in main.outputs}
        self._outputs = tuple(main.outputs)
        self.compressed: Counter[str] = Counter()
        """Compressed constants by their type: `int8`, `palette of 16`."""
        self._constants: dict[Any, Tensor | str] = {}
        self.steps = self._steps(main.operations)

    def _type(self, variable: Any) -> TensorType:
        name = self._types.builtin_to_string(variable.dtype)
        if name not in TYPES:
            raise MilError(
                f"the program's {variable.name} is of type {name}, which is not supported"
            )
        symbolic = importlib.import_module("coremltools.converters.mil.mil.types.symbolic")
        shape = (None if symbolic.is_symbolic(size) else int(size) for size in variable.shape)
        return TensorType(TYPES[name], tuple(shape))

    def _steps(self, operations: Any) -> list[Step]:
        steps = []
        uses: Counter[Any] = Counter(self._outputs)
        for operation in operations:
            uses.update(v for value in operation.inputs.values() for v in _variables(value))
        for operation in operations:
            op_type, name = operation.op_type, operation.name
            if op_type == "const":
                self._constants[operation.outputs[0]] = _constant(operation.outputs[0].val)
                continue
            function = OPERATIONS.get(op_type)
            if function is None:
                raise MilError(f"Core ML's {op_type} ({name}) is not implemented")
            inputs = {key: value for key, value in operation.inputs.items() if value is not None}
            known = inspect.signature(function).parameters
            if not inputs.keys() <= known.keys():
                extra = ", ".join(sorted(inputs.keys() - known.keys()))
                raise MilError(
                    f"Core ML's operation {op_type} ({name}): {extra} is not implemented"
                )
            free = []
            for variable in {v for value in inputs.values() for v in _variables(value)}:
                uses[variable] -= sum(
                    v is variable for value in inputs.values() for v in _variables(value)
                )
                if not uses[variable] and variable not in self._constants:
                    free.append(variable)
            outputs = tuple(operation.outputs)
            types = tuple(map(self._type, outputs))
            step = Step(op_type, name, function, inputs, outputs, types, tuple(free))
            if op_type.startswith("constexpr_"):
                self._decompress(step)
            else:
                steps.append(step)
        return steps

    def _decompress(self, step: Step) -> None:
        self._run(step, self._constants)
        if step.operation == "constexpr_lut_to_dense":
            lut = self._constants[step.inputs["lut"]]
            assert isinstance(lut, Tensor)
            self.compressed[f"palette of {lut.numel()}"] += 1
        else:
            data = self._constants[step.inputs["quantized_data"]]
            assert isinstance(data, Tensor)
            self.compressed[name_of(data.dtype)] += 1

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the program on inputs by name, and return its outputs by name."""
        if inputs.keys() != self.inputs.keys():
            raise MilError(f"the program takes {', '.join(self.inputs)}, not {', '.join(inputs)}")
        values: dict[Any, Tensor | str] = dict(self._constants)
        for name, value in inputs.items():
            if not self.inputs[name].fits(value):
                found = TensorType(value.dtype, tuple(value.shape))
                raise MilError(f"the program's {name} is {self.inputs[name]}, not {found}")
            values[self._inputs[name]] = value
        with torch.inference_mode():
            for step in self.steps:
                self._run(step, values)
        return {variable.name: _tensor(values[variable]) for variable in self._outputs}

    def _run(self, step: Step, values: dict[Any, Tensor | str]) -> None:
        """Compute one step's outputs, and free what no later step needs."""
        exact = step.operation in SHAPE_OPERATIONS

        def value(variable: Any) -> Tensor | str:
            found = values[variable]
            half = isinstance(found, Tensor) and found.dtype == torch.float16
            return found.float() if half and isinstance(found, Tensor) and not exact else found

        arguments: dict[str, Any] = {
            key: [value(v) for v in item] if isinstance(item, (list, tuple)) else value(item)
            for key, item in step.inputs.items()
        }
        results = step.function(**arguments)
        if isinstance(results, Tensor):
            results = (results,)
        for variable, expected, result in zip(step.outputs, step.types, results, strict=True):
            if expected.dtype == torch.float16 and result.dtype == torch.float32:
                result = result.half()
            if not expected.fits(result):
                found = TensorType(result.dtype, tuple(result.shape))
                raise MilError(
                    f"Core ML's operation {step.operation} ({step.name}) returns {found}, in the "
                    f"program {expected}"
                )
            values[variable] = result
        for variable in step.free:
            del values[variable]

    @property
    def types(self) -> Counter[str]:
        """Number of operations by the type that they compute in.

        Layers with a dequantized input count as int8, which a device can compute them in.
        """
        rounded = {
            output
            for step in self.steps
            if step.operation == "dequantize"
            for output in step.outputs
        }
        counts: Counter[str] = Counter()
        for step in self.steps:
            if step.operation in ("quantize", "dequantize"):
                counts["rounding to 8 bits"] += 1
            elif step.operation in ("conv", "linear") and step.inputs["x"] in rounded:
                counts["int8"] += 1
            else:
                counts[name_of(step.types[0].dtype)] += 1
        return counts

    @property
    def operations(self) -> Counter[str]:
        return Counter(step.operation for step in self.steps)

    @property
    def rank(self) -> int:
        return max(len(one.shape) for step in self.steps for one in step.types)


def _read(path: Path) -> tuple[Any, str]:
    ct: Any = importlib.import_module("coremltools")
    folder = path / "Data" / "com.apple.CoreML"
    if not (path / "Manifest.json").is_file() or not (folder / "model.mlmodel").is_file():
        raise MilError(f"{path} is not a Core ML package: it has no manifest or no model.mlmodel")
    protobuf: Any = importlib.import_module("google.protobuf.message")
    try:
        spec = ct.utils.load_spec(str(path))
    except protobuf.DecodeError as error:
        raise MilError(f"{path} is not a Core ML package that can be read: {error}") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise MilError(f"{path} is not an ML program but {spec.WhichOneof('Type')}")
    return spec, str(folder / "weights")


def _variables(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _constant(value: Any) -> Tensor | str:
    if isinstance(value, str):
        return value
    array = np.array(value)  # a copy: the original is read-only
    if array.dtype.kind not in "biuf":
        raise MilError(f"constants of type {array.dtype} are not supported")
    return torch.from_numpy(array)


def _tensor(value: Tensor | str) -> Tensor:
    assert isinstance(value, Tensor)
    return value
