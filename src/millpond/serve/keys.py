"""API keys: read from a file once, kept as digests, compared in constant time.

A key is any line that is not empty and not a comment (#). Knows nothing of HTTP; `http/edge.py` asks `accepts`.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from pathlib import Path

from millpond.base.errors import ConfigError

_PARAM = "serve.api_key_file"


class ApiKeys:
    """A set of keys that can only be asked, never listed."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def accepts(self, key: str) -> bool:
        """Returns whether `key` is one of them; takes the same time whichever it is and however much of it is right."""
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


def load_keys(path: str) -> ApiKeys:
    """Reads a key file.

    Raises:
        ConfigError: It cannot be read or holds no key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The key file {path} cannot be read: {error}.", fix="Give a text file with one key a line.", param=_PARAM
        ) from None
    keys = [line.strip() for line in text.splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise ConfigError(
            f"The key file {path} holds no key.", fix="Write one key a line, or leave the option out.", param=_PARAM
        )
    return ApiKeys(keys)
