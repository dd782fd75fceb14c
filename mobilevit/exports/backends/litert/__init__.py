"""LiteRT."""

from mobilevit.exports.backends.litert.backend import BACKEND as BACKEND
