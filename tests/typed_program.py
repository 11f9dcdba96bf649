"""A user's program in which every public name is used as its types allow; read by ``mypy --strict``, and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastsoftmax as fs

Array = NDArray[Any]


def functions(logits: Array, targets: Array) -> float:
    probs: Array = fs.softmax(logits)
    probs = fs.softmax([[1, 2], [3, 4]], axis=(0, 1))
    probs = fs.softmax(logits, axis=None, out=np.empty_like(logits))
    log_probs: Array = fs.log_softmax(logits, 0)
    lse: Array = fs.logsumexp(logits, keepdims=True)
    grad: Array = fs.softmax_backward(logits, fs.softmax(logits))
    grad = fs.log_softmax_backward(logits, fs.log_softmax(logits), out=grad)
    loss: float = fs.cross_entropy(logits, targets, class_weight=[1.0, 2.0, 1.0], label_smoothing=0.1)
    losses: Array = fs.cross_entropy(logits, [0, 1, 2, -100], ignore_index=-100, reduction="none")
    loss, grad = fs.cross_entropy_with_grad(logits, targets, sample_weight=np.ones(4), reduction="sum")
    grad, hess = fs.cross_entropy_grad_hess(logits, targets, hessian_scale=2.0)
    return loss + float(np.sum(probs) + np.sum(log_probs) + np.sum(lse) + np.sum(losses) + np.sum(hess))


def products(x: Array, weight: Array, bias: Array, targets: Array) -> float:
    logits: Array = fs.affine(x, weight, bias)
    loss, grad_logits = fs.cross_entropy_with_grad(logits, targets)
    grad_x, grad_weight, grad_bias = fs.affine_backward(grad_logits, x, weight)
    if grad_x is not None:
        grad_x = fs.relu_backward(grad_x, fs.relu(x))
    total: float = fs.linear_cross_entropy(x, weight, targets, bias)
    total, (_, grad_weight, grad) = fs.linear_cross_entropy_with_grad(x, weight, targets, bias, need_grad_x=False)
    assert grad is not None
    return total - float(loss) + float(grad_weight.sum()) * float(grad_bias.sum() - grad.sum())


def layers(x: Array, targets: Array) -> float:
    rng = np.random.default_rng(0)
    stack: list[fs.Affine | fs.ReLU] = [fs.Affine.he(2, 5, rng=rng, dtype=np.float64), fs.ReLU()]
    head, criterion = fs.Affine(rng.normal(size=(5, 3)), np.zeros(3)), fs.SoftmaxCrossEntropy(label_smoothing=0.1)
    for layer in stack:
        x = layer.forward(x)
    loss = criterion.forward(head.forward(x), targets)
    grad: Array | None = head.backward(criterion.backward())
    for layer in reversed(stack):
        assert grad is not None
        grad = layer.backward(grad)
    return float(loss)


def models(folder: Path) -> float:
    digits = fs.load_digits()
    x_train, y_train, x_test, y_test = digits
    optimizer = fs.SGD(0.1, momentum=0.9, nesterov=True)
    regression = fs.SoftmaxRegression(optimizer=optimizer, l2=1e-4, scale=1 / 16).fit(x_train, y_train, epochs=1)
    model: fs.MLP = fs.MLP(hidden=(16,), optimizer=fs.Adam(0.002), scale=1 / 16, dtype="float64", seed=None)
    model.fit(x_train, y_train, epochs=1, validation=(x_test, y_test), checkpoint=folder / "run.npz", patience=2)
    model.partial_fit(x_train, y_train, batch_size=64).save(str(folder / "model.npz"))
    loaded: fs.MLP = fs.MLP.load(folder / "model.npz")
    labels: NDArray[np.intp] = loaded.predict(digits.x_test)
    probs: Array = loaded.predict_proba(digits.x_test)
    history: list[float] = model.history.loss
    accuracy: float = loaded.score(x_test, y_test)
    return accuracy + regression.score(x_test, y_test) + float(labels[0] * probs[0, 0]) + history[0]


def threads(logits: Array) -> bool:
    before: int = fs.get_num_threads()
    fs.set_num_threads(2)
    with fs.num_threads(1):
        one = fs.softmax(logits)
    fs.set_num_threads(before)
    return bool(np.array_equal(one, fs.softmax(logits)))


def tools(logits: Array, targets: Array) -> bool:
    check = fs.gradient_check(lambda z: fs.cross_entropy_with_grad(z, targets), logits, n_entries=4)
    error: float = check.error
    fs.warmup(dtypes=())
    fs.show_config()
    return bool(check) and error < 1.0


def files(folder: Path) -> tuple[int, ...]:
    try:
        images: Array = fs.read_idx(folder / "train-images-idx3-ubyte.gz")
        return fs.load_mnist(folder).x_train.shape + images.shape
    except FileNotFoundError:
        return ()


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((4, 3)), np.array([0, 1, 2, 1], np.uint8)
    x, weight, bias = rng.standard_normal((4, 2)), rng.standard_normal((2, 3)), np.zeros(3)
    figures = [functions(logits, targets), products(x, weight, bias, targets), layers(x, targets), models(folder)]
    assert np.isfinite(figures).all()
    assert threads(logits)
    assert tools(logits, targets)
    assert files(folder) == ()


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]))
