"""One image that fails must not end the others; what fails every image from the start must."""

ALIKE = 3
"""First images that fail by one kind of error before the work ends."""


class Failures:
    """The failures of a command over many images.

    A ValueError, which names what is wrong with one image, never ends the work. Any other error does, as long as
    nothing has come out and the first `ALIKE` images have failed by that kind of error: it is none of an image.
    """

    def __init__(self) -> None:
        self._kinds: list[type[Exception]] | None = []

    def succeeded(self) -> None:
        """An image has come out: from now on each failure belongs to its image."""
        self._kinds = None

    def reason(self, error: Exception) -> str:
        """Return the reason of an image that failed, in one line. Raises the error itself if it fails every image."""
        text = " ".join(str(error).split())
        if isinstance(error, ValueError):
            return text
        if self._kinds is not None:
            self._kinds.append(type(error))
            if self._kinds[-ALIKE:] == [type(error)] * ALIKE:
                raise error
        return f"{type(error).__name__}: {text}"
