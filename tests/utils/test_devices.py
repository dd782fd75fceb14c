from __future__ import annotations

import pytest
import torch

from mobilevit.utils.devices import training_precision


@pytest.mark.parametrize(("device", "precision"), [("cuda", "high"), ("cpu", "highest")])
def test_products_are_tensorfloat_on_nvidia_gpus_and_nowhere_else(
    device: str, precision: str
) -> None:
    with training_precision(torch.device(device)):
        assert torch.get_float32_matmul_precision() == precision
        torch.backends.cudnn.benchmark = True
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark
