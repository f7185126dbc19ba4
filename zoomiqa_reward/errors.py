"""The common base of this project's exceptions: `except ZoomIQAError` catches all of them."""


class ZoomIQAError(Exception):
    """Base class. Its children are also ValueError, RuntimeError or ImportError."""


class UnknownState(ZoomIQAError, ValueError):
    """The state behind a value cannot be read, so the value can be neither cached nor resumed."""
