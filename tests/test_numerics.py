"""How exact: the worst element over inputs on which the usual formulas lose everything, beside the peers' errors.

The limits are those of tolerance.py, in ulps of each single element: nothing is averaged, and nothing is excused
because it is small. Every comparison lands in the table that conftest.py prints.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import inputs
import numpy as np
import pytest
import reference
from cases import CASES
from tolerance import EXACT, WEIGHTED, assert_ulps, ulps, worst

import fastsoftmax as fs
from fastsoftmax import _rows

pytestmark = pytest.mark.skipif(not reference.EXTENDED, reason="long double has no more digits than float64 here")


def maker_id(value):
    return value.replace(" ", "_") if isinstance(value, str) else "" if callable(value) else None


on_every_input = pytest.mark.parametrize(("name", "maker", "n_rows", "n_classes"), inputs.EXACTNESS, ids=maker_id)


def usual_softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def usual_lse(z):
    m = z.max(axis=-1, keepdims=True)
    return (m + np.log(np.exp(z - m).sum(axis=-1, keepdims=True)))[..., 0]


def usual_gradient(z, targets):
    grad = usual_softmax(z)
    grad[np.arange(len(z)), targets] -= 1
    return grad


def numpy_peer():
    return {
        "softmax": lambda z, t: usual_softmax(z),
        "log_softmax": lambda z, t: z - usual_lse(z)[..., None],
        "logsumexp": lambda z, t: usual_lse(z),
        "loss": lambda z, t: usual_lse(z) - z[np.arange(len(z)), t],
        "gradient": usual_gradient,
    }


def scipy_peer():
    special = importlib.import_module("scipy.special")
    return {
        "softmax": lambda z, t: special.softmax(z, axis=-1),
        "log_softmax": lambda z, t: special.log_softmax(z, axis=-1),
        "logsumexp": lambda z, t: special.logsumexp(z, axis=-1),
    }


def torch_peer():
    torch = importlib.import_module("torch")
    functional = torch.nn.functional

    def gradient(z, t):
        z = torch.tensor(z, requires_grad=True)
        functional.cross_entropy(z, torch.tensor(t), reduction="sum").backward()
        return z.grad.numpy()

    return {
        "softmax": lambda z, t: functional.softmax(torch.tensor(z), dim=-1).numpy(),
        "log_softmax": lambda z, t: functional.log_softmax(torch.tensor(z), dim=-1).numpy(),
        "logsumexp": lambda z, t: torch.logsumexp(torch.tensor(z), dim=-1).numpy(),
        "loss": lambda z, t: functional.cross_entropy(torch.tensor(z), torch.tensor(t), reduction="none").numpy(),
        "gradient": gradient,
    }


@pytest.fixture(scope="module")
def peers():
    """The libraries that are installed, each a table of the operations it has."""
    found = {}
    for name, peer in (("numpy", numpy_peer), ("scipy", scipy_peer), ("torch", torch_peer)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[name] = peer()
            except ImportError:
                continue
    return found


OURS = {
    "softmax": lambda z, t: fs.softmax(z),
    "log_softmax": lambda z, t: fs.log_softmax(z),
    "logsumexp": lambda z, t: fs.logsumexp(z),
    "loss": lambda z, t: fs.cross_entropy(z, t, reduction="none"),
    "gradient": lambda z, t: fs.cross_entropy_with_grad(z, t, reduction="none")[1],
    "mean gradient": lambda z, t: fs.cross_entropy_with_grad(z, t)[1],
}
TRUTH = {
    "softmax": lambda z, t: reference.softmax(z),
    "log_softmax": lambda z, t: reference.log_softmax(z),
    "logsumexp": lambda z, t: reference.logsumexp(z),
    "loss": lambda z, t: reference.cross_entropy(z, t, reduction="none"),
    "gradient": lambda z, t: reference.cross_entropy_with_grad(z, t, reduction="none")[1],
    "mean gradient": lambda z, t: reference.cross_entropy_with_grad(z, t)[1],
}


@on_every_input
@pytest.mark.parametrize("operation", OURS)
def test_worst_element(name, maker, n_rows, n_classes, operation, dtype, rng, peers, worst_ulps):
    logits, targets = maker(rng, dtype, n_rows, n_classes)
    truth = TRUTH[operation](logits, targets)
    result = OURS[operation](logits, targets)
    row = worst_ulps.setdefault((f"{name} {n_classes}", dtype.name, operation), {})
    row["fastsoftmax"] = max(worst(result, truth))
    with np.errstate(all="ignore"):
        for library, table in peers.items():
            if operation in table:
                row[library] = max(worst(np.asarray(table[operation](logits, targets)), truth))
    assert_ulps(result, truth, EXACT, label=f"{operation} of {name}")


@pytest.mark.parametrize("n_classes", [10, 70])
def test_maxima_of_every_size(n_classes, dtype, rng):
    """Of small ones the remainder is subtracted, of large ones the maximum; beyond 1e6 (float32) only the second is exact."""
    for size in (300.0, 511.0, 513.0, 2047.0, 2049.0, 1e5, 1e6, 1e7, 1e9 if dtype == np.float32 else 1e15):
        for sign in (1, -1):
            logits = (sign * size + 10 * rng.standard_normal((40, n_classes))).astype(dtype)
            targets = rng.integers(0, n_classes, 40)
            for operation in ("softmax", "log_softmax", "loss", "gradient"):
                label = f"{operation}, maximum near {sign * size}"
                assert_ulps(OURS[operation](logits, targets), TRUTH[operation](logits, targets), EXACT, label=label)


@pytest.mark.parametrize("seed", [2, 14, 32, 20])
def test_sums_of_few_small_exponentials(seed, dtype):
    """Among 240,000 rows the ones that other sums missed: of floats if their small parts are added up in floats (2.0 to 2.1
    ulps), of doubles, seed 20, if lanes start at 1 (4.05).
    """
    logits = (30 * np.random.default_rng(seed).standard_normal((4000, 10))).astype(dtype)
    assert_ulps(fs.log_softmax(logits), reference.log_softmax(logits), EXACT)


@pytest.mark.parametrize("n_classes", [80, 104])
def test_the_others_of_wide_confident_rows(n_classes):
    """100,000 rows whose others weigh 2**-27 to 2**-2, often one of them most. Their small parts, added up in floats one after
    the other, and exponentials multiplied by a number little above 1, made losses of these up to 2.6 and 2.1 ulps off.
    """
    rng = np.random.default_rng(2 if n_classes == 80 else 7)
    rows = np.arange(4096)
    for k in range(26, 1, -1):
        logits = rng.standard_normal((rows.size, n_classes)) * rng.choice([0.01, 0.5, 1, 3], (rows.size, 1))
        targets = rng.integers(0, n_classes, rows.size)
        logits[rows, targets] = -np.inf
        logits[rows, targets] = np.log(np.exp(logits).sum(axis=1)) + k * np.log(2) - rng.uniform(0, 1, rows.size)
        logits = logits.astype(np.float32)
        true = reference.cross_entropy(logits, targets, reduction="none")
        assert_ulps(fs.cross_entropy(logits, targets, reduction="none"), true, EXACT)


@pytest.mark.parametrize("n_classes", [3, 10])
def test_the_gradient_at_the_target_is_rounded_once(n_classes, rng):
    """Narrow rows of doubles, whose sums have more digits than one: 2.3 to 2.5 ulps without either of the two small parts.

    Without FMA the last product is rounded too.
    """
    from fastsoftmax.kernels._target import FMA

    rows = np.arange(30_000)
    logits = rng.standard_normal((rows.size, n_classes))
    targets = rng.integers(0, n_classes, rows.size)
    logits[rows, targets] += rng.uniform(0, 40, rows.size)
    others = np.exp(logits.astype(np.longdouble) - logits[rows, targets][:, None])
    others[rows, targets] = 0
    d = others.sum(axis=1)
    _, grad = fs.cross_entropy_with_grad(logits, targets, reduction="sum")
    assert ulps(grad[rows, targets], -d / (1 + d)).max() < (1.5 if FMA else 2)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("n_classes", [3, 10, 63, 100, 110, 32_000])
def test_sums_of_the_others_however_small(n_classes, streaming, dtype, rng, monkeypatch):
    """The others weigh 2**-50 to 2**-1 of the largest, shared out evenly or one taking nearly all."""
    if streaming:
        monkeypatch.setattr(_rows, "_STREAM", 0)
        monkeypatch.setattr(_rows, "_STREAM_ROW", 0)
    n_rows = (2000 if dtype == np.float32 else 200) // (1 if n_classes <= 100 else 100)
    weight = 2.0 ** rng.uniform(-50, -1, (n_rows, 1))
    share = np.maximum(rng.gamma(rng.choice([0.05, 0.3, 1, 10], (n_rows, 1)), size=(n_rows, n_classes - 1)), 1e-30)
    others = np.log(weight * share / share.sum(axis=1, keepdims=True))
    logits = rng.permuted(np.concatenate([np.zeros((n_rows, 1)), others], axis=1), axis=1)
    logits = (logits + rng.uniform(-3, 3, (n_rows, 1))).astype(dtype)
    assert_ulps(fs.log_softmax(logits), reference.log_softmax(logits), EXACT)
    targets = logits.argmax(axis=1)
    losses, grad = fs.cross_entropy_with_grad(logits, targets, reduction="none")
    true_losses, true_grad = reference.cross_entropy_with_grad(logits, targets, reduction="none")
    assert_ulps(losses, true_losses, EXACT)
    assert_ulps(grad, true_grad, EXACT)


def test_rows_of_every_length(dtype, rng):
    """Squares of vectors, pieces of them, and what is left: nothing is left out, whatever the number of classes and of rows."""
    for n_classes in range(1, 131):
        for n_rows in (1, 3, 37):
            logits = (3 * rng.standard_normal((n_rows, n_classes))).astype(dtype)
            grad = rng.uniform(1, 2, logits.shape).astype(dtype)
            targets = rng.integers(0, n_classes, n_rows)
            probs = fs.softmax(logits, out=np.full_like(logits, np.nan))
            assert_ulps(probs, reference.softmax(logits), EXACT)
            assert_ulps(fs.log_softmax(logits, out=np.full_like(logits, np.nan)), reference.log_softmax(logits), EXACT)
            _, true = reference.cross_entropy_with_grad(logits, targets)
            out = np.full_like(logits, np.nan)
            fs.cross_entropy_with_grad(logits, targets, out=out)
            assert_ulps(out, true, EXACT)
            backward = fs.softmax_backward(grad, probs, out=np.full_like(logits, np.nan))
            scale = np.abs(probs * grad).max(axis=1, keepdims=True)
            assert (np.abs(backward - reference.softmax_backward(grad, probs)) <= 4 * np.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("n_classes", [10, 63, 100, 110, 1000])
@pytest.mark.parametrize("weight", [2.0**-60, 2.0**-28, 2.0**-15, 2.0**-7])
def test_many_others_each_too_small_to_be_added_to_one(weight, n_classes, dtype):
    """Added one by one to the one that weighs most, each would be lost, half a unit of the sum."""
    bits = np.finfo(dtype).nmant + 2
    logits = np.full((1, n_classes), np.log(weight) - bits * np.log(2) - 0.01)
    logits[0, 0], logits[0, -1] = np.log(weight), 0.0
    logits = logits.astype(dtype)
    assert_ulps(fs.log_softmax(logits), reference.log_softmax(logits), EXACT)
    assert_ulps(fs.cross_entropy(logits, [n_classes - 1], reduction="none"), -reference.log_softmax(logits)[:, -1], EXACT)


@pytest.mark.parametrize("n_classes", [10, 63, 100, 1000])
def test_inner_products_whose_terms_cancel(n_classes, dtype, rng):
    """Gradients of opposite sign, as large as a sum in the type itself, or of doubles alone, would lose all small ones to."""
    large = 1e6 if dtype == np.float32 else 1e14
    n_pairs = n_classes // 3
    probs = rng.uniform(0.1, 1, (20, n_classes)).astype(dtype)
    grad = rng.standard_normal((20, n_classes)).astype(dtype)
    probs[:, n_pairs : 2 * n_pairs] = probs[:, :n_pairs]
    grad[:, :n_pairs] = large * rng.uniform(1, 2, (20, n_pairs))
    grad[:, n_pairs : 2 * n_pairs] = -grad[:, :n_pairs]
    order = rng.permutation(n_classes)
    probs, grad = probs[:, order], grad[:, order]
    result = fs.softmax_backward(grad, probs)
    for g, p, row in zip(grad, probs, result):
        g, p = [Fraction(float(v)) for v in g], [Fraction(float(v)) for v in p]
        inner = sum(a * b for a, b in zip(g, p))
        for a, b, value in zip(g, p, row):
            true = b * (a - inner)  # where a and the inner product cancel, their rounding to the type shows
            error = abs(Fraction(float(value)) - true)
            assert error <= 2 * Fraction(float(np.finfo(dtype).eps)) * b * max(abs(a), abs(inner), abs(a - inner))


@on_every_input
def test_worst_element_with_smoothing_and_weights(name, maker, n_rows, n_classes, dtype, rng, worst_ulps):
    logits, targets = maker(rng, dtype, n_rows, n_classes)
    for options in (
        {"label_smoothing": 0.1},
        {"class_weight": rng.uniform(0.5, 2, n_classes).astype(dtype)},
        {"label_smoothing": 0.1, "class_weight": rng.uniform(0.5, 2, n_classes).astype(dtype)},
    )[0 if n_classes < 10_000 else 2 :]:  # both at once is enough where a row takes a second of long double
        options = {**options, "reduction": "none"}
        losses, grad = fs.cross_entropy_with_grad(logits, targets, **options)
        true_losses, true_grad = reference.cross_entropy_with_grad(logits, targets, **options)
        scale = reference.gradient_scale(logits, targets, **options)
        key = f"{name} {n_classes}", dtype.name, "weighted"
        row = worst_ulps.setdefault(key, {"fastsoftmax": 0.0})
        row["fastsoftmax"] = max(row["fastsoftmax"], *worst(losses, true_losses), *worst(grad, true_grad, scale))
        assert_ulps(losses, true_losses, WEIGHTED, label=f"loss of {name}, {sorted(options)}")
        assert_ulps(grad, true_grad, WEIGHTED, scale=scale, label=f"gradient of {name}, {sorted(options)}")


def test_the_table_of_exponentials(dtype):
    """Eight numbers as far apart as 2**(1/8) to an eighth of an ulp at most; what the sums and `exp_below` ask of the first."""
    mpmath = pytest.importorskip("mpmath")
    from fastsoftmax.kernels import _math

    table, bits = (_math._EIGHTHS32, 24) if dtype == np.float32 else (_math._EIGHTHS64, 53)
    with mpmath.workprec(120):
        errors = [t / (table[0] * mpmath.mpf(2) ** (mpmath.mpf(i) / 8)) - 1 for i, t in enumerate(table)]
        assert max(map(abs, errors)) < mpmath.mpf(2) ** -bits / 8
    assert all(dtype.type(t) == t for t in table)
    assert 1 <= table[0] < 2
    assert dtype.type(2 + table[0]) == 2 + table[0]
    assert dtype.type(table[0]) * dtype.type(1 / table[0]) == 1


def test_exponentials_in_pairs(rng):
    """`exp_pair` as its docstring says, over the range where its low part is a normal number."""
    mpmath = pytest.importorskip("mpmath")
    from numba import njit

    from fastsoftmax.kernels import _math, _simd

    exp_pair, load, pointer, store = _math.exp_pair, _simd.load, _simd.pointer, _simd.store

    @njit
    def pairs(s, s_lo, hi, lo):
        for j in range(0, s.size, 8):
            a, b = exp_pair(load(pointer(s, 0), j), load(pointer(s_lo, 0), j))
            store(pointer(hi, 0), j, a)
            store(pointer(lo, 0), j, b)

    s = -np.concatenate([rng.uniform(0, 1, 800), rng.uniform(0, 660, 800), 10 ** rng.uniform(-18, 0, 792), np.zeros(8)])
    s_lo, hi, lo = s * rng.uniform(-1, 1, s.size) * 2.0**-54, np.empty_like(s), np.empty_like(s)
    pairs(s, s_lo, hi, lo)
    with mpmath.workprec(200):
        for x, y, a, b in zip(*(map(mpmath.mpf, v.tolist()) for v in (s, s_lo, hi, lo))):
            assert abs((a + b) / _math.SHIFT64 / mpmath.exp(x + y) - 1) <= 2.0**-74, float(x)
    assert (np.abs(lo) <= np.spacing(hi)).all()


@pytest.mark.parametrize("n_classes", [1, 2, 9, 33, 63, 65, 200])
@pytest.mark.parametrize("smoothing", [0.0, 1e-9, 0.1, 1.0])
def test_probabilities_as_exact_as_labels(n_classes, smoothing, dtype, rng):
    """One-hot rows, where the weights' sum must keep what the target leaves, and rows that spread."""
    logits = rng.standard_normal((60, n_classes)).astype(dtype)
    targets = np.eye(n_classes, dtype=dtype)[rng.integers(0, n_classes, 60)]
    targets[30:] = rng.dirichlet(np.ones(n_classes), 30)
    options = {"label_smoothing": smoothing, "reduction": "none"}
    losses, grad = fs.cross_entropy_with_grad(logits, targets, **options)
    true_losses, true_grad = reference.cross_entropy_with_grad(logits, targets, **options)
    scale = reference.gradient_scale(logits, targets, **options)
    assert_ulps(losses, true_losses, WEIGHTED, label="loss")
    assert_ulps(grad, true_grad, WEIGHTED, scale=scale, label="gradient")


