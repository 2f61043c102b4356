"""Who is asking: from the ``Authorization`` header to an owner.

Rule 1: a key is only ever handled as its digest.
Rule 2: no key, a wrong one and a revoked one get the same answer.
Rule 3: an answer of the store is believed for ``key_cache_s``, so that a revoked key is refused within 5 s.
"""

import hashlib

import attrs
import trio

from dwctl_trio.domain.errors import AuthenticationFailed
from dwctl_trio.domain.limits import Limits
from dwctl_trio.ports import KeyStore

LOCAL_OWNER = "local"
"""Whose everything is when ``auth.mode`` is ``none``."""

_KEY_CHARACTERS_MAX = 256
"""Ours have 51; nothing longer is worth a digest."""


@attrs.frozen(kw_only=True)
class Caller:
    """Whoever sent a request."""

    owner: str
    key_prefix: str | None = None
    """What of the key may be shown; None when no keys are used."""


class Authenticator:
    """Finds the caller of a request.

    Args:
        keys: The API keys; None to let everybody in as ``local``.
        limits: How long and how many answers are remembered.
    """

    def __init__(self, keys: KeyStore | None, limits: Limits) -> None:
        self._keys = keys
        self._limits = limits
        self._known: dict[bytes, tuple[float, Caller | None]] = {}

    async def find_caller(self, authorization: str | None) -> Caller:
        """The caller who sent this ``Authorization`` header.

        Raises:
            AuthenticationFailed: There is none with such a key.
            StoreUnavailable: The keys cannot be read.
        """
        if self._keys is None:
            return Caller(owner=LOCAL_OWNER)
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        caller = None
        if scheme.lower() == "bearer" and 0 < len(key) <= _KEY_CHARACTERS_MAX:
            caller = await self._find(self._keys, hashlib.sha256(key.encode()).digest())
        if caller is None:
            raise AuthenticationFailed(
                "Incorrect API key provided. Send one as 'Authorization: Bearer <key>'; "
                "'dwctl-trio keys create --owner NAME' makes one."
            )
        return caller

    async def _find(self, keys: KeyStore, digest: bytes) -> Caller | None:
        known = self._known.get(digest)
        now = trio.current_time()
        if known is not None and known[0] > now:
            return known[1]
        found = await keys.find_key(digest)
        caller = None if found is None else Caller(owner=found.owner, key_prefix=found.prefix)
        if len(self._known) >= self._limits.key_cache_entries:
            self._known.clear()
        self._known[digest] = (now + self._limits.key_cache_s, caller)
        return caller
