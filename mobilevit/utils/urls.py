"""URLs as inputs, and small files read from them."""

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""


def is_url(source: object) -> bool:
    """Whether this is a string with an HTTP or HTTPS URL.

    >>> is_url("https://example.org/cat.jpg"), is_url("cat.jpg")
    (True, False)
    """
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def url_path(url: str) -> str:
    """The path of a URL, without escapes and query.

    >>> url_path("https://example.org/my%20cat.jpg?size=large")
    '/my cat.jpg'
    """
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path)


def read_url(url: str, *, max_bytes: int) -> bytes:
    """The content at a URL; OSError if it cannot be downloaded or is larger than `max_bytes`."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content: bytes = response.read(max_bytes + 1)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise OSError(f"cannot be downloaded: {error}") from error
    if len(content) > max_bytes:
        raise OSError(f"larger than {max_bytes // 2**20} MiB")
    return content


@contextmanager
def network_errors() -> Iterator[None]:
    """Turn what the client of a network raises in a `with` block into OSError.

    The block should hold nothing but calls of the client: those of HTTP, the Hub and cloud stores
    share no base of their errors, so only mistakes in calling (`ImportError`, `ValueError`) pass.
    """
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, FileNotFoundError):
            raise
        raise OSError(f"{type(cause).__name__}: {cause}") from error  # fsspec's for refused ones
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
