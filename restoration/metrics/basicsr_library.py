"""The only place that imports BasicSR: the import is slow, warns and changes numpy's error state, so it comes late.

The import name is `basicsr`; the distribution is `basicsr-fixed`, since basicsr 1.4.2 itself cannot be imported with
torchvision 0.17 and later.
"""

import warnings
from importlib import import_module
from types import ModuleType

import numpy as np


def basicsr_module(name: str) -> ModuleType:
    """Return `basicsr.<name>`, imported without its warnings and without its change of `np.seterr`.

    Raises ImportError that says what to install: the extra, or the Debian package of the library that opencv needs.
    """
    try:
        with warnings.catch_warnings(), np.errstate():
            warnings.simplefilter("ignore")
            return import_module(f"basicsr.{name}")
    except ImportError as error:
        raise ImportError(
            f"basicsr.{name} cannot be imported ({error}): pip install 'zoomiqa-reward[restoration]'; "
            "if libGL is missing, install the Debian package libgl1"
        ) from error
