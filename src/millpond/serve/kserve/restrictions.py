"""`Restrictions`: which parts of the protocol ask for a header with a secret, as Triton's flags of that purpose say.

A group is `CATEGORY,CATEGORY:KEY=VALUE`, groups are separated by ";". Over HTTP the header is called KEY, over gRPC it
is the metadata `triton-grpc-protocol-KEY`. The ports ask; who may connect at all is decided elsewhere.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from millpond.base.errors import ConfigError

CATEGORIES = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)


@dataclass(frozen=True, slots=True)
class Lock:
    """A header, as it is shown, and what it must say."""

    header: str
    value: str = field(repr=False)

    @property
    def key(self) -> str:
        """The header as HTTP/2 and our parser have it."""
        return self.header.lower()

    def opens(self, given: str | bytes | None) -> bool:
        """Whether what a client sent is the value."""
        if given is None:
            return False
        sent = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
        return hmac.compare_digest(sent, self.value.encode())


Restrictions = Mapping[str, Lock]


def read_restrictions(text: str | None, *, prefix: str, param: str) -> Restrictions:
    """Returns the lock of every category that has one.

    Args:
        text: The groups.
        prefix: Of the header's name.
        param: The setting, for messages.

    Raises:
        ConfigError: A group has another form, an unknown category, or one that another group has.
    """
    locks: dict[str, Lock] = {}
    for group in filter(None, (text or "").split(";")):
        names, colon, pair = group.partition(":")
        key, equals, value = pair.partition("=")
        if not (colon and equals and key.strip() and value):
            # The text is not shown: it may hold the secret.
            raise ConfigError(
                "A restriction is not CATEGORY,CATEGORY:KEY=VALUE.",
                fix=f"The categories are {', '.join(CATEGORIES)}; separate groups with ';'.",
                param=param,
            )
        for name in (part.strip() for part in names.split(",")):
            if name not in CATEGORIES:
                raise ConfigError(
                    f"'{name}' is no part of the protocol that can be restricted.",
                    fix=f"There are {', '.join(CATEGORIES)}.",
                    param=param,
                )
            if name in locks:
                raise ConfigError(
                    f"protocol '{name}' can not be specified in multiple config groups.",
                    fix="Name it in one group.",
                    param=param,
                )
            locks[name] = Lock(f"{prefix}{key.strip()}", value)
    return locks
