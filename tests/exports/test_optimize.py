"""`optimize`: candidates agree with PyTorch or are left out; the result serves as a network."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import mobilevit
from mobilevit.exports import optimize as module
from mobilevit.exports.runtime_model import FileNetwork, OptimizedNetwork
from mobilevit.exports.spec import ExportError
from mobilevit.models.fuse import fuse
from tests.numerics import assert_close


@cache
def onnx_file(model: Any) -> FileNetwork:
    files, left_out = module._candidates(model, fuse(model), 64, 1, ("onnx",), 1)
    assert not left_out
    return files["onnx"]


def optimized(model: Any) -> OptimizedNetwork:
    """As `optimize` returns it where the ONNX file is the fastest."""
    return OptimizedNetwork(fuse(model), {64: onnx_file(model)}, ())


def tensors(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@pytest.mark.parametrize(
    "name", ["mobilevit_xxs", "ssdlite_mobilevitv2_050", "deeplabv3_mobilevit_xxs"]
)
def test_outputs_are_the_networks(network: Any, images: Any, name: str) -> None:
    model = network(name, shallow=True)
    fast = optimized(model)
    assert fast.config == model.config
    for shape in ((1, 3, 64, 64), (3, 3, 64, 64), (2, 3, 96, 64), (1, 3, 96, 96)):
        pixels = torch.rand(shape, requires_grad=True)
        with torch.no_grad():
            expected = model(pixels)
        found = fast(pixels)
        assert type(found) is type(expected)
        for one, other in zip(tensors(found), tensors(expected), strict=True):
            assert_close(one, other)
    # The file, not the fused network, runs the prepared size.
    fast.fused = None  # type: ignore[assignment]
    fast(torch.rand(1, 3, 64, 64))
    with pytest.raises(TypeError):
        fast(torch.rand(1, 3, 96, 96))


def test_predict_takes_it(network: Any, images: Any) -> None:
    model = network("mobilevit_xxs", shallow=True)
    fast = optimized(model)
    expected, found = (mobilevit.predict(one, *images) for one in (model, fast))
    for one, other in zip(found.items, expected.items, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    with pytest.raises(ExportError, match="set ahead of optimize"):
        mobilevit.predict(fast, *images, classes="a,b,c,d,e")
    with pytest.raises(ExportError, match=r"^mobilevit_xxs runs on the CPU"):
        mobilevit.predict(fast, *images, device="cuda")
    with pytest.raises(ExportError, match="threads of an optimized network"):
        mobilevit.predict(fast, *images, threads=1)
    with pytest.raises(ValueError, match="for this process"):
        mobilevit.predict(fast, "a.jpg", engine="ray", out="parts")


def test_every_candidate_is_reported(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("mobilevit_xxs", shallow=True)
    fast = mobilevit.optimize(model, batch_size=2)
    assert [trial.runtime for trial in fast.trials] == ["torch", "onnx"]
    (selected,) = (trial for trial in fast.trials if trial.selected)
    assert selected.milliseconds == min(trial.milliseconds or 0 for trial in fast.trials)
    assert set(fast.files) == ({64} if selected.runtime == "onnx" else set())
    assert "64 px, batch 2: torch" in repr(fast)

    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    fast = mobilevit.optimize(model)
    assert not fast.files and "onnx left out: differs from PyTorch by" in repr(fast)

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fast = mobilevit.optimize(model)
    assert not fast.files and "pip install 'mobilevit[onnx]'" in repr(fast)


def test_what_cannot_be_optimized(network: Any) -> None:
    model = network("mobilevit_xxs", shallow=True)
    with pytest.raises(ValueError, match="at least 1, not \\[0\\]"):
        mobilevit.optimize(model, sizes=[0])
    with pytest.raises(ValueError, match=r"whole numbers of at least 1, not \[32\.5\]"):
        mobilevit.optimize(model, sizes=32.5)
    with pytest.raises(ValueError, match="onnx and openvino, not litert"):
        mobilevit.optimize(model, formats="litert")
    with pytest.raises(ExportError, match="fused"):
        mobilevit.optimize(fuse(model))
    with pytest.raises(ExportError, match="has no head"):
        mobilevit.optimize(mobilevit.create_model("mobilevit_xxs", features_only=True))
