"""The packages that formats need live together in one environment and one process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGES = (
    "coremltools",
    "openvino",
    "nncf",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "executorch.exir",
    "executorch.runtime",
    "litert_torch",
    "ai_edge_litert.interpreter",
    "torchao",
)


@pytest.mark.parametrize("order", [PACKAGES, PACKAGES[::-1]], ids=["one way", "the other way"])
def test_all_import_in_one_process(order: tuple[str, ...]) -> None:
    for package in order:
        pytest.importorskip(package.partition(".")[0])
    lines = ["import importlib, warnings", "warnings.simplefilter('ignore')"]
    lines += [f"importlib.import_module({package!r})" for package in order]
    lines += ["import mobilevit.exports.backends.registry", "print('all')"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("all\n"), done.stderr
