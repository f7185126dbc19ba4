"""How much a reward server takes on, and how long it waits. Every queue and every wait has a bound."""

from dataclasses import dataclass

from zoomiqa_reward.images.loading import MAX_PIXELS

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server. `/info` shows them, so that a client can cut its requests to size."""

    max_body_bytes: int = 64 * MIB
    """Bytes of one request's body; checked against Content-Length before the first of them is read."""
    max_images: int = 64
    """Images of one request."""
    max_pixels: int = 24_000_000
    """Pixels (width x height) of one picture, checked before a PNG is decoded."""
    max_held_bytes: int = 256 * MIB
    """Bodies held at once, all requests together. While scored they take up to three times as much: the body, its
    pictures, and their copies in Ray's object store."""
    max_pending_images: int = 1024
    """Images accepted and not answered yet, all requests together."""
    max_connections: int = 256
    """Open connections; further ones are closed at once."""
    read_timeout_s: float = 20.0
    """From a connection's (or a next request's) first moment to the end of its head, and again to the end of its
    body: a client that sends byte by byte is cut off."""
    keep_alive_s: float = 15.0
    """How long a connection may lie idle between requests."""
    compute_timeout_s: float = 300.0
    """From a whole body to the answer; images not scored by then fail with `compute_timeout`."""
    batch_pixels: int = 1_000_000
    """Pixels of all images scored in one forward pass, for clients that ask for batching; a larger image goes alone."""
    batch_wait_s: float = 0.02
    """How long a batch that is not full waits for company."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value}: must be above 0")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"max_pixels={self.max_pixels}: images of more than {MAX_PIXELS} are never decoded")
        if self.max_held_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_held_bytes={self.max_held_bytes} is below max_body_bytes={self.max_body_bytes}: no largest "
                "request would ever be taken"
            )
        if self.max_pending_images < self.max_images:
            raise ValueError(
                f"max_pending_images={self.max_pending_images} is below max_images={self.max_images}: no largest "
                "request would ever be taken"
            )
