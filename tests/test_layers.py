"""Layers: put together they differentiate, they honour grad_loss, and what they return stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

from fastsoftmax import Affine, ReLU, SoftmaxCrossEntropy, gradient_check


def network(rng, dtype="float64", n_in=5, n_hidden=7, n_classes=4):
    return [
        Affine.he(n_in, n_hidden, rng=rng, dtype=dtype),
        ReLU(),
        Affine.he(n_hidden, n_classes, rng=rng, dtype=dtype),
    ]


def test_a_network_of_layers_differentiates(rng):
    layers, head = network(rng), SoftmaxCrossEntropy(label_smoothing=0.1, class_weight=[1.0, 2.0, 0.5, 1.0])
    x, targets = rng.normal(size=(6, 5)), np.array([0, 1, 2, 3, 3, 0])
    params = {"x": x, "w1": layers[0].weight, "b1": layers[0].bias, "w2": layers[2].weight, "b2": layers[2].bias}

    def f(_):
        h = x
        for layer in layers:
            h = layer.forward(h)
        loss, grad = head.forward(h, targets), head.backward()
        for layer in reversed(layers):
            grad = layer.backward(grad)
        first, last = layers[0], layers[2]
        return loss, {
            "x": grad,
            "w1": first.grad_weight,
            "b1": first.grad_bias,
            "w2": last.grad_weight,
            "b2": last.grad_bias,
        }

    result = gradient_check(f, params, tolerance=1e-7)
    assert result, str(result)
    assert result.n_checked == 6 * 5 + 5 * 7 + 7 + 7 * 4 + 4


@pytest.mark.parametrize("grad_loss", [1, 1.0, 3.0, np.float64(-0.5), np.array(2.0)])
def test_grad_loss_scales_the_gradient(rng, dtype, grad_loss):
    logits, targets = rng.normal(size=(3, 4)).astype(dtype), np.array([0, 3, 1])
    layer = SoftmaxCrossEntropy()
    layer.forward(logits, targets)
    grad = layer.backward(grad_loss)
    assert grad.dtype == dtype
    assert np.abs(grad).max() > 0.05
    np.testing.assert_allclose(grad, layer.backward() * np.asarray(grad_loss, dtype), rtol=1e-6)


def test_grad_loss_per_row(rng):
    logits, targets, grad_losses = rng.normal(size=(3, 4)), np.array([0, 3, 1]), np.array([2.0, 0.0, -1.0])
    layer = SoftmaxCrossEntropy(reduction="none")

    def f(z):
        losses = layer.forward(z, targets)
        assert losses.shape == (3,)
        return float(losses @ grad_losses), layer.backward(grad_losses)

    assert gradient_check(f, logits, tolerance=1e-7)
    assert not layer.backward(grad_losses)[1].any()


def test_sample_weight(rng):
    logits, targets, weight = rng.normal(size=(3, 4)), np.array([0, 3, 1]), np.array([1.0, 0.0, 3.0])
    layer = SoftmaxCrossEntropy()

    def f(z):
        return layer.forward(z, targets, sample_weight=weight), layer.backward()

    assert gradient_check(f, logits, tolerance=1e-7)
    kept = [0, 2]
    assert layer.forward(logits, targets, sample_weight=weight) == pytest.approx(
        SoftmaxCrossEntropy().forward(logits[kept], targets[kept], sample_weight=weight[kept]), rel=1e-14
    )


def test_what_was_returned_does_not_change(rng):
    """No view of a buffer that a later call overwrites, whatever the caller does to an earlier result."""
    layers, head = network(rng), SoftmaxCrossEntropy()
    x, targets = rng.normal(size=(6, 5)), np.array([0, 1, 2, 3, 3, 0])

    def passes(x, spoil=False):
        results = []
        h = x
        for layer in layers:
            h = layer.forward(h)
            results.append(h)
        head.forward(h, targets)
        grad = head.backward()
        results.append(grad)
        for layer in reversed(layers):
            grad = layer.backward(grad)
            results.append(grad)
        results += [layers[0].grad_weight, layers[0].grad_bias, layers[2].grad_weight]
        copies = [r.copy() for r in results]
        if spoil:
            for r in results:
                r[...] = np.nan
        return results, copies

    results, copies = passes(x)
    passes(2 * x, spoil=True)
    for result, copy in zip(results, copies):
        np.testing.assert_array_equal(result, copy)
    again, _ = passes(x)
    for result, copy in zip(again, copies):
        np.testing.assert_array_equal(result, copy)
    first = head.backward()
    first[...] = 0  # a caller may work in place on what it got
    assert head.backward().any()


def test_affine_holds_its_parameters_by_reference(rng):
    layer = Affine(rng.normal(size=(3, 2)), np.zeros(2))
    x = rng.normal(size=(4, 3))
    before = layer.forward(x)
    layer.weight *= 2
    np.testing.assert_allclose(layer.forward(x), 2 * before, rtol=1e-14)


def test_affine_without_bias(rng):
    layer = Affine(rng.normal(size=(3, 2)))
    x = rng.normal(size=(4, 3))
    np.testing.assert_allclose(layer.forward(x), x @ layer.weight, rtol=1e-13)
    assert layer.backward(np.ones((4, 2)), need_grad_x=False) is None
    assert layer.grad_bias is None
    np.testing.assert_allclose(layer.grad_weight, x.T @ np.ones((4, 2)), rtol=1e-13)


def test_out_is_written_and_returned(rng):
    x = rng.normal(size=(4, 3))
    affine, relu = Affine.he(3, 2, rng=rng, dtype="float64"), ReLU()
    out = np.empty((4, 2))
    assert affine.forward(x, out=out) is out
    before = out.copy()
    assert relu.forward(out, out=out) is out
    np.testing.assert_array_equal(out, np.maximum(before, 0))
    grad = np.ones((4, 2))
    assert relu.backward(grad, out=grad) is grad
    np.testing.assert_array_equal(grad, before > 0)
    assert 0 < grad.sum() < grad.size


def test_relu_gradient_at_zero_is_zero():
    relu = ReLU()
    relu.forward(np.array([[-1.0, -0.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(relu.backward(np.full((1, 4), 5.0)), [[0, 0, 0, 5]])


def test_he_keeps_the_size_of_activations(rng):
    h = rng.normal(size=(200, 300))
    size = np.mean(h**2)
    for _ in range(10):
        h = ReLU().forward(Affine.he(300, 300, rng=rng, dtype="float64").forward(h))
    assert 0.5 < 2 * np.mean(h**2) / (2 * size) < 2
    layer = Affine.he(300, 20, rng=rng, dtype="float32")
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    assert layer.weight.shape == (300, 20)
    assert layer.bias.shape == (20,)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    "layer", [Affine(np.ones((2, 2))), ReLU(), SoftmaxCrossEntropy()], ids=lambda a: type(a).__name__
)
def test_backward_before_forward(layer):
    with pytest.raises(ValueError, match=f"{type(layer).__name__}.backward needs a forward pass first"):
        layer.backward(np.ones((2, 2)))
