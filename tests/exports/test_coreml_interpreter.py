"""The interpreter of Core ML programs: operations against torch, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.exports.backends.coreml.interpreter import Program
from mobilevit.exports.backends.coreml.operations import OPERATIONS
from mobilevit.exports.spec import ExportError
from mobilevit.exports.toolchain import quiet, require

pytest.importorskip("coremltools")

# coremltools and what it imports use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)

torch.manual_seed(0)
GIVEN = {
    "x": torch.randn(2, 6, 4, 5),
    "y": torch.randn(2, 6, 4, 5),
    "half": torch.randn(2, 6, 4, 5).half(),
    "places": torch.tensor([[3, 0, 2], [1, 1, 0]], dtype=torch.int32),
    "size": torch.tensor([7, 3], dtype=torch.int32),
}
ARRAYS = {name: value.numpy() for name, value in GIVEN.items()}
X, Y, HALF, PLACES, SIZE = GIVEN.values()
WEIGHT, BIAS = torch.randn(4, 3, 3, 3), torch.randn(4)
ROWS = torch.randn(7, 5)
CODES = torch.randint(-127, 128, (4, 3), dtype=torch.int8)
SCALES = torch.rand(4)
LUT = torch.randn(64)
LOOKUPS = torch.randint(0, 64, (5, 3))


def packed(values: Tensor, bits: int) -> np.ndarray:
    """Whole numbers of so many bits in bytes, from the lowest bit on."""
    stream = "".join(f"{value:0{bits}b}"[::-1] for value in values.flatten().tolist())
    stream += "0" * (-len(stream) % 8)
    return np.array([int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)], np.uint8)


def a(tensor: Tensor) -> np.ndarray:
    return tensor.numpy()


CASES: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "conv": (
        lambda mb, x, **_: mb.conv(
            x=x,
            weight=a(WEIGHT),
            bias=a(BIAS),
            strides=[2, 1],
            pad_type="custom",
            pad=[2, 1, 0, 3],
            dilations=[1, 2],
            groups=2,
        ),
        lambda: F.conv2d(
            F.pad(X, (0, 3, 2, 1)), WEIGHT, BIAS, stride=(2, 1), dilation=(1, 2), groups=2
        ),
    ),
    "conv of valid places": (
        lambda mb, x, **_: mb.conv(x=x, weight=a(WEIGHT), pad_type="valid", groups=2),
        lambda: F.conv2d(X, WEIGHT, groups=2),
    ),
    "avg_pool": (
        lambda mb, x, **_: mb.avg_pool(x=x, kernel_sizes=[2, 3], strides=[2, 1], pad_type="valid"),
        lambda: F.avg_pool2d(X, (2, 3), (2, 1)),
    ),
    "linear": (
        lambda mb, x, **_: mb.linear(x=x, weight=a(ROWS), bias=a(ROWS[:, 0].clone())),
        lambda: X @ ROWS.T + ROWS[:, 0],
    ),
    "matmul": (
        lambda mb, x, y, **_: mb.matmul(x=x, y=y, transpose_y=True),
        lambda: X @ Y.mT,
    ),
    "matmul of the first turned": (
        lambda mb, x, y, **_: mb.matmul(x=x, y=y, transpose_x=True),
        lambda: X.mT @ Y,
    ),
    "layer_norm": (
        lambda mb, x, **_: mb.layer_norm(
            x=x, axes=[-1], gamma=a(ROWS[0]), beta=a(ROWS[1]), epsilon=1e-2
        ),
        lambda: F.layer_norm(X, [5], ROWS[0], ROWS[1], 1e-2),
    ),
    "instance_norm": (
        lambda mb, x, **_: mb.instance_norm(x=x, epsilon=1e-2),
        lambda: F.instance_norm(X, eps=1e-2),
    ),
    "softmax": (lambda mb, x, **_: mb.softmax(x=x, axis=1), lambda: X.softmax(1)),
    "clip": (lambda mb, x, **_: mb.clip(x=x, alpha=-0.5, beta=0.25), lambda: X.clip(-0.5, 0.25)),
    "identity": (lambda mb, x, **_: mb.identity(x=x), lambda: X),
    "select": (
        lambda mb, x, y, **_: mb.select(cond=mb.greater(x=x, y=y), a=x, b=y),
        lambda: torch.maximum(X, Y),
    ),
    "cast": (lambda mb, x, **_: mb.cast(x=x, dtype="int32"), lambda: X.int()),
    "cast to float16": (lambda mb, x, **_: mb.cast(x=x, dtype="fp16"), lambda: X.half()),
    "reduce_mean": (
        lambda mb, x, **_: mb.reduce_mean(x=x, axes=[-1, 2], keep_dims=True),
        lambda: X.mean((2, 3), keepdim=True),
    ),
    "reduce_argmax": (
        lambda mb, x, **_: mb.reduce_argmax(x=x, axis=1, keep_dims=False),
        lambda: X.argmax(1).int(),
    ),
    "topk": (
        lambda mb, x, **_: mb.topk(x=x, k=3, axis=1),
        lambda: (X.topk(3, 1).values, X.topk(3, 1).indices.int()),
    ),
    "topk of the least": (
        lambda mb, x, **_: mb.topk(x=x, k=2, axis=-1, ascending=True)[0],
        lambda: X.topk(2, -1, largest=False).values,
    ),
    "reshape": (lambda mb, x, **_: mb.reshape(x=x, shape=[3, -1, 4]), lambda: X.reshape(3, -1, 4)),
    "reshape to a computed shape": (
        lambda mb, x, size, **_: mb.reshape(
            x=x, shape=mb.concat(values=[mb.sub(x=size, y=[5, 0]), [-1]], axis=0)
        ),
        lambda: X.reshape(2, 3, -1),
    ),
    "transpose": (
        lambda mb, x, **_: mb.transpose(x=x, perm=[0, 2, 3, 1]),
        lambda: X.permute(0, 2, 3, 1),
    ),
    "expand_dims": (
        lambda mb, places, **_: mb.expand_dims(x=places, axes=[-1, 0]),
        lambda: PLACES[None, :, :, None],
    ),
    "squeeze": (
        lambda mb, places, **_: mb.squeeze(x=mb.expand_dims(x=places, axes=[0, 2]), axes=[0]),
        lambda: PLACES[:, None],
    ),
    "concat": (
        lambda mb, x, y, **_: mb.concat(values=[x, y], axis=2),
        lambda: torch.cat((X, Y), 2),
    ),
    "split": (
        lambda mb, x, **_: mb.split(x=x, split_sizes=[1, 3, 2], axis=1),
        lambda: X.split((1, 3, 2), 1),
    ),
    "split in equal parts": (
        lambda mb, x, **_: mb.split(x=x, num_splits=3, axis=1),
        lambda: X.split(2, 1),
    ),
    "slice_by_index": (
        lambda mb, x, **_: mb.slice_by_index(
            x=x,
            begin=[1, 4, 0, 1],
            end=[0, 0, -1, 4],
            stride=[1, 1, 1, 2],
            begin_mask=[False, False, True, False],
            end_mask=[False, True, False, False],
            squeeze_mask=[True, False, False, False],
        ),
        lambda: X[1, 4:, :-1, 1:4:2],
    ),
    "tile": (lambda mb, x, **_: mb.tile(x=x, reps=[1, 2, 1, 3]), lambda: X.repeat(1, 2, 1, 3)),
    "shape": (lambda mb, x, **_: mb.shape(x=x), lambda: torch.tensor(X.shape).int()),
    "fill": (
        lambda mb, size, **_: mb.fill(shape=size, value=0.5),
        lambda: torch.full((7, 3), 0.5),
    ),
    "band_part": (
        lambda mb, x, **_: mb.band_part(x=x, lower=-1, upper=1),
        lambda: X.tril(1),
    ),
    "band_part of the rest": (
        lambda mb, half, **_: mb.band_part(x=half, lower=1, upper=-1),
        lambda: HALF.triu(-1),
    ),
    "gather": (
        lambda mb, x, places, **_: mb.gather(x=x, indices=places, axis=2),
        lambda: X[:, :, PLACES.long()],
    ),
    "gather of a number": (
        lambda mb, size, **_: mb.expand_dims(x=mb.gather(x=size, indices=1, axis=0), axes=[0]),
        lambda: SIZE[1:],
    ),
    "gather_along_axis": (
        lambda mb, places, **_: mb.gather_along_axis(
            x=np.arange(8, dtype=np.int32).reshape(2, 4), indices=places, axis=1
        ),
        lambda: torch.arange(8).int().view(2, 4).gather(1, PLACES.long()),
    ),
    "resize_bilinear": (
        lambda mb, x, **_: mb.resize_bilinear(
            x=x,
            target_size_height=7,
            target_size_width=3,
            sampling_mode="UNALIGN_CORNERS",
        ),
        lambda: F.interpolate(X, (7, 3), mode="bilinear"),
    ),
    "resize_bilinear from corner to corner": (
        lambda mb, x, **_: mb.resize_bilinear(
            x=x,
            target_size_height=8,
            target_size_width=1,
            sampling_mode="STRICT_ALIGN_CORNERS",
        ),
        lambda: F.interpolate(X, (8, 1), mode="bilinear", align_corners=True),
    ),
    "resize": (
        lambda mb, x, size, **_: mb.resize(
            x=x, shape=size, resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"
        ),
        lambda: F.interpolate(X, (7, 3), mode="bilinear"),
    ),
    "constexpr_affine_dequantize": (
        lambda mb, **_: mb.relu(
            x=mb.constexpr_affine_dequantize(
                quantized_data=a(CODES), zero_point=np.int8(3), scale=a(SCALES), axis=0
            )
        ),
        lambda: ((CODES.float() - 3) * SCALES[:, None]).relu(),
    ),
    "constexpr_lut_to_dense": (
        lambda mb, **_: mb.relu(
            x=mb.constexpr_lut_to_dense(
                indices=packed(LOOKUPS, 6), lut=a(LUT), shape=np.array([5, 3], np.uint32)
            )
        ),
        lambda: LUT[LOOKUPS].relu(),
    ),
    "quantize": (
        lambda mb, x, **_: mb.cast(
            x=mb.quantize(
                input=x,
                scale=a(SCALES[[0, 1, 2, 3, 0, 1]]),
                zero_point=np.zeros(6, np.int8),
                axis=1,
                output_dtype="int8",
            ),
            dtype="int32",
        ),
        lambda: (X / SCALES[[0, 1, 2, 3, 0, 1]].view(6, 1, 1)).round().clamp(-128, 127).int(),
    ),
    "dequantize": (
        lambda mb, x, **_: mb.dequantize(
            input=mb.quantize(input=x, scale=0.02, zero_point=np.uint8(90), output_dtype="uint8"),
            scale=0.02,
            zero_point=np.uint8(90),
        ),
        lambda: ((X / 0.02).round() + 90).clamp(0, 255).sub(90) * 0.02,
    ),
    "add": (lambda mb, x, y, **_: mb.add(x=x, y=y), lambda: X + Y),
    "sub": (lambda mb, x, y, **_: mb.sub(x=x, y=y), lambda: X - Y),
    "mul": (lambda mb, x, y, **_: mb.mul(x=x, y=y), lambda: X * Y),
    "real_div": (lambda mb, x, y, **_: mb.real_div(x=x, y=y), lambda: X / Y),
    "floor_div": (
        lambda mb, places, **_: mb.floor_div(x=mb.sub(x=places, y=2), y=2),
        lambda: (PLACES - 2) // 2,
    ),
    "minimum": (lambda mb, x, y, **_: mb.minimum(x=x, y=y), lambda: torch.minimum(X, Y)),
    "maximum": (lambda mb, x, y, **_: mb.maximum(x=x, y=y), lambda: torch.maximum(X, Y)),
    "equal": (lambda mb, places, **_: mb.equal(x=places, y=1), lambda: (PLACES == 1).float()),
    "greater": (lambda mb, x, y, **_: mb.greater(x=x, y=y), lambda: (X > Y).float()),
    "less": (lambda mb, x, y, **_: mb.less(x=x, y=y), lambda: (X < Y).float()),
    "logical_and": (
        lambda mb, x, y, **_: mb.logical_and(x=mb.less(x=x, y=0.0), y=mb.less(x=y, y=0.0)),
        lambda: ((X < 0) & (Y < 0)).float(),
    ),
    "relu": (lambda mb, x, **_: mb.relu(x=x), lambda: X.relu()),
    "sigmoid": (lambda mb, x, **_: mb.sigmoid(x=x), lambda: X.sigmoid()),
    "silu": (lambda mb, x, **_: mb.silu(x=x), lambda: F.silu(X)),
    "exp": (lambda mb, x, **_: mb.exp(x=x), lambda: X.exp()),
    "linear in float16": (
        lambda mb, half, **_: mb.linear(x=half, weight=a(ROWS.half())),
        lambda: (HALF.float() @ ROWS.half().float().T).half(),
    ),
    "exp in float16, past its largest": (
        lambda mb, half, **_: mb.exp(x=mb.mul(x=half, y=np.float16(20))),
        lambda: (HALF.float() * 20).half().float().exp().half(),
    ),
}
"""By name, which begins with the operation's: how it is built, and the same in torch.

