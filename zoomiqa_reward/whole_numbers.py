"""Arguments that must be whole numbers."""

import operator


def whole_numbers(**given: int) -> list[int]:
    """Return the arguments as Python's own integers; numpy's and torch's are taken too.

    Raises TypeError that names the argument.

    >>> whole_numbers(n=8, seed=0)
    [8, 0]
    """
    numbers = []
    for name, value in given.items():
        try:
            numbers.append(operator.index(value))
        except TypeError:
            raise TypeError(f"{name}={value!r}: must be a whole number, such as 2") from None
    return numbers


def batch_size_of(batch_size: int) -> int:
    """Return the number of images that share a pass. Raises TypeError, and ValueError for less than one."""
    (size,) = whole_numbers(batch_size=batch_size)
    if size < 1:
        raise ValueError(f"batch_size={size}: must be at least 1")
    return size
