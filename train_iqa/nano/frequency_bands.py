"""How much detail of each frequency a token holds: what a vision tower has to measure before it can judge.

Log energies are targets with little noise: in the picture as it is, in its clean reference, and in their difference.
From one quality number a token a small tower needs thousands of steps to find that noise and sharpness are energies
that span four decades; told so, it finds them within hundreds.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from train_iqa.nano.labels import TOKEN_PX

SIGMAS_PX = (0.6, 1.2, 2.4, 4.8)
NUM_BANDS = len(SIGMAS_PX) + 1
"""Three bands of brightness between neighbouring sigmas, the finest above the first, and fine colour."""
FLOOR = 1e-6
"""Mean square below which there is nothing to see: a quarter of an 8-bit step."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _pool(squares: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = squares.shape[0] // TOKEN_PX, squares.shape[1] // TOKEN_PX
    cut = squares[: rows * TOKEN_PX, : columns * TOKEN_PX]
    return cut.reshape(rows, TOKEN_PX, columns, TOKEN_PX).mean(axis=(1, 3))


def band_energies(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log10 of the mean square of each band in each 28 px token, (rows, columns, NUM_BANDS), for HWC floats."""
    luma = image @ LUMA
    chroma = image - luma[..., None]
    blurred = [luma, *(ndimage.gaussian_filter(luma, s, mode="reflect") for s in SIGMAS_PX)]
    squares = [(fine - coarse) ** 2 for fine, coarse in pairwise(blurred)]
    fine_chroma = chroma - ndimage.gaussian_filter(chroma, (SIGMAS_PX[1], SIGMAS_PX[1], 0), mode="reflect")
    squares.append((fine_chroma**2).mean(axis=2))
    return np.stack([np.log10(_pool(s) + FLOOR) for s in squares], axis=-1).astype(np.float32)


def band_targets(image: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (rows, columns, 3 * NUM_BANDS): the picture's energies, its reference's, and their difference's."""
    return np.concatenate([band_energies(x) for x in (image, reference, image - reference)], axis=-1)
