"""What eight bits cost weights that were trained on photos, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobilevit.commands.export import export
from mobilevit.data.options import DataOptions
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.options import ExportOptions

# The formats' tools use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")

PACKAGES = {
    "coreml": "coremltools",
    "executorch": "executorch",
    "litert": "litert_torch",
    "onnx": "onnxscript",
    "openvino": "nncf",
}


@pytest.mark.parametrize("kind", BACKENDS.values(), ids=lambda one: one.name)
def test_int8_is_small_and_accurate(shared: Path, tmp_path: Path, kind: Any) -> None:
    """A third of the size, and at most two of 80 leaves more are taken for another."""
    pytest.importorskip(PACKAGES[kind.name])
    exported = export(
        shared / "data" / "weights" / "timm_mobilevit_xxs_corn_leaf.pth",
        ExportOptions(
            out=str(tmp_path / f"leaf{kind.suffix}"),
            quantize="int8",
            classes="Blight,Common_Rust,Gray_Leaf_Spot,Healthy,Other",
            preprocessing={"resize": 288, "crop": 256},
            data=DataOptions(root=str(shared / "data" / "corn_leaf")),
            limit=80,
            max_drop=2.6,
        ),
    )
    assert exported.accuracy is not None and exported.fp32_size is not None
    assert exported.accuracy.images == 80 and exported.accuracy.pytorch > 0.9
    assert exported.size < 0.4 * exported.fp32_size
    assert exported.verification.agreement >= 0.9
