"""A multi-layer perceptron with scikit-learn's parameters over `fastsoftmax.models` and `fastsoftmax.optimizers`."""

from __future__ import annotations

import numbers
import warnings
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, gen_batches, shuffle
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from fastsoftmax import functional as F
from fastsoftmax._batches import Batches
from fastsoftmax.layers import Affine
from fastsoftmax.models import MLP, Buffers
from fastsoftmax.optimizers import SGD, Adam, Optimizer
from fastsoftmax.sklearn._common import row_weights

__all__ = ["MLPClassifier"]

Array = NDArray[Any]


class MLPClassifier(ClassifierMixin, BaseEstimator):
    """A multi-layer perceptron: ReLU layers and softmax, trained by SGD or Adam.

    Parameters, first weights, order of the mini-batches, steps, stopping rules and objective (mean cross-entropy plus
    ``alpha / 2 * sum(weights**2)`` divided by the weight of the mini-batch) are scikit-learn's: the same
    ``random_state`` gives the same network to rounding, for three classes and more. Differences: there is a
    ``class_weight``; two classes have two outputs with softmax; the cross-entropy is exact where scikit-learn clips
    probabilities. Computes in float32 if ``X`` is float32, else in float64.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
    activation : {"relu"}
    solver : {"adam", "sgd"}, default "adam"
    alpha : float, default 1e-4
        Strength of the L2 penalty on weights (not on intercepts).
    batch_size : int or "auto", default "auto"
        "auto" is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        For SGD: ``learning_rate_init / t**power_t`` after t samples with "invscaling"; with "adaptive" it is divided
        by 5 where training would otherwise stop, and training stops below 1e-6.
    learning_rate_init : float, default 1e-3
    power_t : float, default 0.5
    max_iter : int, default 200
        Epochs.
    shuffle : bool, default True
    random_state : int, RandomState or None
    tol, n_iter_no_change : float, default 1e-4; int, default 10
        Training stops after more than ``n_iter_no_change`` epochs that did not improve by ``tol``.
    verbose : bool, default False
    warm_start : bool, default False
        ``fit`` starts from the previous solution.
    momentum, nesterovs_momentum : float, default 0.9; bool, default True
        For SGD.
    early_stopping : bool, default False
        Watch the accuracy on held-out data instead of the training loss, and keep the best weights.
    validation_fraction : float, default 0.1
    beta_1, beta_2, epsilon : float, defaults 0.9, 0.999, 1e-8
        For Adam.
    class_weight : dict, "balanced" or None
        Multiplies ``sample_weight``. In `partial_fit`, "balanced" refers to the rows of that call.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coefs_, intercepts_ : lists of ndarray
        ``coefs_[i]`` is (n_in, n_out) of layer i.
    loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_, n_iter_, t_
        As in scikit-learn.
    n_layers_, n_outputs_, out_activation_, n_features_in_, feature_names_in_

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastsoftmax.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> MLPClassifier(max_iter=500, learning_rate_init=0.01, random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": ["array-like", Interval(numbers.Integral, 1, None, closed="left")],
        "activation": [StrOptions({"relu"})],
        "solver": [StrOptions({"sgd", "adam"})],
        "alpha": [Interval(numbers.Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(numbers.Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(numbers.Real, 0, None, closed="neither")],
        "power_t": [Interval(numbers.Real, 0, None, closed="left")],
        "max_iter": [Interval(numbers.Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(numbers.Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(numbers.Real, 0, 1, closed="left")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(numbers.Real, 0, 1, closed="left")],
        "beta_1": [Interval(numbers.Real, 0, 1, closed="left")],
        "beta_2": [Interval(numbers.Real, 0, 1, closed="left")],
        "epsilon": [Interval(numbers.Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(numbers.Integral, 1, None, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 1e-3,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        class_weight: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight

    # ---- training --------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> MLPClassifier:
        """Train on ``X`` (n_samples, n_features), labels ``y`` until nothing improves, at most ``max_iter`` epochs."""
        going_on = self.warm_start and hasattr(self, "coefs_")
        x, labels = self._check_data(X, y, reset=not going_on)
        classes = unique_labels(labels)
        if going_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "warm_start can only be used where y has the same classes as in the previous call to fit: "
                f"expected {self.classes_}, got {classes}"
            )
        return self._train(x, labels, sample_weight, None if going_on else classes, self.max_iter)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, classes: ArrayLike | None = None
    ) -> MLPClassifier:
        """Train for one epoch from the present weights; the first call must name all ``classes``."""
        first = not hasattr(self, "coefs_")
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is not None:
            classes = unique_labels(classes)
            if not first and not np.array_equal(classes, self.classes_):
                raise ValueError(
                    f"`classes={classes}` is not the same as on last call to partial_fit, was: {self.classes_}"
                )
        x, labels = self._check_data(X, y, reset=first)
        return self._train(x, labels, sample_weight, classes if first else None, None)

    def _check_data(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[Array, Array]:
        x, labels = validate_data(self, X, y, dtype=(np.float64, np.float32), order="C", reset=reset)
        check_classification_targets(labels)
        return x, labels

    def _train(
        self, x: Array, labels: Array, sample_weight: ArrayLike | None, new_classes: Array | None, max_iter: int | None
    ) -> MLPClassifier:
        """Train for ``max_iter`` epochs, or one with the optimizer as it is; from new weights if classes are new."""
        classes = self.classes_ if new_classes is None else new_classes
        unknown = np.setdiff1d(labels, classes)
        if len(unknown):
            raise ValueError(f"`y` has classes not in `self.classes_`: {unknown}, `self.classes_` has {classes}")
        targets = np.searchsorted(classes, labels)
        rng = check_random_state(self.random_state)
        weights = row_weights(sample_weight, self.class_weight, x, targets, classes)
        if new_classes is not None:
            self.classes_ = classes
            self._start(x, rng)
        if max_iter is not None or not hasattr(self, "_optimizer"):
            self._optimizer = self._new_optimizer()
            self._n_bad = 0
            self.loss_curve_: list[float] = []
            self.best_loss_: float | None = None if self.early_stopping else np.inf
            self.validation_scores_: list[float] | None = [] if self.early_stopping else None
            self.best_validation_score_: float | None = -np.inf if self.early_stopping else None
        held_out: tuple[Any, ...] | None = None
        if self.early_stopping:
            x, targets, weights, held_out = self._split(x, targets, weights, rng)
        self._epochs(x, targets, weights, held_out, rng, max_iter)
        if not all(np.isfinite(p).all() for p in (*self.coefs_, *self.intercepts_)):
            raise ValueError("training produced non-finite weights: scale the data, or lower learning_rate_init")
        return self

    def _start(self, x: Array, rng: np.random.RandomState) -> None:
        """First weights and intercepts, uniform with the bounds of Glorot and Bengio (2010)."""
        hidden = np.atleast_1d(self.hidden_layer_sizes).astype(int).tolist() if np.size(self.hidden_layer_sizes) else []
        if any(n <= 0 for n in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        self.coefs_, self.intercepts_ = [], []
        for n_in, n_out in pairwise([x.shape[1], *hidden, len(self.classes_)]):
            bound = np.sqrt(6.0 / (n_in + n_out))
            self.coefs_.append(rng.uniform(-bound, bound, (n_in, n_out)).astype(x.dtype, copy=False))
            self.intercepts_.append(rng.uniform(-bound, bound, n_out).astype(x.dtype, copy=False))
        self.n_layers_, self.n_outputs_, self.out_activation_ = len(hidden) + 2, len(self.classes_), "softmax"
        self.n_iter_ = self.t_ = 0
        vars(self).pop("_optimizer", None)

    def _new_optimizer(self) -> Optimizer:
        if self.solver == "sgd":
            return SGD(self.learning_rate_init, momentum=self.momentum, nesterov=self.nesterovs_momentum)
        return Adam(self.learning_rate_init, beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon)

    def _split(
        self, x: Array, targets: Array, weights: Array | None, rng: np.random.RandomState
    ) -> tuple[Array, Array, Array | None, tuple[Any, ...]]:
        arrays = [x, targets] if weights is None else [x, targets, weights]
        stratify = targets if len(self.classes_) == 2 else None  # scikit-learn's rule: the same rows are held out
        parts = train_test_split(*arrays, random_state=rng, test_size=self.validation_fraction, stratify=stratify)
        train, held_out = parts[::2], parts[1::2]
        if len(held_out[0]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return (*train, None)[:3] + (tuple(held_out),)

    def _epochs(
        self,
        x: Array,
        targets: Array,
        weights: Array | None,
        held_out: tuple[Any, ...] | None,
        rng: np.random.RandomState,
        max_iter: int | None,
    ) -> None:
        n_rows = len(x)
        batch_size = min(200 if self.batch_size == "auto" else self.batch_size, n_rows)
        network = self._network()
        batches = Batches(x, batch_size=batch_size, scale=1.0, dtype=x.dtype)
        buffers = network._buffers(batch_size)
        order = np.arange(n_rows)
        best = None
        self.n_iter_ = 0
        while self.n_iter_ < (max_iter or 1):
            if self.shuffle:
                order = shuffle(order, random_state=rng)
            total = 0.0
            for rows in gen_batches(n_rows, batch_size):
                chosen = order[rows] if self.shuffle else rows
                weight = None if weights is None else weights[chosen]
                total += (rows.stop - rows.start) * self._step(
                    network, batches.take(chosen), targets[chosen], weight, buffers
                )
            self.n_iter_ += 1
            self.t_ += n_rows
            self.loss_ = total / n_rows
            self.loss_curve_.append(self.loss_)
            improved_best = self._judge(network, held_out)
            if improved_best and held_out is not None:
                best = [p.copy() for p in network.params]
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")  # noqa: T201 - scikit-learn's verbose
            if self.solver == "sgd" and self.learning_rate == "invscaling":
                self._set_learning_rate(self.learning_rate_init / (self.t_ + 1) ** self.power_t)
            if self._n_bad > self.n_iter_no_change and self._stop():
                break
        else:
            if max_iter is not None:
                warnings.warn(
                    f"The optimization has not converged in max_iter={max_iter} epochs.",
                    ConvergenceWarning,
                    stacklevel=4,
                )
        if best is not None:
            self.coefs_, self.intercepts_ = best[::2], best[1::2]

    def _step(self, network: MLP, x: Array, targets: Array, weight: Array | None, buffers: Buffers) -> float:
        """One step of the optimizer; returns the mini-batch's objective."""
        total = len(x) if weight is None else float(weight.sum())
        if total == 0:
            return 0.0
        optimizer, l2 = self._optimizer, self.alpha / total
        if isinstance(optimizer, Adam):  # scikit-learn adds epsilon before the bias correction, the paper after it
            optimizer.epsilon = self.epsilon / np.sqrt(1 - self.beta_2 ** (optimizer.n_steps + 1))
        loss = network._loss_and_grads(x, targets, weight, None, buffers)()
        loss += l2 / 2 * sum(float(np.vdot(w, w)) for w in self.coefs_)
        optimizer.step(network.params, buffers.grads, [l2, 0.0] * len(self.coefs_))
        return loss

    def _set_learning_rate(self, learning_rate: float) -> None:
        """Steps on the way keep their length, as in scikit-learn, whose velocities include the learning rate."""
        for velocities in self._optimizer.slots:
            for velocity in velocities:
                velocity *= self._optimizer.learning_rate / learning_rate
        self._optimizer.learning_rate = learning_rate

    def _judge(self, network: MLP, held_out: tuple[Any, ...] | None) -> bool:
        """Note whether this epoch improved by ``tol``; returns whether it is the best so far."""
        if held_out is None:
            enough, better = self.loss_ <= self.best_loss_ - self.tol, self.loss_ < self.best_loss_
            self.best_loss_ = min(self.loss_, self.best_loss_)
        else:
            x, targets, *weight = held_out
            right = network.predict(x) == targets
            score = float(np.average(right, weights=weight[0] if weight else None))
            self.validation_scores_.append(score)
            best = self.best_validation_score_
            enough, better = score >= best + self.tol, score > best
            self.best_validation_score_ = max(score, best)
        self._n_bad = 0 if enough else self._n_bad + 1
        return better

    def _stop(self) -> bool:
        """Whether to stop for want of improvement; the adaptive learning rate is lowered first."""
        if self.solver != "sgd" or self.learning_rate != "adaptive" or self._optimizer.learning_rate <= 1e-6:
            return True
        self._set_learning_rate(self._optimizer.learning_rate / 5.0)
        self._n_bad = 0
        return False

    # ---- prediction ------------------------------------------------------------------------------------------

    def _network(self) -> MLP:
        """The network that ``coefs_`` and ``intercepts_`` are: it holds them by reference."""
        network = MLP([w.shape[1] for w in self.coefs_[:-1]], dtype=self.coefs_[0].dtype)
        network.layers = [Affine(weight, bias) for weight, bias in zip(self.coefs_, self.intercepts_)]
        return network

    def _logits(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        x = validate_data(self, X, dtype=(np.float64, np.float32), order="C", reset=False)
        return self._network().decision_function(x)

    def predict(self, X: ArrayLike) -> Array:
        """The most probable label of each sample."""
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
