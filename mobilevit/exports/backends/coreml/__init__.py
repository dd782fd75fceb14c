"""Core ML."""

from mobilevit.exports.backends.coreml.backend import BACKEND as BACKEND
