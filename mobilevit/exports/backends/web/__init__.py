"""Web pages."""

from mobilevit.exports.backends.web.backend import BACKEND as BACKEND