@pytest.mark.parametrize("n_classes", [10, 70])
def test_the_gradient_where_the_model_agrees(n_classes, dtype, rng):
    """Targets that are the softmax itself, rounded: what is left of p - t is p's rounding error, and that is the gradient."""
    mpmath = pytest.importorskip("mpmath")
    logits = rng.standard_normal((4, n_classes)).astype(dtype)
    targets = fs.softmax(logits)
    _, grad = fs.cross_entropy_with_grad(logits, targets, reduction="none")
    with mpmath.workprec(200):
        for z, t, g in zip(logits.astype(float), targets.astype(float), grad):
            e = [mpmath.exp(x) for x in z]
            truth = [mpmath.fsum(t) * x / mpmath.fsum(e) - mpmath.mpf(y) for x, y in zip(e, t)]
            error = max(abs(float(a) - x) / y for a, x, y in zip(g, truth, t))  # of t; of p - t itself it would be luck
            assert error <= (2.0**-69 if dtype == np.float64 else 2.0**-46), float(error)


@pytest.mark.parametrize("n_classes", [10, 70])
def test_the_gradient_where_the_model_agrees_with_smoothed_labels(n_classes, dtype, rng):
    """The same of labels: all classes but the label's have very nearly what smoothing gives them."""
    mpmath = pytest.importorskip("mpmath")
    smoothing, labels = 0.125, rng.integers(0, n_classes, 4)
    logits = 1e-6 * rng.standard_normal((4, n_classes))
    logits[np.arange(4), labels] += np.log(n_classes / smoothing - n_classes + 1)
    logits = logits.astype(dtype)
    _, grad = fs.cross_entropy_with_grad(logits, labels, label_smoothing=smoothing, reduction="none")
    with mpmath.workprec(200):
        each = mpmath.mpf(smoothing) / n_classes
        for z, label, g in zip(logits.astype(float), labels, grad):
            e = [mpmath.exp(x) for x in z]
            others = [float(a) - (x / mpmath.fsum(e) - each) for j, (a, x) in enumerate(zip(g, e)) if j != label]
            error = float(max(map(abs, others)) / each)
            assert error <= (2.0**-69 if dtype == np.float64 else 2.0**-42), error


