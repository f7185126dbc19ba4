"""The common base of this project's exceptions: `except ZoomIQAError` catches what the three packages raise by name."""


class ZoomIQAError(Exception):
    """Base class. Its children are also ValueError, RuntimeError or ImportError, so older `except` clauses hold."""


class UnknownState(ZoomIQAError, ValueError):
    """What a value depends on cannot be read, so it can be neither cached nor resumed."""
