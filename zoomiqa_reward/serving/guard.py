"""uvicorn's HTTP/1.1 with what it lacks against slow and greedy clients.

Seen in uvicorn 0.54 (`protocols/http/h11_impl.py`): a connection that sends nothing, or half a head, is never closed;
the keep-alive clock stops at the first byte that comes, and an unread body is discarded for as long as it
trickles; `limit_concurrency` answers 503 but keeps connections open. So here:

- a clock runs whenever no request is being answered, from the connection's first moment on, and is stopped only by a
  whole head; it ends the connection;
- connections above a number are closed at once;
- a request line that is no HTTP gets the same JSON as any other error.

Heads larger than 16 KiB are refused by h11 itself. The clock of a body is the gateway's.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from zoomiqa_reward.serving.errors import ServingError
from zoomiqa_reward.serving.spec import Limits


class GuardedProtocol(H11Protocol):
    """One connection. Use a subclass made by `guarded`, which carries the limits."""

    limits = Limits()
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, or close the connection where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; the clock goes on unless it completed a request's head."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, and close."""
        body = json.dumps({"error": ServingError("malformed", msg).as_json()}).encode()
        head = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (
                h11.Response(status_code=400, headers=head, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer is under way or done: there is no place for another one
            pass
        self.transport.close()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_clock()
        elif self._clock is None and not self.transport.is_closing():
            self._clock = self.loop.call_later(self.limits.read_timeout_s, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """Return the protocol class for uvicorn's `http=`."""
    fields: dict[str, Any] = {"limits": limits}
    return type("LimitedProtocol", (GuardedProtocol,), fields)
