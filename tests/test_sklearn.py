"""`fastsoftmax.sklearn` against scikit-learn: its estimator checks, its optima, its numbers step by step."""

from __future__ import annotations

import pickle
import re
import warnings
from inspect import signature

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn import linear_model, neural_network  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits, load_iris, make_classification  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.metrics import log_loss  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from fastsoftmax.sklearn import LogisticRegression, MLPClassifier  # noqa: E402


@parametrize_with_checks(
    [
        LogisticRegression(),
        LogisticRegression(penalty=None, class_weight="balanced"),
        MLPClassifier(max_iter=100),
        MLPClassifier(solver="sgd", learning_rate_init=0.05, max_iter=100),
    ]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix for nan:UserWarning")
def test_scikit_learns_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(autouse=True)
def _one_blas_thread():
    """Arrays are small here, and OpenMP's threads spin: on a busy machine they cost far more than the work."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x / 16, y


def objective(model, x, y, C=1.0, sample_weight=None):
    """scikit-learn's documented objective, from its own log_loss."""
    loss = log_loss(y, model.predict_proba(x), normalize=False, sample_weight=sample_weight)
    return C * loss + 0.5 * np.sum(model.coef_**2)


EXACT = {"tol": 1e-8, "max_iter": 10_000}


@pytest.mark.parametrize("C", [0.01, 1.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("class_weight", [None, "balanced", {3: 5.0}])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_reaches_scikit_learns_optimum(digits, C, fit_intercept, class_weight, weighted):
    x, y = digits
    x, y = x[:600], y[:600]
    sample_weight = np.random.default_rng(0).uniform(0, 2, len(y)) if weighted else None
    given = {"C": C, "fit_intercept": fit_intercept, "class_weight": class_weight, **EXACT}
    ours = LogisticRegression(**given).fit(x, y, sample_weight)
    theirs = linear_model.LogisticRegression(**given).fit(x, y, sample_weight)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5)
    weights = np.ones(len(y)) if sample_weight is None else sample_weight
    if class_weight == "balanced":
        totals = np.bincount(y, weights)
        weights = weights * (totals.sum() / (10 * totals))[y]
    elif class_weight:
        weights = np.where(y == 3, 5.0, 1.0) * weights
    assert objective(ours, x, y, C, weights) == pytest.approx(objective(theirs, x, y, C, weights), rel=1e-8)


def test_logistic_regression_on_all_digits(digits):
    ours, theirs = (cls(**EXACT).fit(*digits) for cls in (LogisticRegression, linear_model.LogisticRegression))
    assert objective(ours, *digits) == pytest.approx(objective(theirs, *digits), rel=1e-8)
    assert ours.score(*digits) == theirs.score(*digits)


def test_logistic_regression_takes_scikit_learns_steps(digits):
    """Same objective, scaling and tolerances: the same point after the same number of iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours, theirs = (cls(max_iter=15).fit(*digits) for cls in (LogisticRegression, linear_model.LogisticRegression))
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-8)
    assert ours.n_iter_ == theirs.n_iter_ == 15


@pytest.mark.parametrize("labels", [("no", "yes"), (0, 1), (-1, 7)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_two_classes_have_one_row_of_coefficients(labels, fit_intercept):
    x, y = make_classification(n_samples=300, n_features=8, random_state=0)
    y = np.array(labels)[y]
    ours = LogisticRegression(fit_intercept=fit_intercept, **EXACT).fit(x, y)
    theirs = linear_model.LogisticRegression(fit_intercept=fit_intercept, **EXACT).fit(x, y)
    assert ours.coef_.shape == theirs.coef_.shape == (1, 8)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(ours.decision_function(x), theirs.decision_function(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


def test_without_penalty():
    x, y = load_iris(return_X_y=True)
    x = x[::2] + np.random.default_rng(0).normal(scale=1.5, size=(75, 4))  # overlapping: a finite optimum exists
    y = y[::2]
    ours = LogisticRegression(penalty=None, **EXACT).fit(x, y)
    theirs = linear_model.LogisticRegression(C=np.inf, **EXACT).fit(x, y)
    assert log_loss(y, ours.predict_proba(x)) == pytest.approx(log_loss(y, theirs.predict_proba(x)), rel=1e-8)
    same = LogisticRegression(C=np.inf, **EXACT).fit(x, y)
    np.testing.assert_array_equal(ours.coef_, same.coef_)


def test_warm_start_and_convergence_warning(digits):
    model = LogisticRegression(max_iter=3, warm_start=True)
    with pytest.warns(ConvergenceWarning, match="after 3 iterations"):
        model.fit(*digits)
    first = objective(model, *digits)
    with pytest.warns(ConvergenceWarning):
        model.fit(*digits)
    assert objective(model, *digits) < first
    model.set_params(max_iter=1000).fit(*digits)
    assert model.fit(*digits).n_iter_ <= 2


def test_log_probabilities_of_a_confident_model(digits):
    """The largest probability rounds to 1; its logarithm does not round to 0."""
    x, y = digits
    for model in (LogisticRegression(C=1e4, max_iter=2000), MLPClassifier(max_iter=5)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        n_certain = 0
        for scale in (1, 3, 10, 30, 100):
            log_probs, probs = model.predict_log_proba(scale * x), model.predict_proba(scale * x)
            np.testing.assert_allclose(np.exp(log_probs), probs, rtol=1e-9, atol=1e-300)
            certain = (probs == 1) & (np.sort(log_probs)[:, -2:-1] > -700)  # the others do not underflow
            assert np.all(log_probs[certain] < 0)
            n_certain += certain.sum()
        assert n_certain > 100


@pytest.mark.parametrize("sparse", ["csr_matrix", "csc_array", "coo_matrix"])
def test_sparse_input_is_refused(digits, sparse):
    x = getattr(pytest.importorskip("scipy.sparse"), sparse)(digits[0])
    for model in (LogisticRegression(), MLPClassifier()):
        with pytest.raises(TypeError, match="dense data is required"):
            model.fit(x, digits[1])


@pytest.mark.parametrize(
    "model", [LogisticRegression(), MLPClassifier((16,), max_iter=60, learning_rate_init=0.02, random_state=0)]
)
def test_pipeline_grid_search_clone_pickle(model):
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    key = "C" if isinstance(model, LogisticRegression) else "alpha"
    name = type(model).__name__.lower()
    search = GridSearchCV(make_pipeline(StandardScaler(), clone(model)), {f"{name}__{key}": [0.1, 1.0]}, n_jobs=2, cv=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the worker processes' start, and of convergence
        search.fit(x, names)
    assert search.best_score_ > 0.7
    fitted = search.best_estimator_
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict_proba(x), fitted.predict_proba(x))
    assert not hasattr(clone(fitted)[-1], "classes_")


def both_mlps(x, y, sample_weight=None, **params):
    """Our network and scikit-learn's, trained alike."""
    models = []
    for cls in (MLPClassifier, neural_network.MLPClassifier):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(cls(**params).fit(x, y, *([] if sample_weight is None else [sample_weight])))
    return models


@pytest.mark.parametrize(
    "params",
    [
        {"momentum": 0.0},
        {"nesterovs_momentum": False, "batch_size": 64},
        {"hidden_layer_sizes": (12, 7), "alpha": 0.5},
        {"hidden_layer_sizes": (), "shuffle": False},
        {"learning_rate": "invscaling", "power_t": 0.2},
        {"learning_rate": "adaptive", "tol": 1e-2, "n_iter_no_change": 1, "max_iter": 60, "learning_rate_init": 0.1},
        {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 3, "max_iter": 60},
        {"weighted": True},
        {"solver": "adam"},
        {"solver": "adam", "epsilon": 1e-3, "beta_1": 0.5, "beta_2": 0.9, "early_stopping": True},
    ],
)
def test_mlp_takes_scikit_learns_steps(digits, params):
    """The same random_state: the same weights, epoch by epoch, mini-batch by mini-batch."""
    x, y = digits[0][:500], digits[1][:500]
    params = {"hidden_layer_sizes": (20,), "solver": "sgd", "learning_rate_init": 0.05, "max_iter": 8, **params}
    weight = np.random.default_rng(0).uniform(0.5, 2, 500) if params.pop("weighted", False) else None
    if weight is not None and "sample_weight" not in signature(neural_network.MLPClassifier.fit).parameters:
        pytest.skip("this scikit-learn has no sample_weight here")
    ours, theirs = both_mlps(x, y, weight, random_state=3, **params)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.t_ == theirs.t_
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    for mine, its in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_):
        np.testing.assert_allclose(mine, its, rtol=1e-6, atol=1e-9)
    if ours.early_stopping:
        np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


def test_mlp_float32_stays_float32(digits):
    x, y = digits[0].astype("float32"), digits[1]
    ours, theirs = both_mlps(x, y, solver="sgd", learning_rate_init=0.05, max_iter=5, random_state=0)
    assert {p.dtype for p in ours.coefs_ + ours.intercepts_} == {np.dtype("float32")}
    assert ours.predict_proba(x).dtype == "float32"
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-4)


