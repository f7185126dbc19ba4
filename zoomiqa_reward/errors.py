"""The common base of this project's exceptions: `except ZoomIQAError` catches what the three packages raise by name."""


class ZoomIQAError(Exception):
    """Base class. Its children are also ValueError, RuntimeError or ImportError, so older `except` clauses hold."""