Truth values leave a program as floats.
"""


def saved(path: Path, build: Callable[..., Any]) -> Program:
    """A program written as a package and read again: `build(mb, x=..., y=..., ...)`."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813 (its own name everywhere)
    from coremltools.converters.mil.mil import types

    kinds = {torch.float32: types.fp32, torch.float16: types.fp16, torch.int32: types.int32}
    specs = [mb.TensorSpec(shape=tuple(t.shape), dtype=kinds[t.dtype]) for t in GIVEN.values()]

    # The builder takes the inputs' names from the parameters'.
    def body(x: Any, y: Any, half: Any, places: Any, size: Any) -> Any:
        return build(mb, x=x, y=y, half=half, places=places, size=size)

    with quiet():
        model = ct.convert(
            mb.program(input_specs=specs, opset_version=ct.target.iOS17)(body),
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
        return Program(path)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """What the program of all cases says, by case."""
    require("coremltools", extra="coreml")
    counts = {}

    def build(mb: Any, **given: Any) -> Any:
        results = []
        for name, (case, _) in CASES.items():
            outputs = case(mb, **given)
            outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
            counts[name] = len(outputs)
            # None is an input, or twice an output.
            results += [
                mb.identity(x=one, name=f"out_{len(results)}_{i}") for i, one in enumerate(outputs)
            ]
        return tuple(results)

    program = saved(tmp_path_factory.mktemp("programs") / "all.mlpackage", build)
    values = (torch.as_tensor(value) for value in program(**ARRAYS).values())
    return {name: [next(values) for _ in range(count)] for name, count in counts.items()}


@pytest.mark.parametrize("name", CASES)
def test_operation(results: dict[str, list[Tensor]], name: str) -> None:
    expected = CASES[name][1]()
    expected = [expected] if isinstance(expected, Tensor) else expected
    assert len(results[name]) == len(expected)
    for found, truth in zip(results[name], expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_every_operation_is_tested() -> None:
    assert {name.split()[0] for name in CASES} >= set(OPERATIONS)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda mb, x, **_: mb.l2_pool(x=x, kernel_sizes=[2, 2], pad_type="valid", name="pool"),
            r"l2_pool \(pool\) is not implemented",
        ),
        (
            lambda mb, x, **_: mb.conv(x=x, weight=a(WEIGHT), pad_type="same", groups=2),
            "conv with .*pad_type .same. is not implemented",
        ),
        (
            lambda mb, x, size, **_: mb.resize(
                x=x, shape=size, resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
            ),
            "resize with .* mode 'NEAREST_NEIGHBOR'",
        ),
        (
            lambda mb, x, places, **_: mb.gather(x=x, indices=places, axis=0),
            r"gather \(.*\): .*out of bounds",
        ),
    ],
)
def test_unsupported_operations_are_refused(tmp_path: Path, build: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        saved(tmp_path / "one.mlpackage", build)(**ARRAYS)


def test_inputs_are_those_of_the_program(tmp_path: Path) -> None:
    program = saved(tmp_path / "one.mlpackage", lambda mb, x, half, **_: (mb.relu(x=x), half))
    with pytest.raises(ExportError, match="takes x, y, half, places, size, not x"):
        program(x=ARRAYS["x"])
    with pytest.raises(ExportError, match=r"x is float32 \[2, 6, 4, 5\], not float32 \[6, 4, 5\]"):
        program(**ARRAYS | {"x": ARRAYS["x"][0]})
    with pytest.raises(ExportError, match=r"half is float16 \[2, 6, 4, 5\], not float32"):
        program(**ARRAYS | {"half": ARRAYS["x"]})
