"""ONNX."""

from mobilevit.exports.backends.onnx.backend import BACKEND as BACKEND
