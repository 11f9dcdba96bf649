"""What the two estimators share: classes, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import compute_class_weight
from sklearn.utils.validation import _check_sample_weight

__all__ = ["row_weights"]


def row_weights(
    sample_weight: ArrayLike | None, class_weight: Any, x: NDArray, targets: NDArray, classes: NDArray
) -> NDArray | None:
    """Sample weights times the weights of the samples' classes, of ``x``'s dtype; None if nothing is weighted.

    "balanced" gives a class the weight ``total / (n_classes * weight of its samples)``.
    """
    weight = None if sample_weight is None else _check_sample_weight(sample_weight, x, dtype=x.dtype)
    if class_weight is None:
        return weight
    if isinstance(class_weight, str):
        in_class = np.bincount(targets, weight, minlength=len(classes))
        present = in_class > 0
        of_class = np.divide(
            in_class.sum() / np.count_nonzero(present), in_class, where=present, out=np.ones(len(classes))
        )
    else:
        of_class = compute_class_weight(class_weight, classes=classes, y=classes[targets])
    of_class = of_class.astype(x.dtype)
    return of_class[targets] if weight is None else weight * of_class[targets]
