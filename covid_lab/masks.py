"""Agreement of two masks."""

import numpy as np


def dice(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Compute the Dice coefficient 2 |A ∩ B| / (|A| + |B|) of masks (Dice 1945).

    Parameters
    ----------
    found : np.ndarray, bool (..., H, W)
        Masks.
    true : np.ndarray, bool (..., H, W)
        Masks to compare with, in the same order.

    Returns
    -------
    np.ndarray, float64 (...), 0–1
        One coefficient per pair; 1 where both masks are empty.

    Examples
    --------
    >>> import numpy as np
    >>> found, true = np.zeros((2, 4, 4), bool)
    >>> found[:2], true[1:] = True, True
    >>> float(dice(found, true))  # 4 common pixels of 8 and 12
    0.4
    """
    both = (found & true).sum(axis=(-2, -1))
    areas = found.sum(axis=(-2, -1)) + true.sum(axis=(-2, -1))
    return np.where(areas == 0, 1.0, 2 * both / np.maximum(areas, 1))
