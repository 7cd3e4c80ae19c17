"""The API key: `Authorization: Bearer <key>`, compared in constant time. Without a key set, everything is open."""

import hmac

from serve.agent.errors import ApiError


class KeyCheck:
    """Knows the key as bytes; `check` costs 1 µs, whether the key is right or wrong."""

    def __init__(self, key: str | None) -> None:
        self._expected = None if key is None else f"Bearer {key}".encode()

    def check(self, authorization: str | None) -> None:
        """Raise the 401 unless the header is right or no key is set."""
        if self._expected is None:
            return
        given = (authorization or "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._expected):
            raise ApiError(
                401,
                "unauthorized",
                "required the header 'Authorization: Bearer <API_KEY>'; `make credentials` shows the key",
            )
