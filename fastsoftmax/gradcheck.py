"""Does a gradient agree with central differences, and where does it agree least?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays

__all__ = ["GradientCheck", "gradient_check"]

Array = NDArray[np.floating]
Params = Array | Sequence[Array] | Mapping[str, Array]


@dataclass(frozen=True)
class GradientCheck:
    """The outcome of `gradient_check`; true where every entry agrees.

    Attributes
    ----------
    error : float
        The largest relative error.
    param : int or str
        The parameter that holds the worst entry: its position or key (0 for a single array).
    index : tuple of int
        Where in that parameter.
    analytic, numeric : float
        The two gradients there.
    n_checked : int
        How many entries were compared.
    tolerance : float
    """

    error: float
    param: int | str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    n_checked: int
    tolerance: float

    def __bool__(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return (
            f"gradient check {'passed' if self else 'FAILED'}: {self.n_checked} entries, largest relative error "
            f"{self.error:.1e} (tolerance {self.tolerance:.0e}) at {self.param!r}{list(self.index)}: "
            f"gradient {self.analytic:.9g}, central difference {self.numeric:.9g}"
        )


def gradient_check(
    f: Callable[[Any], tuple[float, Any]],
    params: Params,
    *,
    tolerance: float | None = None,
    step: float | None = None,
    n_entries: int | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Compare the gradient that ``f`` returns with central differences of its value.

    Parameters
    ----------
    f : callable
        ``f(params)`` returns ``(loss, gradient)``, the gradient laid out like ``params``.
    params : ndarray, or sequence or dict of ndarray
        Float arrays, C-contiguous. They are changed in place, one entry at a time, and put back exactly, so ``f`` may
        as well ignore its argument and use arrays it holds by reference, as a model does.
    tolerance : float, optional
        Default 1e-6; 2e-2 where a parameter is float32, in which differences are hardly better.
    step : float, optional
        An entry ``p`` moves by ``step * max(1, abs(p))``. Default: the cube root of the machine epsilon, which balances
        truncation (step squared) with rounding (epsilon over step).
    n_entries : int, optional
        Check so many entries of each parameter, drawn at random with ``seed``. Default: all.

    Returns
    -------
    GradientCheck
        True if the check passed; as a string it says where the worst entry is.

    Notes
    -----
    The error of an entry is ``abs(a - n) / max(abs(a), abs(n), floor)``, where the floor, a hundredth of the largest
    entry compared in the same parameter, keeps the rounding noise of entries near zero from being taken for errors.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import cross_entropy_with_grad, gradient_check
    >>> logits = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]])
    >>> bool(gradient_check(lambda z: cross_entropy_with_grad(z, [2, 0]), logits))
    True
    """
    worst: GradientCheck | None = None
    n_checked = 0
    rng = np.random.default_rng(seed)
    gradient = dict(_named(f(params)[1]))
    gradient = {name: np.array(grad, dtype=np.float64) for name, grad in gradient.items()}  # f may reuse its buffers
    named = [(name, _arrays.checked_param(param, name, gradient.get(name))) for name, param in _named(params)]
    if tolerance is None:
        tolerance = 1e-6 if all(param.dtype == np.float64 for _, param in named) else 2e-2
    for name, param in named:
        entries = np.arange(param.size)
        if n_entries is not None and n_entries < param.size:
            entries = np.sort(rng.choice(param.size, n_entries, replace=False))
        if not entries.size:
            continue
        relative_step = np.cbrt(np.finfo(param.dtype).eps) if step is None else step
        numeric = np.array([_central_difference(f, params, param, int(i), relative_step) for i in entries])
        analytic = gradient[name].reshape(-1)[entries]
        size = np.maximum(abs(analytic), abs(numeric))
        floor = max(1e-2 * size.max(initial=0.0, where=np.isfinite(size)), np.finfo(np.float64).tiny)
        with np.errstate(invalid="ignore"):
            error = abs(analytic - numeric) / np.maximum(size, floor)
        error[np.isnan(error)] = np.inf  # a NaN or infinite gradient is as wrong as can be
        k = int(np.argmax(error))
        n_checked += entries.size
        if worst is None or error[k] > worst.error:
            index = tuple(int(i) for i in np.unravel_index(entries[k], param.shape))
            worst = GradientCheck(float(error[k]), name, index, float(analytic[k]), float(numeric[k]), 0, tolerance)
    return replace(_arrays.something_checked(worst), n_checked=n_checked)


def _named(params: Params) -> Iterator[tuple[int | str, Any]]:
    if isinstance(params, Mapping):
        return iter(params.items())
    return enumerate(params if isinstance(params, (list, tuple)) else [params])


def _central_difference(f: Callable[..., Any], params: Params, param: Array, i: int, relative_step: float) -> float:
    flat = param.reshape(-1)  # a view: param is contiguous
    kept = flat[i]
    h = relative_step * max(1.0, abs(float(kept)))
    try:
        flat[i] = kept + h
        above, loss_above = float(flat[i]), float(f(params)[0])
        flat[i] = kept - h
        below, loss_below = float(flat[i]), float(f(params)[0])
    finally:
        flat[i] = kept
    return (loss_above - loss_below) / (above - below)  # the distance really moved, after rounding
