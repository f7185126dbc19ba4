"""HTTP to one server by the standard library: kept connections, no redirects, no proxies of the environment.

A redirect or a proxy would be handed the token. TLS is used for `https` URLs, with the system's certificates.
"""

import contextlib
import http.client
import json
import queue
from typing import Any
from urllib.parse import urlsplit

from zoomiqa_reward.serving.errors import KINDS, ServingError

MAX_REPLY_BYTES = 1 << 24


class Connections:
    """Connections to one server, for several threads; each is used by one at a time and kept for the next."""

    def __init__(self, url: str, *, token: str | None, timeout_s: float) -> None:
        """Raises ValueError for what is no http(s) URL. timeout_s: of each wait for the network."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValueError(f"url={url!r}: must be like http://host:port")
        self._secure = parts.scheme == "https"
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._free: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """Return the JSON of a reply. Raises ServingError: the server's own, unavailable, bad_reply."""
        try:
            kept = self._free.get_nowait()
        except queue.Empty:
            kept = None
        if kept is not None:
            with contextlib.suppress(OSError, http.client.HTTPException):  # the server may have closed it meanwhile
                return self._ask(kept, method, path, body, headers)
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        fresh = kind(self._host, self._port, timeout=self._timeout_s)
        try:
            return self._ask(fresh, method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise ServingError("unavailable", f"{self._host}:{self._port}: {error or type(error).__name__}") from error

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str] | None,
    ) -> Any:
        is_whole = False
        try:
            if connection.sock is None:
                connection.connect()
            with contextlib.suppress(ConnectionError):  # refused before it was sent: the reason can still be read
                connection.request(method, self._path + path, body, {**self._headers, **(headers or {})})
            response = connection.getresponse()
            data = response.read(MAX_REPLY_BYTES + 1)
            is_whole = response.isclosed() and not response.will_close
        finally:
            if is_whole:
                self._free.put(connection)
            else:
                connection.close()
        return _json(response, data)

    def close(self) -> None:
        """Close the connections that are free."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.get_nowait().close()


def _json(response: http.client.HTTPResponse, data: bytes) -> Any:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if response.status == 200 and isinstance(document, dict):
        return document
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict) and error.get("type") in KINDS:
        wait = response.headers.get("Retry-After", "")
        retry_after_s = float(wait) if wait.isdigit() else None
        raise ServingError(error["type"], str(error.get("message")), retry_after_s=retry_after_s)
    # Not ours: what stands between (a proxy, a load balancer) has answered.
    kind = "unavailable" if response.status in (502, 503, 504) else "bad_reply"
    raise ServingError(kind, f"HTTP {response.status} {response.reason}: {data[:200]!r}")
