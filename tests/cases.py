"""The table of operations that drives the tests. A new operation is one row.

A case makes its own arguments, knows which of them run along the rows, and how its result is compared with
reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import reference
from tolerance import EXACT, WEIGHTED, assert_products, assert_ulps

import fastsoftmax


@dataclass(frozen=True)
class Case:
    function: str  # name of the public function
    variant: str
    arguments: Callable  # (rng, dtype, n_rows, n_classes) -> (positional arrays, options)
    kind: str = "exact"  # how results are compared: exact, weighted or product
    by_row: tuple = (0,)  # arguments, by position or name, with one entry a row; () if rows are not independent
    out: bool = False  # takes out=
    in_place: int | None = None  # the argument that out= may be
    options: tuple = ()  # constant options, (name, value) pairs

    def __str__(self):
        return f"{self.function}-{self.variant}" if self.variant else self.function

    def make(self, dtype, n_rows=7, n_classes=10, seed=0):
        """Arguments and options, the same every time."""
        rng = np.random.default_rng([seed, n_rows, n_classes])
        arrays, options = self.arguments(rng, np.dtype(dtype), n_rows, n_classes)
        return arrays, {**options, **dict(self.options)}

    def call(self, arrays, options):
        return getattr(fastsoftmax, self.function)(*arrays, **options)

    def truth(self, arrays, options):
        return getattr(reference, self.function)(*arrays, **options)

    def check(self, result, arrays, options):
        """Compare with the reference: values, shapes, dtypes, and Python floats where a loss is reduced."""
        truth = self.truth(arrays, options)
        scales = self._scales(truth, arrays, options)
        dtype = np.asarray(arrays[0]).dtype
        for i, (r, t, scale) in enumerate(zip(_flat(result), _flat(truth), scales, strict=True)):
            label = f"{self}, output {i}"
            if t is None:
                assert r is None, label
            elif np.ndim(t) == 0 and isinstance(r, float):
                _assert_reduced(r, t, dtype, scale, self.kind, label)
            else:
                assert r.dtype == dtype, f"{label}: {r.dtype}, expected {dtype}"
                if self.kind == "product":
                    assert_products(r, t, scale, label=label)
                else:
                    assert_ulps(r, t, EXACT if self.kind == "exact" else WEIGHTED, scale=scale, label=label)

    def _scales(self, truth, arrays, options):
        """Per output: what its error is measured against, if not the output itself."""
        if self.kind == "product":
            return _flat(_product_magnitudes(self.function, truth, arrays, options))
        if self.kind == "weighted" and self.function == "cross_entropy_with_grad":
            return [None, reference.gradient_scale(*arrays, **options)]
        if self.function == "logsumexp":
            # The maximum and the logarithm may all but cancel: rounding is of the maximum's size.
            return [np.abs(np.max(arrays[0], axis=-1))]
        if self.function in ("softmax_backward", "log_softmax_backward"):
            # A difference of two numbers: rounding is of the size of the larger.
            g = np.abs(np.asarray(arrays[0], dtype=np.longdouble))
            y = np.asarray(arrays[1], dtype=np.longdouble)
            if self.function == "softmax_backward":
                magnitude = y * (g + (g * y).sum(axis=-1, keepdims=True))
            else:
                magnitude = g + np.exp(y) * g.sum(axis=-1, keepdims=True)
            return [magnitude]
        return [None] * len(_flat(truth))


def _flat(result):
    if isinstance(result, tuple):
        return [leaf for part in result for leaf in _flat(part)]
    return [result]


def _assert_reduced(loss, truth, dtype, scale, kind, label):
    """A reduced loss: its rows were rounded in ``dtype``, the sum was taken in float64."""
    if np.isnan(truth):
        assert np.isnan(loss), f"{label}: got {loss!r}, expected NaN"
        return
    limit = {"exact": EXACT, "weighted": WEIGHTED, "product": WEIGHTED}[kind][dtype.name]
    size = abs(truth) if scale is None else max(abs(truth), scale)
    allowed = limit * np.finfo(dtype).eps * size
    assert abs(loss - truth) <= allowed, f"{label}: got {loss!r}, expected {truth!r}, allowed {allowed!r}"


def _product_magnitudes(function, truth, arrays, options):
    """The same operation on absolute values: what the error of sums of products is proportional to."""
    size = [np.abs(np.asarray(a, dtype=np.longdouble)) for a in arrays]
    if function == "affine":
        return reference.affine(*size)
    if function == "affine_backward":
        return reference.affine_backward(*size, **options)
    # linear_cross_entropy: an error d in the logits moves the loss by at most 2 d, and the gradient by 2 d |gradient|.
    x, weight, targets, *bias = arrays
    logits_size = reference.affine(size[0], size[1], *size[3:])
    room = 1 + 2 * logits_size.max()
    loss_room = room * (len(x) if options.get("reduction") == "sum" else 1)
    if function == "linear_cross_entropy":
        return np.full(np.shape(truth), loss_room)
    loss_options = {k: v for k, v in options.items() if k != "need_grad_x"}
    logits = reference.affine(x, weight, *bias)
    _, grad = reference.cross_entropy_with_grad(logits, targets, **loss_options)
    grads = reference.affine_backward(np.abs(grad) * room, *size[:2], need_grad_x=options.get("need_grad_x", True))
    return np.full(np.shape(truth[0]), loss_room), tuple(grads)


def _logits(rng, dtype, n_rows, n_classes):
    z = (3 * rng.standard_normal((n_rows, n_classes))).astype(dtype)
    if n_rows > 2 and n_classes > 2:
        z[1] += 30  # common offset
        z[2, 0] += 25  # a confident row
    return z


def _one(rng, dtype, n_rows, n_classes):
    return (_logits(rng, dtype, n_rows, n_classes),), {}


def _backward(rng, dtype, n_rows, n_classes):
    grad = rng.standard_normal((n_rows, n_classes)).astype(dtype)
    return (grad, reference.softmax(_logits(rng, dtype, n_rows, n_classes)).astype(dtype)), {}


def _log_backward(rng, dtype, n_rows, n_classes):
    grad = rng.standard_normal((n_rows, n_classes)).astype(dtype)
    return (grad, reference.log_softmax(_logits(rng, dtype, n_rows, n_classes)).astype(dtype)), {}


def _labelled(rng, dtype, n_rows, n_classes):
    return (_logits(rng, dtype, n_rows, n_classes), rng.integers(0, n_classes, size=n_rows)), {}


def _some_ignored(rng, dtype, n_rows, n_classes):
    (z, targets), _ = _labelled(rng, dtype, n_rows, n_classes)
    targets[::3] = -100
    return (z, targets), {}


def _weighted(rng, dtype, n_rows, n_classes):
    (z, targets), _ = _some_ignored(rng, dtype, n_rows, n_classes)
    weights = {"class_weight": rng.uniform(0.5, 2, n_classes), "sample_weight": rng.uniform(0.5, 2, n_rows)}
    return (z, targets), {name: w.astype(dtype) for name, w in weights.items()}


def _row_scaled(rng, dtype, n_rows, n_classes):
    arrays, options = _labelled(rng, dtype, n_rows, n_classes)
    return arrays, {**options, "grad_loss": rng.standard_normal(n_rows).astype(dtype)}


def _probabilities(rng, dtype, n_rows, n_classes):
    z = _logits(rng, dtype, n_rows, n_classes)
    return (z, rng.dirichlet(np.ones(n_classes), size=n_rows).astype(dtype)), {}


def _weighted_probabilities(rng, dtype, n_rows, n_classes):
    arrays, _ = _probabilities(rng, dtype, n_rows, n_classes)
    weights = {"class_weight": rng.uniform(0.5, 2, n_classes), "sample_weight": rng.uniform(0.5, 2, n_rows)}
    return arrays, {name: w.astype(dtype) for name, w in weights.items()}


def _one_hot(rng, dtype, n_rows, n_classes):
    (z, targets), _ = _labelled(rng, dtype, n_rows, n_classes)
    return (z, np.eye(n_classes, dtype=dtype)[targets]), {}


def _sample_weighted(rng, dtype, n_rows, n_classes):
    arrays, _ = _labelled(rng, dtype, n_rows, n_classes)
    return arrays, {"sample_weight": rng.uniform(0.5, 2, n_rows).astype(dtype)}


N_IN = 20  # one full vector and a tail, in either dtype


def _affine(rng, dtype, n_rows, n_classes):
    shapes = (n_rows, N_IN), (N_IN, n_classes), (n_classes,)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes), {}


def _affine_no_bias(rng, dtype, n_rows, n_classes):
    arrays, _ = _affine(rng, dtype, n_rows, n_classes)
    return arrays[:2], {}


def _affine_backward(rng, dtype, n_rows, n_classes):
    shapes = (n_rows, n_classes), (n_rows, N_IN), (N_IN, n_classes)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes), {}


def _linear(rng, dtype, n_rows, n_classes):
    (x, weight, bias), _ = _affine(rng, dtype, n_rows, n_classes)
    return (x, weight, rng.integers(0, n_classes, size=n_rows), bias), {}


def _linear_no_bias(rng, dtype, n_rows, n_classes):
    arrays, _ = _linear(rng, dtype, n_rows, n_classes)
    return arrays[:3], {}


def _linear_weighted(rng, dtype, n_rows, n_classes):
    arrays, _ = _linear(rng, dtype, n_rows, n_classes)
    arrays[2][::3] = -100
    weights = {"class_weight": rng.uniform(0.5, 2, n_classes), "sample_weight": rng.uniform(0.5, 2, n_rows)}
    return arrays, {name: w.astype(dtype) for name, w in weights.items()}


def _signed(rng, dtype, n_rows, n_classes):
    return (rng.standard_normal((n_rows, n_classes)).astype(dtype),), {}


def _signed_pair(rng, dtype, n_rows, n_classes):
    return tuple(rng.standard_normal((n_rows, n_classes)).astype(dtype) for _ in range(2)), {}


NONE, SUM = (("reduction", "none"),), (("reduction", "sum"),)
SMOOTH = (("label_smoothing", 0.1),)
LOSS_ROWS = (0, 1, "sample_weight", "grad_loss")  # only a reduction of none leaves rows independent
LOSS_VARIANTS = [
    # variant, arguments, kind, options
    ("mean", _labelled, "exact", ()),
    ("sum", _labelled, "exact", SUM),
    ("none", _labelled, "exact", NONE),
    ("ignored", _some_ignored, "exact", ()),
    ("ignored-none", _some_ignored, "exact", NONE),
    ("weighted", _weighted, "weighted", ()),
    ("weighted-none", _weighted, "weighted", NONE),
    ("smooth", _some_ignored, "weighted", SMOOTH),
    ("smooth-none", _some_ignored, "weighted", SMOOTH + NONE),
    ("weighted-smooth", _weighted, "weighted", SMOOTH),
    ("probabilities", _probabilities, "weighted", ()),
    ("probabilities-sum", _probabilities, "weighted", SUM),
    ("probabilities-none", _probabilities, "weighted", NONE),
    ("probabilities-weighted-smooth", _weighted_probabilities, "weighted", SMOOTH),
    ("probabilities-weighted-none", _weighted_probabilities, "weighted", NONE),
    ("one-hot", _one_hot, "weighted", ()),
]

CASES = [
    Case("softmax", "", _one, out=True, in_place=0),
    Case("log_softmax", "", _one, out=True, in_place=0),
    Case("logsumexp", "", _one),
    Case("softmax_backward", "", _backward, kind="weighted", by_row=(0, 1), out=True, in_place=0),
    Case("log_softmax_backward", "", _log_backward, kind="weighted", by_row=(0, 1), out=True, in_place=0),
    *(
        Case("cross_entropy", variant, make, kind=kind, by_row=LOSS_ROWS if NONE[0] in options else (), options=options)
        for variant, make, kind, options in LOSS_VARIANTS
    ),
    *(
        Case(
            "cross_entropy_with_grad",
            variant,
            make,
            kind=kind,
            by_row=LOSS_ROWS if NONE[0] in options else (),
            out=True,
            in_place=0,
            options=options,
        )
        for variant, make, kind, options in [
            *LOSS_VARIANTS,
            ("scaled", _labelled, "weighted", (("grad_loss", 0.3),)),
            ("scaled-rows", _row_scaled, "weighted", NONE),
        ]
    ),
    Case("cross_entropy_grad_hess", "", _labelled, kind="weighted", by_row=(0, 1)),
    Case("cross_entropy_grad_hess", "one-hot", _one_hot, kind="weighted", by_row=(0, 1)),
    Case(
        "cross_entropy_grad_hess",
        "weighted",
        _sample_weighted,
        kind="weighted",
        by_row=(0, 1, "sample_weight"),
        options=(("hessian_scale", 2.0),),
    ),
    Case("affine", "", _affine, kind="product", by_row=(), out=True),
    Case("affine", "no-bias", _affine_no_bias, kind="product", by_row=(), out=True),
    Case("affine_backward", "", _affine_backward, kind="product", by_row=()),
    Case("affine_backward", "no-x", _affine_backward, kind="product", by_row=(), options=(("need_grad_x", False),)),
    Case("relu", "", _signed, out=True, in_place=0),
    Case("relu_backward", "", _signed_pair, by_row=(0, 1), out=True, in_place=0),
    *(
        Case("linear_cross_entropy", variant, make, kind="product", by_row=(), options=options)
        for variant, make, options in [
            ("mean", _linear, ()),
            ("no-bias", _linear_no_bias, ()),
            ("none", _linear, NONE),
            ("smooth", _linear, SMOOTH),
            ("weighted-smooth", _linear_weighted, SMOOTH),
        ]
    ),
    *(
        Case("linear_cross_entropy_with_grad", variant, make, kind="product", by_row=(), options=options)
        for variant, make, options in [
            ("mean", _linear, ()),
            ("sum", _linear, SUM),
            ("smooth", _linear, SMOOTH),
            ("weighted-smooth", _linear_weighted, SMOOTH),
            ("no-x", _linear, (("need_grad_x", False),)),
        ]
    ),
]

# Public names that compute nothing on arrays; test_house.py sees that every other one has a row above.
NOT_OPERATIONS = {"set_num_threads", "get_num_threads", "num_threads", "warmup", "show_config"}


def find(function, variant=""):
    return next(case for case in CASES if case.function == function and case.variant == variant)
