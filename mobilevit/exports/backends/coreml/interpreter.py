"""Core ML programs run operation by operation in torch, so that a package is checked anywhere.

What runs is the saved package: its graph, its weights as they were stored, their decompression and
the types of all values. Sums of float16 values are taken in float32 and each result is rounded to
float16, which is the least that a device rounds. How a device's own kernels sum, and which part of
it computes what, only that device can tell.
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

from mobilevit.exports.backends.coreml.mil_ops import EXACT, OPERATIONS, Function
from mobilevit.exports.backends.coreml.mil_types import TYPES, MilError

Value = Tensor | str | list[Tensor]
Shape = tuple[int | None, ...]
"""None where a size varies."""


@dataclass(frozen=True)
class Kind:
    """Type and shape of a tensor in a program."""

    dtype: torch.dtype
    shape: Shape

    def __str__(self) -> str:
        """`float32 [1, ?, 4]`."""
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{name_of(self.dtype)} [{sizes}]"

    def fits(self, value: Tensor) -> bool:
        """Whether a tensor is of this type and shape."""
        return (
            value.dtype == self.dtype
            and value.ndim == len(self.shape)
            and all(
                want in (None, size) for want, size in zip(self.shape, value.shape, strict=True)
            )
        )


@dataclass(frozen=True)
class Step:
    """One operation."""

    operation: str
    name: str
    function: Function
    given: Mapping[str, Any]
    """Inputs by name: coremltools' variables, or lists of them."""
    outputs: tuple[Any, ...]
    """Variables."""
    kinds: tuple[Kind, ...]
    free: tuple[Any, ...]
    """Variables that no later step takes."""


