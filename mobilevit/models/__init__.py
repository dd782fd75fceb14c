"""Networks only: tensors in, tensors out."""

from mobilevit.utils.torchvision import import_torchvision

import_torchvision()
