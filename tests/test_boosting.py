"""`cross_entropy_grad_hess` as a boosting objective: XGBoost and LightGBM train as with their own softmax."""

from __future__ import annotations

import numpy as np
import pytest

from fastsoftmax import functional as F

N_CLASSES = 4


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6))
    y = np.argmax(x[:, :N_CLASSES] + rng.normal(scale=0.5, size=(400, N_CLASSES)), axis=1)
    return x, y, rng.uniform(0.5, 2, size=400)


@pytest.mark.parametrize("weighted", [False, True])
def test_xgboost(data, weighted):
    """XGBoost's hessian is 2 p (1 - p), hence ``hessian_scale=2``."""
    xgboost = pytest.importorskip("xgboost")
    x, y, weight = data
    train = xgboost.DMatrix(x, y, weight=weight if weighted else None)
    params = {
        "num_class": N_CLASSES,
        "eta": 0.3,
        "max_depth": 4,
        "nthread": 1,
        "base_score": 0.5,
        "tree_method": "exact",
    }

    def objective(logits, train):
        sample_weight = train.get_weight() if weighted else None
        return F.cross_entropy_grad_hess(
            logits, train.get_label().astype(int), sample_weight=sample_weight, hessian_scale=2.0
        )

    custom = xgboost.train({**params, "disable_default_eval_metric": True}, train, num_boost_round=10, obj=objective)
    built_in = xgboost.train({**params, "objective": "multi:softprob"}, train, num_boost_round=10)
    probs = F.softmax(custom.predict(train, output_margin=True))
    np.testing.assert_allclose(probs, built_in.predict(train), atol=1e-6)
    assert np.mean(probs.argmax(axis=1) == y) > 0.9  # something was learnt


@pytest.mark.parametrize("weighted", [False, True])
def test_lightgbm(data, weighted):
    """LightGBM's hessian is K / (K - 1) p (1 - p)."""
    lightgbm = pytest.importorskip("lightgbm")
    x, y, weight = data
    params = {
        "num_class": N_CLASSES,
        "learning_rate": 0.3,
        "num_leaves": 8,
        "num_threads": 1,
        "deterministic": True,
        "boost_from_average": False,
        "verbose": -1,
    }

    def train(objective):
        rows = lightgbm.Dataset(x, y, weight=weight if weighted else None, free_raw_data=False)
        return lightgbm.train({**params, "objective": objective}, rows, num_boost_round=10)

    def objective(logits, rows):
        return F.cross_entropy_grad_hess(
            logits,
            rows.get_label().astype(int),
            sample_weight=rows.get_weight(),
            hessian_scale=N_CLASSES / (N_CLASSES - 1),
        )

    probs = F.softmax(train(objective).predict(x, raw_score=True))
    np.testing.assert_allclose(probs, train("multiclass").predict(x), atol=1e-6)
    assert np.mean(probs.argmax(axis=1) == y) > 0.9


def test_a_wrong_hessian_would_show(data):
    """The comparison above can fail: with the hessian of the other library the trees are others."""
    xgboost = pytest.importorskip("xgboost")
    x, y, _ = data
    train = xgboost.DMatrix(x, y)
    params = {"num_class": N_CLASSES, "base_score": 0.5, "nthread": 1, "disable_default_eval_metric": True}
    predicted = [
        xgboost.train(
            params,
            train,
            5,
            obj=lambda z, d: F.cross_entropy_grad_hess(z, y, hessian_scale=scale),  # noqa: B023
        ).predict(train, output_margin=True)
        for scale in (1.0, 2.0)
    ]
    assert np.abs(predicted[0] - predicted[1]).max() > 1e-2
