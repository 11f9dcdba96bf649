"""scikit-learn: its own softmax, the compiled loss of its gradient boosting and linear models, its MLPClassifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn._loss import HalfMultinomialLoss
from sklearn.utils.extmath import softmax as extmath_softmax

from .cases import BATCH, LEARNING_RATE, Case


def set_threads(n_threads: int) -> None:
    """The losses take ``n_threads`` with each call; MLPClassifier's threads are those of BLAS."""


def softmax(case: Case) -> Callable[[], Any]:
    return lambda: extmath_softmax(case.logits)


def cross_entropy(case: Case) -> Callable[[], Any]:
    loss, y = HalfMultinomialLoss(n_classes=case.n_classes), case.targets.astype(case.dtype)
    losses = np.empty_like(y)
    return lambda: loss.loss(y, case.logits, loss_out=losses, n_threads=case.n_threads)


def cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    loss, y = HalfMultinomialLoss(n_classes=case.n_classes), case.targets.astype(case.dtype)
    losses, grad = np.empty_like(y), np.ones_like(case.logits)
    weight = np.full_like(y, 1 / case.n_rows)  # the mean's 1/n goes in as a sample weight: no second pass

    def call() -> Any:
        loss.loss_gradient(y, case.logits, weight, losses, grad, case.n_threads)
        return losses.sum(), grad

    return call


def training_epoch(case: Case) -> Callable[[], Any]:
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        (case.shape[2],),
        solver="sgd",
        alpha=0,
        batch_size=BATCH,
        learning_rate_init=LEARNING_RATE,
        momentum=0,
        random_state=0,
    )
    classes = np.arange(case.n_classes)

    def call() -> Any:
        model.partial_fit(case.x, case.targets, classes=classes)  # one pass over the mini-batches
        return model.predict

    return call
