"""Multinomial logistic regression: SciPy's L-BFGS over the fused head."""

from __future__ import annotations

import numbers
import warnings
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fastsoftmax import functional as F
from fastsoftmax.sklearn._common import row_weights

__all__ = ["LogisticRegression"]

Array = NDArray[np.float64]


class LogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression, multinomial for more than two classes, in double precision.

    It minimises what scikit-learn's estimator of that name minimises,
    ``C * sum(sample_weight * cross_entropy) + sum(coef_**2) / 2``, by the same method (L-BFGS, with the same scaling
    and tolerances), and reaches the same optimum. One fused kernel call computes loss and gradient and reads ``X``
    once, where scikit-learn reads it twice around a pass over the logits.

    Parameters
    ----------
    penalty : {"l2", None}, default "l2"
    C : float, default 1.0
        Inverse strength of the penalty.
    tol : float, default 1e-4
        L-BFGS ends when no component of the gradient (of the objective divided by ``C * sum(sample_weight)``) exceeds
        it.
    max_iter : int, default 100
    fit_intercept : bool, default True
    class_weight : dict, "balanced" or None
        Multiplies ``sample_weight``.
    warm_start : bool, default False
        Start from the previous solution.
    solver : {"lbfgs"}
    random_state, n_jobs
        Accepted for compatibility: nothing here is random, and `fastsoftmax.set_num_threads` says how many threads run.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,) or (1,)
    n_iter_ : ndarray of shape (1,)
    n_features_in_, feature_names_in_

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastsoftmax.sklearn import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> round(LogisticRegression(max_iter=200).fit(X, y).score(X, y), 2)
    0.97
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "penalty": [StrOptions({"l2"}), None],
        "C": [Interval(numbers.Real, 0, None, closed="right")],
        "tol": [Interval(numbers.Real, 0, None, closed="left")],
        "max_iter": [Interval(numbers.Integral, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "warm_start": ["boolean"],
        "solver": [StrOptions({"lbfgs"})],
        "random_state": ["random_state"],
        "n_jobs": [numbers.Integral, None],
    }

    def __init__(
        self,
        penalty: str | None = "l2",
        *,
        C: float = 1.0,
        tol: float = 1e-4,
        max_iter: int = 100,
        fit_intercept: bool = True,
        class_weight: Any = None,
        warm_start: bool = False,
        solver: str = "lbfgs",
        random_state: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.solver = solver
        self.random_state = random_state
        self.n_jobs = n_jobs

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> LogisticRegression:
        """Fit to ``X`` of shape (n_samples, n_features) and labels ``y``; float64 in C order is used without a copy."""
        x, labels = validate_data(self, X, y, dtype=np.float64, order="C")
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"expected samples of at least 2 classes, got only one class in the data: {self.classes_[0]!r}"
            )
        weights = row_weights(sample_weight, self.class_weight, x, targets, self.classes_)
        objective = _Objective(x, targets, weights, len(self.classes_), self.fit_intercept, self._l2(x, weights))
        start = np.zeros(objective.size)
        if self.warm_start and hasattr(self, "coef_"):
            start[:] = objective.pack(self.coef_, self.intercept_)
        result = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.max_iter, "maxls": 50, "gtol": self.tol, "ftol": 64 * np.finfo(float).eps},
        )
        if not result.success:
            warnings.warn(
                f"L-BFGS ended after {result.nit} iterations without converging: {result.message}. "
                "Increase max_iter, or scale the data.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.n_iter_ = np.array([min(result.nit, self.max_iter)], dtype=np.int32)
        self.coef_, self.intercept_ = objective.unpack(result.x)
        return self

    def _l2(self, x: Array, weights: Array | None) -> float:
        """The penalty's factor in the mean objective."""
        return 0.0 if self.penalty is None else 1.0 / (self.C * (len(x) if weights is None else weights.sum()))

    def decision_function(self, X: ArrayLike) -> Array:
        """Scores of shape (n_samples, n_classes); for two classes the second one's, of shape (n_samples,)."""
        logits = self._logits(X)
        return logits[:, 1].copy() if len(self.classes_) == 2 else logits

    def predict(self, X: ArrayLike) -> NDArray:
        """The label of largest score for each sample."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities of shape (n_samples, n_classes), in the order of ``classes_``."""
        logits = self._logits(X)
        return F.softmax(logits, out=logits)

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Their logarithms, exact also where the probability is 0 or 1 in floating point."""
        logits = self._logits(X)
        return F.log_softmax(logits, out=logits)

    def _logits(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        x = validate_data(self, X, dtype=np.float64, order="C", reset=False)
        if len(self.classes_) > 2:
            return F.affine(x, self.coef_.T, self.intercept_)
        return F.affine(x, *_two_columns(self.coef_[0], self.intercept_[0]))


class _Objective:
    """Mean cross-entropy plus ``l2 / 2 * sum(weight**2)`` of flat parameters: weight (n_in, n_out), then bias.

    Two classes have one column of parameters, as in scikit-learn: the first class's logit is held at 0, which makes the
    softmax the logistic function.
    """

    def __init__(
        self, x: Array, targets: NDArray, weights: Array | None, n_classes: int, fit_intercept: bool, l2: float
    ) -> None:
        self.x, self.targets, self.l2 = x, targets, l2
        self.sample_weight = None if weights is None else weights / weights.sum()
        self.reduction = "mean" if weights is None else "sum"
        self.n_out = n_classes if n_classes > 2 else 1
        self.n_weights = x.shape[1] * self.n_out
        self.size = self.n_weights + self.n_out * fit_intercept
        self.fit_intercept = fit_intercept

    def __call__(self, flat: Array) -> tuple[float, Array]:
        coef = flat[: self.n_weights]
        weight, bias = coef.reshape(-1, self.n_out), flat[self.n_weights :] if self.fit_intercept else None
        if self.n_out == 1:
            weight, bias = _two_columns(coef, 0.0 if bias is None else bias[0])
        loss, (_, grad_weight, grad_bias) = F.linear_cross_entropy_with_grad(
            self.x,
            weight,
            self.targets,
            bias,
            sample_weight=self.sample_weight,
            reduction=self.reduction,
            need_grad_x=False,
        )
        grad = np.empty_like(flat)
        grad_coef = np.multiply(coef, self.l2, out=grad[: self.n_weights]).reshape(-1, self.n_out)
        grad_coef += grad_weight[:, -self.n_out :]
        if self.fit_intercept:
            grad[self.n_weights :] = grad_bias[-self.n_out :]
        return loss + self.l2 / 2 * float(coef @ coef), grad

    def pack(self, coef: Array, intercept: Array) -> Array:
        """scikit-learn's ``coef_`` (n_out, n_in) and ``intercept_`` as flat parameters."""
        return np.concatenate([coef.T.ravel(), intercept[: self.size - self.n_weights]])

    def unpack(self, flat: Array) -> tuple[Array, Array]:
        """The inverse of `pack`."""
        coef = np.ascontiguousarray(flat[: self.n_weights].reshape(-1, self.n_out).T)
        return coef, flat[self.n_weights :].copy() if self.fit_intercept else np.zeros(self.n_out)


def _two_columns(coef: Array, intercept: float) -> tuple[Array, Array]:
    """Weight (n_in, 2) and bias (2,) whose first column is zero."""
    weight = np.zeros((len(coef), 2))
    weight[:, 1] = coef
    return weight, np.array([0.0, intercept])
