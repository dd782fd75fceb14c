"""ExecuTorch."""

from mobilevit.exports.backends.executorch.backend import BACKEND as BACKEND
