"""Laws that hold for any logits, tried on many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerance import EXACT, assert_same_bits, assert_ulps

import fastsoftmax as fs

# Few sizes on purpose: they choose the code path (alone, short rows, full vectors, a tail), the values do the rest.
N_ROWS = st.sampled_from([1, 2, 17])
N_CLASSES = st.sampled_from([1, 2, 3, 10, 16, 33])
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def matrices(draw, low=-200.0, high=200.0, masked=False, n_classes=N_CLASSES):
    """Logits whose entries are drawn one by one in a corner and from a seeded generator elsewhere."""
    dtype, rows, columns = draw(DTYPES), draw(N_ROWS), draw(n_classes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
    logits = np.clip(rng.standard_normal((rows, columns)) * scale, low, high)
    corner = draw(st.lists(st.floats(low, high, width=32), min_size=0, max_size=min(columns, 4)))
    logits[0, : len(corner)] = corner
    if masked:
        hidden = rng.random((rows, columns)) < 0.3
        hidden[np.arange(rows), rng.integers(0, columns, rows)] = False
        logits[hidden] = -np.inf
    return logits.astype(dtype)


def eps(a):
    return np.finfo(a.dtype).eps


def labels_for(logits, seed):
    """Labels among the classes that are not masked."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(np.isfinite(row))) for row in logits])


@given(matrices(masked=True))
def test_probabilities_sum_to_one(logits):
    probs = fs.softmax(logits)
    assert (probs >= 0).all()
    assert (probs <= 1).all()
    np.testing.assert_allclose(probs.sum(axis=1, dtype=np.float64), 1, rtol=0, atol=8 * eps(logits))


@given(matrices(), st.integers(-64, 64))
def test_a_common_shift_changes_roundings_only(logits, shift):
    """Where the shift itself is exact, the truth is the same, and both results are as near to it as they must be."""
    logits = np.round(logits * 16) / 16
    shifted = logits + logits.dtype.type(shift)
    twice = 2 * EXACT[logits.dtype.name]
    assert_ulps(fs.softmax(shifted), fs.softmax(logits), twice)
    assert_ulps(fs.log_softmax(shifted), fs.log_softmax(logits), twice)
    targets = labels_for(logits, shift + 64)
    (losses, grad), (others, other) = (
        fs.cross_entropy_with_grad(z, targets, reduction="none") for z in (shifted, logits)
    )  # fmt: skip
    assert_ulps(losses, others, twice)
    assert_ulps(grad, other, twice)
    close = {"rtol": 4 * eps(logits), "atol": 4 * eps(logits) * 300}
    np.testing.assert_allclose(fs.logsumexp(shifted), fs.logsumexp(logits) + shift, **close)


@given(matrices(masked=True), st.randoms(use_true_random=False))
def test_a_permutation_of_the_classes_permutes_the_result(logits, random):
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    close = {"rtol": 8 * eps(logits), "atol": np.finfo(logits.dtype).smallest_subnormal}
    np.testing.assert_allclose(fs.softmax(logits[:, order]), fs.softmax(logits)[:, order], **close)
    np.testing.assert_allclose(fs.log_softmax(logits[:, order]), fs.log_softmax(logits)[:, order], **close)


@given(matrices(masked=True), st.randoms(use_true_random=False))
def test_a_permutation_of_the_rows_permutes_the_bits(logits, random):
    order = list(range(len(logits)))
    random.shuffle(order)
    targets = labels_for(logits, 3)
    losses, grad = fs.cross_entropy_with_grad(logits, targets, reduction="none")
    permuted = fs.cross_entropy_with_grad(logits[order], targets[order], reduction="none")
    assert_same_bits(permuted, (losses[order], grad[order]))
    assert_same_bits(fs.softmax(logits[order]), fs.softmax(logits)[order])


@given(matrices(masked=True), st.integers(0, 17))
def test_a_batch_is_its_parts(logits, cut):
    whole = fs.softmax(logits)
    assert_same_bits(np.concatenate([fs.softmax(logits[:cut]), fs.softmax(logits[cut:])]), whole)
    targets = labels_for(logits, cut)
    total = fs.cross_entropy(logits, targets, reduction="sum")
    parts = [fs.cross_entropy(logits[part], targets[part], reduction="sum") for part in (slice(cut), slice(cut, None))]
    assert total == pytest.approx(sum(parts), rel=1e-14, abs=0)


@given(matrices(masked=True))
def test_a_masked_class_has_no_probability_and_no_gradient(logits):
    masked = np.isneginf(logits)
    targets = labels_for(logits, 1)
    losses, grad = fs.cross_entropy_with_grad(logits, targets, reduction="none")
    assert (fs.softmax(logits)[masked] == 0).all()
    assert (grad[masked] == 0).all()
    assert np.isfinite(losses).all()
    assert np.isfinite(grad).all()


@given(matrices(n_classes=st.sampled_from([2, 3, 10, 33])))
def test_masking_a_class_is_leaving_it_out(logits):
    without = np.ascontiguousarray(logits[:, 1:])
    masked = logits.copy()
    masked[:, 0] = -np.inf
    close = {"rtol": 8 * eps(logits), "atol": np.finfo(logits.dtype).smallest_subnormal}
    np.testing.assert_allclose(fs.softmax(masked)[:, 1:], fs.softmax(without), **close)
    np.testing.assert_allclose(fs.logsumexp(masked), fs.logsumexp(without), rtol=4 * eps(logits), atol=eps(logits))


@given(matrices())
def test_order_is_kept(logits):
    order = np.argsort(logits, axis=1, kind="stable")
    for result in fs.softmax(logits), fs.log_softmax(logits):
        assert (np.diff(np.take_along_axis(result, order, axis=1), axis=1) >= 0).all()


@given(matrices())
def test_logsumexp_lies_between_the_maximum_and_log_n_above_it(logits):
    lse, top = fs.logsumexp(logits).astype(np.float64), logits.max(axis=1).astype(np.float64)
    assert (lse >= top).all()
    slack = 4 * eps(logits) * (1 + np.abs(top))
    assert (lse <= top + np.log(logits.shape[1]) + slack).all()


@given(matrices())
def test_losses_and_log_probabilities_have_one_sign(logits):
    targets = labels_for(logits, 5)
    assert (fs.log_softmax(logits) <= 0).all()
    losses, grad = fs.cross_entropy_with_grad(logits, targets, reduction="none")
    assert (losses >= 0).all()
    at_target = np.take_along_axis(grad, targets[:, None], axis=1)
    assert (at_target <= 0).all()
    assert np.count_nonzero(grad > 0) + len(logits) >= np.count_nonzero(grad)


@given(matrices(masked=True))
def test_smaller_confidence_is_a_larger_loss(logits):
    """Raising another class never lowers the loss."""
    assume(logits.shape[1] > 1)
    targets = labels_for(logits, 7)
    other = (targets + 1) % logits.shape[1]
    raised = logits.copy()
    at = np.arange(len(logits)), other
    raised[at] = np.where(np.isneginf(raised[at]), 0, raised[at] + 1)
    before = fs.cross_entropy(logits, targets, reduction="none")
    after = fs.cross_entropy(raised, targets, reduction="none")
    assert (after >= before * (1 - 8 * eps(logits))).all()
