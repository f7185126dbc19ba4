"""What goes wrong between client and server, by name: one table for both sides and for the guide.

A kind says whether the same request may be sent again. Scoring changes nothing on the server, so whatever failed for
a reason of the moment may be; what is wrong with the request stays wrong.
"""

from dataclasses import dataclass
from typing import Any

from zoomiqa_reward.errors import ZoomIQAError


@dataclass(frozen=True, kw_only=True)
class ErrorKind:
    """One way to fail."""

    status: int
    """HTTP status where it stands for a whole request; kinds of single images travel inside a 200."""
    retryable: bool
    """Whether the same request may be answered later."""
    meaning: str


KINDS = {
    # the whole request
    "malformed": ErrorKind(status=400, retryable=False, meaning="the body or the request line breaks the format"),
    "unauthorized": ErrorKind(status=401, retryable=False, meaning="no token, or one that the server does not know"),
    "not_found": ErrorKind(status=404, retryable=False, meaning="no such path"),
    "method_not_allowed": ErrorKind(status=405, retryable=False, meaning="this path wants another method"),
    "read_timeout": ErrorKind(status=408, retryable=True, meaning="the body did not arrive in time"),
    "length_required": ErrorKind(status=411, retryable=False, meaning="no Content-Length"),
    "fingerprint_mismatch": ErrorKind(status=412, retryable=False, meaning="another model than the one expected"),
    "too_large": ErrorKind(status=413, retryable=False, meaning="more bytes, images or pixels than allowed"),
    "unsupported_media_type": ErrorKind(status=415, retryable=False, meaning="neither safetensors nor PNG"),
    "busy": ErrorKind(status=503, retryable=True, meaning="as much is held or waiting as allowed"),
    "unavailable": ErrorKind(status=503, retryable=True, meaning="no connection, or no replica"),
    "bad_reply": ErrorKind(status=502, retryable=False, meaning="the answer was not one of this server's"),
    # one image
    "unreadable_image": ErrorKind(status=200, retryable=False, meaning="no image that can be read faithfully"),
    "not_measured": ErrorKind(status=200, retryable=False, meaning="the reward gave no value"),
    "replica_died": ErrorKind(status=200, retryable=True, meaning="the process that was scoring it is gone"),
    "compute_timeout": ErrorKind(status=200, retryable=True, meaning="not scored in time"),
    "internal": ErrorKind(status=200, retryable=False, meaning="the reward raised an error"),
}


class ServingError(ZoomIQAError, RuntimeError):
    """A request that failed, by its kind in `KINDS`."""

    def __init__(self, kind: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s
        """How long the server asks to wait, in seconds."""

    @property
    def status(self) -> int:
        """HTTP status."""
        return KINDS[self.kind].status

    @property
    def retryable(self) -> bool:
        """Whether the same request may be sent again."""
        return KINDS[self.kind].retryable

    def as_json(self) -> dict[str, Any]:
        """Return what stands under `error` in a reply.

        >>> ServingError("busy", "later").as_json()
        {'type': 'busy', 'message': 'later', 'retryable': True}
        """
        return {"type": self.kind, "message": self.message, "retryable": self.retryable}


class FingerprintError(ServingError):
    """The server's model is not the one expected: its values must not be mixed with those of another."""

    def __init__(self, message: str) -> None:
        super().__init__("fingerprint_mismatch", message)
