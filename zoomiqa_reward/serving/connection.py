"""HTTP to one server by the standard library: kept connections, no redirects, no proxies of the environment.

A redirect or a proxy would be handed the token. TLS is used for `https` URLs, with the system's certificates.
"""

import contextlib
import http.client
import ipaddress
import json
import queue
from typing import Any
from urllib.parse import urlsplit

from zoomiqa_reward.serving.errors import KINDS, ServingError

MAX_REPLY_BYTES = 1 << 24


def bearer_token(token: str) -> str:
    """Return a token or key as a header holds it, without the line end of its file. Raises ValueError.

    No message shows it. The library that sends it would quote a wrong one in its error, and so in result files.
    """
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise ValueError("the token or key is not ASCII in one line, and no HTTP header takes another one; correct it")
    return token


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own, which no proxy can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Connections:
    """Connections to one server, for several threads; each is used by one at a time and kept for the next."""

    def __init__(self, url: str, *, token: str | None, timeout_s: float) -> None:
        """Raises ValueError for what is no http(s) URL, and for a token that no header holds.

        timeout_s: of each wait for the network.
        """
        self._secure, self._host, self._port, self._path = _parts_of(url)
        self._timeout_s = timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {bearer_token(token)}"}
        self._free: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """Return the JSON of a reply. Raises ServingError: the server's own, unavailable, bad_reply."""
        try:
            kept = self._free.get_nowait()
        except queue.Empty:
            kept = None
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        try:
            if kept is not None:
                try:
                    return self._ask(kept, method, path, body, headers)
                except TimeoutError:  # it was open, so another one would only wait as long
                    raise
                except (OSError, http.client.HTTPException):  # the server may have closed it meanwhile
                    pass
            fresh = kind(self._host, self._port, timeout=self._timeout_s)
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
            if response.length and len(data) <= MAX_REPLY_BYTES:  # the server ended in the middle of its reply
                raise http.client.IncompleteRead(data, response.length)
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


def _parts_of(url: str) -> tuple[bool, str, int | None, str]:
    """Return whether a URL is of TLS, its host, port and path without the last slash. Raises ValueError."""
    with contextlib.suppress(ValueError):  # a port that is none
        parts = urlsplit(url)
        is_plain = not (parts.query or parts.username or any(map(str.isspace, url)))
        if parts.scheme in ("http", "https") and parts.hostname and is_plain:
            return parts.scheme == "https", parts.hostname, parts.port, parts.path.rstrip("/")
    raise ValueError(f"url={url!r}: must be like http://host:port")


def _json(response: http.client.HTTPResponse, data: bytes) -> Any:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if response.status == 200 and isinstance(document, dict):
        return document
    error = document.get("error") if isinstance(document, dict) else None
    wait = response.headers.get("Retry-After", "")
    retry_after_s = float(wait) if wait.isdecimal() else None
    if isinstance(error, dict) and error.get("type") in KINDS:
        raise ServingError(error["type"], str(error.get("message")), retry_after_s=retry_after_s)
    # Not ours: what stands between (a proxy, a load balancer) has answered.
    kind = "unavailable" if response.status in (429, 502, 503, 504) else "bad_reply"
    raise ServingError(kind, f"HTTP {response.status} {response.reason}: {data[:200]!r}", retry_after_s=retry_after_s)