def test_mlp_partial_fit(digits):
    x, y = digits
    ours, theirs = (cls((20,), solver="sgd", learning_rate_init=0.05, random_state=0) for cls in
                    (MLPClassifier, neural_network.MLPClassifier))  # fmt: skip
    for start in range(0, 600, 200):
        for model in (ours, theirs):
            model.partial_fit(x[start : start + 200], y[start : start + 200], classes=np.arange(10))
    for mine, its in zip(ours.coefs_, theirs.coefs_):
        np.testing.assert_allclose(mine, its, rtol=1e-8, atol=1e-12)
    assert len(ours.loss_curve_) == 3
    with pytest.raises(ValueError, match="not the same as on last call"):
        ours.partial_fit(x, y, classes=np.arange(9))
    with pytest.raises(ValueError, match="must be passed on the first call"):
        clone(ours).partial_fit(x, y)
    with pytest.raises(ValueError, match="`y` has classes not in"):
        ours.partial_fit(x[:2], [3, 10])
    with pytest.raises(ValueError, match="early_stopping"):
        MLPClassifier(early_stopping=True).partial_fit(x, y, classes=np.arange(10))


def test_mlp_warm_start(digits):
    x, y = digits
    model = MLPClassifier((20,), warm_start=True, max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        model.fit(x, y)
    loss = model.loss_
    with pytest.warns(ConvergenceWarning):
        model.fit(x, y)
    assert model.loss_ < loss
    with pytest.raises(ValueError, match="warm_start can only be used"):
        model.fit(x[y < 9], y[y < 9])


def test_class_weight_is_a_sample_weight(digits):
    x, y = digits[0][:400], digits[1][:400]
    weight = np.where(y == 4, 10.0, 1.0)
    for model in (LogisticRegression(), MLPClassifier((10,), max_iter=3, random_state=0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            by_class = clone(model).set_params(class_weight={4: 10.0}).fit(x, y).predict_proba(x)
            by_sample = model.fit(x, y, sample_weight=weight).predict_proba(x)
        np.testing.assert_allclose(by_class, by_sample, rtol=1e-10)


@pytest.mark.parametrize("wrong", [{"C": -1.0}, {"penalty": "l1"}, {"solver": "liblinear"}, {"max_iter": -1}])
def test_wrong_parameters(digits, wrong):
    with pytest.raises(ValueError, match=re.escape(next(iter(wrong)))):
        LogisticRegression(**wrong).fit(*digits)


@pytest.mark.parametrize(
    "wrong",
    [{"activation": "tanh"}, {"hidden_layer_sizes": (0,)}, {"alpha": -1}, {"solver": "lbfgs"}, {"momentum": 1.0}],
)
def test_wrong_mlp_parameters(digits, wrong):
    with pytest.raises(ValueError, match=re.escape(next(iter(wrong)))):
        MLPClassifier(**wrong).fit(*digits)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        LogisticRegression().fit(np.zeros((3, 2)), [1, 1, 1])