def name_of(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


class Program:
    """A saved ML program of one function."""

    def __init__(self, path: Path) -> None:
        """Read a package.

        Raises:
            MilError: it is no package of an ML program, or holds what is not known here.
        """
        spec, weights = _read(path)
        load = importlib.import_module("coremltools.converters.mil.frontend.milproto.load").load
        self._types: Any = importlib.import_module("coremltools.converters.mil.mil").types
        try:
            program = load(spec, spec.specificationVersion, weights)
        except (RuntimeError, ValueError) as error:  # as the reader of weights puts it
            raise MilError(f"{path} is damaged: {error}") from error
        if set(program.functions) != {"main"}:
            raise MilError(
                f"{path} has the functions {', '.join(program.functions)}, not just main"
            )
        main = program.functions["main"]
        self.description = spec.description
        self.metadata = dict(spec.description.metadata.userDefined)
        """The package's user-defined metadata."""
        self._inputs = dict(main.inputs)
        self.inputs = {name: self._kind(variable) for name, variable in main.inputs.items()}
        self.outputs = {variable.name: self._kind(variable) for variable in main.outputs}
        self._outputs = tuple(main.outputs)
        self.compressed: Counter[str] = Counter()
        """Constants of fewer bits, by how they are kept: `int8`, `palette of 16`."""
        self._constants: dict[Any, Tensor | str] = {}
        self.steps = self._steps(main.operations)

    def _kind(self, variable: Any) -> Kind:
        name = self._types.builtin_to_string(variable.dtype)
        if name not in TYPES:
            raise MilError(f"the program's {variable.name} is of type {name}, not known here")
        symbolic = importlib.import_module("coremltools.converters.mil.mil.types.symbolic")
        shape = (None if symbolic.is_symbolic(size) else int(size) for size in variable.shape)
        return Kind(TYPES[name], tuple(shape))

    def _steps(self, operations: Any) -> list[Step]:
        steps = []
        uses: Counter[Any] = Counter(self._outputs)
        for operation in operations:
            uses.update(v for value in operation.inputs.values() for v in _variables(value))
        for operation in operations:
            kind, name = operation.op_type, operation.name
            if kind == "const":
                self._constants[operation.outputs[0]] = _constant(operation.outputs[0].val)
                continue
            function = OPERATIONS.get(kind)
            if function is None:
                raise MilError(f"Core ML's operation {kind} ({name}) is not known here")
            given = {key: value for key, value in operation.inputs.items() if value is not None}
            known = inspect.signature(function).parameters
            if not given.keys() <= known.keys():
                extra = ", ".join(sorted(given.keys() - known.keys()))
                raise MilError(f"Core ML's operation {kind} ({name}): {extra} is not known here")
            free = []
            for variable in {v for value in given.values() for v in _variables(value)}:
                uses[variable] -= sum(
                    v is variable for value in given.values() for v in _variables(value)
                )
                if not uses[variable] and variable not in self._constants:
                    free.append(variable)
            outputs = tuple(operation.outputs)
            kinds = tuple(map(self._kind, outputs))
            step = Step(kind, name, function, given, outputs, kinds, tuple(free))
            if kind.startswith("constexpr_"):
                self._decompress(step)
            else:
                steps.append(step)
        return steps

    def _decompress(self, step: Step) -> None:
        self._run(step, self._constants)
        if step.operation == "constexpr_lut_to_dense":
            lut = self._constants[step.given["lut"]]
            assert isinstance(lut, Tensor)
            self.compressed[f"palette of {lut.numel()}"] += 1
        else:
            data = self._constants[step.given["quantized_data"]]
            assert isinstance(data, Tensor)
            self.compressed[name_of(data.dtype)] += 1

    def __call__(self, **given: Tensor) -> dict[str, Tensor]:
        """Run the program.

        Args:
            given: inputs by name.

        Returns:
            Outputs by name.

        Raises:
            MilError: an input is missing or is of another type or shape than the program takes; or
                an operation gave what the program does not say that it gives.
        """
        if given.keys() != self.inputs.keys():
            raise MilError(f"the program takes {', '.join(self.inputs)}, not {', '.join(given)}")
        values: dict[Any, Tensor | str] = dict(self._constants)
        for name, value in given.items():
            if not self.inputs[name].fits(value):
                found = Kind(value.dtype, tuple(value.shape))
                raise MilError(f"the program's {name} is {self.inputs[name]}, not {found}")
            values[self._inputs[name]] = value
        with torch.inference_mode():
            for step in self.steps:
                self._run(step, values)
        return {variable.name: _tensor(values[variable]) for variable in self._outputs}

    def _run(self, step: Step, values: dict[Any, Tensor | str]) -> None:
        """Compute one step's outputs, and forget what no other step needs."""
        exact = step.operation in EXACT

        def value(variable: Any) -> Tensor | str:
            found = values[variable]
            half = isinstance(found, Tensor) and found.dtype == torch.float16
            return found.float() if half and isinstance(found, Tensor) and not exact else found

        arguments: dict[str, Any] = {
            key: [value(v) for v in given] if isinstance(given, (list, tuple)) else value(given)
            for key, given in step.given.items()
        }
        results = step.function(**arguments)
        if isinstance(results, Tensor):
            results = (results,)
        for variable, kind, result in zip(step.outputs, step.kinds, results, strict=True):
            if kind.dtype == torch.float16 and result.dtype == torch.float32:
                result = result.half()
            if not kind.fits(result):
                found = Kind(result.dtype, tuple(result.shape))
                raise MilError(
                    f"Core ML's operation {step.operation} ({step.name}) gives {found} here, and "
                    f"{kind} in the program"
                )
            values[variable] = result
        for variable in step.free:
            del values[variable]

    @property
    def types(self) -> Counter[str]:
        """How many operations compute in which type.

        Layers that are given rounded values compute in int8, where a device can; what rounds stands
        by itself.
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
            elif step.operation in ("conv", "linear") and step.given["x"] in rounded:
                counts["int8"] += 1
            else:
                counts[name_of(step.kinds[0].dtype)] += 1
        return counts

    @property
    def operations(self) -> Counter[str]:
        """How many operations there are of each name."""
        return Counter(step.operation for step in self.steps)

    @property
    def rank(self) -> int:
        """The most axes that a tensor has."""
        return max(len(kind.shape) for step in self.steps for kind in step.kinds)


def _read(path: Path) -> tuple[Any, str]:
    """A package's specification, and the folder of its weights."""
    ct: Any = importlib.import_module("coremltools")
    folder = path / "Data" / "com.apple.CoreML"
    if not (path / "Manifest.json").is_file() or not (folder / "model.mlmodel").is_file():
        raise MilError(f"{path} is no Core ML package: it has no manifest and model.mlmodel")
    protobuf: Any = importlib.import_module("google.protobuf.message")
    try:
        spec = ct.utils.load_spec(str(path))
    except protobuf.DecodeError as error:
        raise MilError(f"{path} is no Core ML package that can be read: {error}") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise MilError(f"{path} holds no ML program but {spec.WhichOneof('Type')}")
    return spec, str(folder / "weights")


def _variables(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _constant(value: Any) -> Tensor | str:
    if isinstance(value, str):
        return value
    array = np.array(value)  # a copy, which torch may write to
    if array.dtype.kind not in "biuf":
        raise MilError(f"a constant of type {array.dtype} is not known here")
    return torch.from_numpy(array)


def _tensor(value: Tensor | str) -> Tensor:
    assert isinstance(value, Tensor)
    return value
