"""Files -> batches."""

from mobilevit.utils.torchvision import import_torchvision

import_torchvision()