@pytest.mark.parametrize("n_classes", [10, 70])
def test_an_impossible_class_smoothed(n_classes, dtype):
    """Of a class at -inf smoothing wants a part: the loss is infinite, the gradient is that part. Where it wants none, not."""
    logits, labels = np.zeros((11, n_classes), dtype), np.arange(11) % n_classes
    logits[:, 5] = -np.inf
    labels[labels == 5] = 6
    losses, grad = fs.cross_entropy_with_grad(logits, labels, label_smoothing=0.5, reduction="none")
    assert (losses == np.inf).all()
    np.testing.assert_allclose(grad[:, 5], -0.5 / n_classes, rtol=1e-6)
    assert np.isfinite(grad).all()
    losses, grad = fs.cross_entropy_with_grad(logits, labels, label_smoothing=5e-324, reduction="none")
    np.testing.assert_allclose(losses, np.log(n_classes - 1), rtol=1e-6)
    assert (grad[:, 5] == 0).all()


@pytest.mark.parametrize("n_classes", [10, 70])
def test_masked_by_the_least_number_and_smoothed(n_classes, dtype):
    """The loss is large, and finite: it is the sum of weighted logits that fits, not that of logits."""
    logits, least = np.zeros((9, n_classes), dtype), np.finfo(dtype).min
    logits[:, 3:7] = least
    losses, grad = fs.cross_entropy_with_grad(logits, np.zeros(9, int), label_smoothing=0.1, reduction="none")
    expected = 4 * (0.1 / n_classes * -float(least))
    np.testing.assert_allclose(losses, np.full(9, expected), rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(grad[:, 3:7], -0.1 / n_classes, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n_classes", [10, 70])
def test_smoothed_rows_that_do_not_count(n_classes, dtype):
    """Ignored ones may hold anything; of a label without weight, masked, nothing is left but the other classes."""
    logits = np.zeros((12, n_classes), dtype)
    logits[1], logits[5, 3] = np.nan, np.inf
    logits[2, 4] = -np.inf
    labels = np.full(12, 4)
    labels[[1, 5]] = -100
    class_weight = np.ones(n_classes)
    class_weight[4] = 0
    options = {"label_smoothing": 0.1, "class_weight": class_weight, "reduction": "none"}
    losses, grad = fs.cross_entropy_with_grad(logits, labels, **options)
    assert (losses[[1, 5]] == 0).all()
    assert (grad[[1, 5]] == 0).all()
    assert losses[2] == pytest.approx(0.1 * (1 - 1 / n_classes) * np.log(n_classes - 1), rel=1e-6)
    assert grad[2, 4] == 0
    assert np.isfinite(grad).all()


def test_one_class_smoothed_and_weighted(dtype):
    """The only class's gradient is 0 exactly, whatever its weight: the weights' sum is the target's weight to the last bit."""
    for smoothing in (0.0, 1e-9, 0.1, 0.7):
        for weight in (0.3, 1.7, 1 / 3):
            options = {"label_smoothing": smoothing, "class_weight": [weight]}
            for targets in ([0, 0], np.ones((2, 1))):
                _, grad = fs.cross_entropy_with_grad(np.array([[3.0], [-2.0]], dtype), targets, **options)
                assert (grad == 0).all(), (options, targets)


@pytest.mark.parametrize(("name", "maker", "n_rows", "n_classes"), [i for i in inputs.EXACTNESS if i[3] <= 100], ids=maker_id)
def test_the_reference_is_the_truth(name, maker, n_rows, n_classes, dtype, rng):
    """The long double reference beside mpmath by definition, on a few rows: within a fifth of a unit of float64."""
    pytest.importorskip("mpmath")
    logits, targets = maker(rng, dtype, n_rows, n_classes)
    truths = {operation: TRUTH[operation](logits, targets) for operation in OURS if operation != "mean gradient"}
    for i in {0, n_rows // 2, n_rows - 1}:
        for operation, expected in reference.mp_row(logits[i], targets[i]).items():
            unit = np.spacing(np.abs(expected).astype(np.float64))
            distance = np.abs(np.atleast_1d(truths[operation][i]) - expected) / unit
            assert distance.max() <= 0.2, f"{operation}, row {i}"


@pytest.mark.parametrize("maker", [inputs.spread_30, inputs.confident, inputs.offset], ids=lambda m: m.__name__)
def test_these_inputs_defeat_the_usual_formulas(maker, dtype, rng):
    """An input on which every formula is right proves nothing: here the textbook's ones are far beyond the limits."""
    logits, targets = maker(rng, dtype, 500, 10)
    with np.errstate(all="ignore"):
        usual = numpy_peer()
        errors = {o: max(worst(usual[o](logits, targets), TRUTH[o](logits, targets))) for o in usual}
        unshifted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if maker is inputs.spread_30:
        assert errors["softmax"] > 10
    else:
        assert errors["loss"] > 100
    if maker is inputs.confident:
        assert errors["gradient"] > 1e4
        assert (usual["gradient"](logits, targets)[250:, :].min(axis=1) == 0).all()
    if maker is inputs.offset:
        assert not np.isfinite(unshifted).any()


def test_the_whole_range_of_exp(dtype):
    """softmax of (0, x) is sigmoid: from 1/2 down through the subnormal numbers to 0, and not a step sooner."""
    lowest = float(np.log(np.longdouble(np.finfo(dtype).smallest_subnormal)))
    x = np.concatenate([np.linspace(0, lowest - 2, 100_001), -np.geomspace(1e-10, 1e4, 1000), [-np.inf]]).astype(dtype)
    logits = np.stack([np.zeros_like(x), x], axis=1)
    probs = fs.softmax(logits)
    assert_ulps(probs, reference.softmax(logits), EXACT)
    assert probs[np.argmin(np.abs(x - (lowest + 0.2))), 1] > 0
    assert probs[-1, 1] == 0
    assert probs[0, 1] == 0.5


def test_tiny_losses_keep_their_digits(dtype):
    """A margin of 46 is a loss of 1e-20; all the way down to where the loss itself is subnormal."""
    lowest = int(-np.log(np.finfo(dtype).tiny))
    for margin in (20, 46, 80, lowest - 1):
        logits = np.array([[margin, 0.0, -1.0]], dtype=dtype)
        for operation in ("loss", "log_softmax", "gradient"):
            result = OURS[operation](logits, np.array([0]))
            truth = TRUTH[operation](logits, np.array([0]))
            assert (truth != 0).all()
            assert_ulps(result, truth, EXACT, label=f"{operation}, margin {margin}")


def test_extreme_logits(dtype):
    """The largest finite numbers of either sign: differences overflow to minus infinity, nothing is NaN."""
    big = np.finfo(dtype).max
    logits = np.array([[big, -big, 0], [-big, -big, -big], [big, big, -big], [0, -big, -big]], dtype=dtype)
    probs = fs.softmax(logits)
    np.testing.assert_array_equal(probs[[0, 2, 3]], [[1, 0, 0], [0.5, 0.5, 0], [1, 0, 0]])
    assert_ulps(probs[1], np.full(3, 1 / np.longdouble(3)), EXACT)
    losses, grad = fs.cross_entropy_with_grad(logits, [0, 1, 0, 0], reduction="none")
    assert_ulps(losses, np.log(np.array([1, 3, 2, 1], dtype=np.longdouble)), EXACT)
    assert np.isfinite(grad).all()


def test_reduced_losses_are_sums_in_float64():
    """100,000 equal float32 losses: added one by one in float32 they are off by 4e-4 of themselves."""
    n_rows = 100_000
    logits, targets = np.zeros((n_rows, 10), dtype=np.float32), np.zeros(n_rows, dtype=int)
    losses = fs.cross_entropy(logits, targets, reduction="none")
    assert np.cumsum(losses)[-1] != pytest.approx(n_rows * np.log(10), rel=1e-4)
    total = fs.cross_entropy(logits, targets, reduction="sum")
    assert total == pytest.approx(n_rows * np.log(10), rel=2.0**-23)
    assert fs.cross_entropy(logits, targets) == pytest.approx(total / n_rows, rel=1e-14)


@pytest.mark.slow
def test_exp_of_every_float32(capsys):
    """All 2**31 float32 numbers from -0 to -inf, times what stands for exp(0): within one ulp, 0 below the range."""
    from fastsoftmax.kernels import _math, kernel

    exp, one = kernel("exp", "float32"), _math.TOP32 / _math.SHIFT32
    step = 1 << 22
    worst_error, worst_at, worst_subnormal = 0.0, 0.0, 0.0
    for first in range(0x8000_0000, 0xFF80_0001, step):
        x = np.arange(first, min(first + step, 0xFF80_0001), dtype=np.uint32).view(np.float32)
        out = np.full_like(x, 7)
        exp(x, out, False)
        if x[0] < -110:
            assert not out.any()
            continue
        truth = one * np.exp(x.astype(np.float64))
        error = np.abs(out - truth) / np.spacing(truth.astype(np.float32)).astype(np.float64)
        subnormal = truth < np.finfo(np.float32).tiny
        worst_subnormal = max(worst_subnormal, float(error.max(initial=0, where=subnormal)))
        error[subnormal] = 0
        at = int(error.argmax())
        if error[at] > worst_error:
            worst_error, worst_at = float(error[at]), float(x[at])
    with capsys.disabled():
        print(f"\nexp, float32: worst {worst_error:.4f} ulps at {worst_at!r}; subnormal results {worst_subnormal:.4f}")
    assert worst_error <= 1.0
    assert worst_subnormal <= 1.0
    edge = np.array([0.0, -0.0, -np.inf, np.nan], dtype=np.float32)
    out = np.empty_like(edge)
    exp(edge, out, False)
    np.testing.assert_array_equal(out, [one, one, 0, np.nan])


# --- the same bits on every processor ---

DIGESTS = """
import hashlib, json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from cases import CASES
from fastsoftmax.kernels import _target

def digest(value, h):
    if isinstance(value, tuple):
        for v in value:
            digest(v, h)
    elif value is not None:
        h.update(np.ascontiguousarray(value).tobytes())

digests = {}
for case in CASES:
    for dtype in ("float32", "float64"):
        h = hashlib.sha256()
        for n_classes in (3, 10, 100):
            arrays, options = case.make(dtype, 300, n_classes)
            digest(case.call(arrays, options), h)
        digests[f"{case} {dtype}"] = h.hexdigest()
print(json.dumps([_target.WIDE, digests]))
"""
# Processor as LLVM names it, and the features this machine must have to run code for it.
PROCESSORS = {
    "haswell": {"avx2", "fma"},
    "skylake-avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "znver4": {"avx512f", "avx512_bf16", "avx512_vbmi2"},
}


def processor_features():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


@pytest.mark.slow
def test_every_processor_gives_the_same_bits(tmp_path):
    able = [name for name, needs in PROCESSORS.items() if needs <= processor_features()]
    if len(able) < 2:
        pytest.skip(f"this machine runs code for {able}: nothing to compare")

    def run(name):
        environment = {
            **os.environ,
            "NUMBA_CPU_NAME": name,
            "NUMBA_CPU_FEATURES": "",  # the named processor's; unset they are this machine's
            "FASTSOFTMAX_CACHE_DIR": str(tmp_path / name),
        }
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS, str(Path(__file__).parent)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        wide, digests = json.loads(done.stdout)
        assert wide == (name != "haswell"), "compiled for another processor"
        return digests

    with ThreadPoolExecutor(2) as pool:  # each compiles every kernel
        digests = dict(zip(able, pool.map(run, able)))
    first = digests[able[0]]
    assert len(first) == 2 * len(CASES)
    for name in able[1:]:
        different = [case for case in first if digests[name][case] != first[case]]
        assert not different, f"{name} and {able[0]} differ in {different}"


def test_ulps_are_counted_right():
    """The measure itself: neighbours are 1 apart, infinities far, NaN equal to NaN, and a shape is a shape."""
    one = np.float32(1)
    truth = np.array([1, 1, np.inf, np.nan, 0], dtype=np.longdouble)
    result = np.array([np.nextafter(one, np.float32(2)), 1, 1, np.nan, np.finfo(np.float32).smallest_subnormal], np.float32)
    np.testing.assert_array_equal(ulps(result, truth), [1, 0, np.inf, 0, 1])
    with pytest.raises(AssertionError, match="shape"):
        ulps(result[:2], truth)
    with pytest.raises(AssertionError, match="worst element"):
        assert_ulps(result, truth, 2)
