"""`fastsoftmax.dropin.torch` against torch: a sweep of its parameters, its error cases, torch's own sample inputs."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
import types
import unittest

import numpy as np
import pytest

from fastsoftmax.dropin import torch as dropin


def test_importing_needs_no_torch():
    code = """
import sys
sys.modules["torch"] = None  # an import of torch fails
from fastsoftmax.dropin import torch as dropin
assert dropin.cross_entropy([[1.0, 2.0]], [1]) > 0
try:
    dropin.CrossEntropyLoss
except ImportError:
    print("needs torch")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "needs torch", run.stderr


torch = pytest.importorskip("torch")
TF = torch.nn.functional

DTYPES = ["float32", "float64", "float16"]


@pytest.fixture(autouse=True, scope="module")
def _one_torch_thread():
    """Arrays are small here, and OpenMP's threads spin: on a busy machine they cost far more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(shape, dtype="float64", seed=0):
    x = np.random.default_rng(seed).normal(scale=5, size=shape)
    return x.astype(dtype)


def assert_like(ours, theirs, rtol=None):
    """Same shape, same dtype, close values."""
    theirs = theirs.detach().numpy()
    assert np.shape(ours) == theirs.shape
    assert ours.dtype == theirs.dtype
    rtol = rtol or {"float16": 4e-3, "float32": 1e-5, "float64": 1e-12}[str(theirs.dtype)]
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(("shape", "dim"), [((4,), 0), ((3, 5), 1), ((3, 5), -2), ((2, 3, 4), 1), ((2, 0), 1), ((), 0)])
def test_elementwise(name, shape, dim, dtype):
    x = make(shape, dtype)
    assert_like(getattr(dropin, name)(x, dim), getattr(TF, name)(torch.tensor(x), dim))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_elementwise_dtype_and_implicit_dim(name):
    ours, theirs = getattr(dropin, name), getattr(TF, name)
    whole = np.arange(6).reshape(2, 3)
    assert_like(ours(whole, 1, dtype=np.float64), theirs(torch.tensor(whole), 1, dtype=torch.float64))
    for shape in [(4,), (3, 4), (2, 3, 4), (2, 2, 3, 4)]:
        x = make(shape)
        with pytest.warns(UserWarning, match="Implicit dimension choice"):
            result = ours(x)
        with pytest.warns(UserWarning, match="Implicit dimension choice"):
            assert_like(result, theirs(torch.tensor(x)))


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "bool", "complex128"])
@pytest.mark.parametrize("dim", [0, 1, -1, (0, 1), (2, 0), (-1,)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp(dim, keepdim, dtype):
    x = make((3, 4, 5), "float64" if dtype == "complex128" else dtype)
    x = x + 0.5j * x if dtype == "complex128" else x
    theirs = torch.logsumexp(torch.tensor(x), dim, keepdim=keepdim)
    if dtype != "complex128":
        assert_like(dropin.logsumexp(x, dim, keepdim), theirs)
    else:
        np.testing.assert_allclose(np.exp(dropin.logsumexp(x, dim, keepdim)), torch.exp(theirs).numpy(), rtol=1e-10)


SHAPES = [(5,), (4, 5), (1, 5), (0, 5), (3, 5, 2), (2, 5, 3, 2), (2, 5, 2, 1, 3)]


def make_targets(shape, kind, dtype):
    rng = np.random.default_rng(1)
    if kind == "probabilities":
        p = rng.uniform(size=shape).astype(dtype)
        return p / p.sum(axis=min(1, len(shape) - 1), keepdims=True)
    t = rng.integers(0, 5, size=shape[:1] + shape[2:] if len(shape) > 1 else ())
    return np.where(rng.uniform(size=t.shape) < 0.3, 2, t) if kind == "ignoring" else t


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["indices", "ignoring", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(shape, kind, weighted, dtype):
    x, target = make(shape, dtype), make_targets(shape, kind, dtype)
    weight = np.linspace(0.5, 2, 5, dtype=dtype) if weighted else None
    for reduction, smoothing in itertools.product(["mean", "sum", "none"], [0.0, 0.1, 1.0]):
        given = {"reduction": reduction, "label_smoothing": smoothing}
        if kind == "ignoring":
            given["ignore_index"] = 2
        logits = torch.tensor(x, requires_grad=True)
        theirs = TF.cross_entropy(
            logits, torch.tensor(target), None if weight is None else torch.tensor(weight), **given
        )
        assert_like(dropin.cross_entropy(x, target, weight, **given), theirs)
        loss, grad = dropin.cross_entropy_with_grad(x, target, weight, **given)
        assert_like(loss, theirs)
        theirs.sum().backward()
        assert_like(grad, logits.grad)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["indices", "ignoring"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nll_loss(shape, kind, weighted, dtype):
    x, target = make(shape, dtype), make_targets(shape, kind, dtype)
    weight = np.linspace(0.5, 2, 5, dtype=dtype) if weighted else None
    for reduction in ["mean", "sum", "none"]:
        given = {"reduction": reduction, "ignore_index": 2 if kind == "ignoring" else -100}
        theirs = TF.nll_loss(
            torch.tensor(x), torch.tensor(target), None if weight is None else torch.tensor(weight), **given
        )
        assert_like(dropin.nll_loss(x, target, weight, **given), theirs)


@pytest.mark.parametrize(("batch", "more"), [((), ()), ((6,), ()), ((6,), (2,)), ((6,), (2, 3))])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["indices", "ignoring", "probabilities"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_cross_entropy(batch, more, bias, kind, dtype):
    x, w = make((*batch, 4), dtype), make((5, *more, 4), dtype, seed=2) / 5
    b = make((5, *more), dtype, seed=3) if bias else None
    target = make_targets((*batch, 5, *more), kind, dtype)
    weight = np.linspace(0.5, 2, 5, dtype=dtype)
    for reduction, smoothing in itertools.product(["mean", "sum", "none"], [0.0, 0.1]):
        given = {"reduction": reduction, "label_smoothing": smoothing}
        if kind == "ignoring":
            given["ignore_index"] = 2
        logits = torch.tensor(np.tensordot(x, w, axes=(-1, -1)) + (0 if b is None else b)).to(getattr(torch, dtype))
        theirs = TF.cross_entropy(logits, torch.tensor(target), torch.tensor(weight), **given)
        ours = dropin.linear_cross_entropy(x, w, target, linear_bias=b, weight=weight, **given)
        assert_like(ours, theirs, rtol=1e-4 if dtype == "float32" else 1e-12)


def test_empty_means_are_nan_and_empty_sums_zero():
    x, ignored = make((3, 5)), np.full(3, -100)
    for function in (dropin.cross_entropy, dropin.nll_loss):
        assert np.isnan(function(x, ignored))
        assert function(x, ignored, reduction="sum") == 0
        assert function(x, ignored, reduction="none").tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint32"])
def test_targets_of_any_integer_dtype(dtype):
    x, target = make((3, 5)), np.array([0, 4, 2])
    assert dropin.cross_entropy(x, target.astype(dtype)) == dropin.cross_entropy(x, target)
    assert dropin.nll_loss(x, target.astype(dtype)) == dropin.nll_loss(x, target)


@pytest.mark.parametrize("legacy", [{"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_former_spelling_of_reduction(name, legacy):
    x, target = make((3, 5)), np.array([0, 4, 2])
    with pytest.warns(UserWarning, match="please use reduction="):
        ours = getattr(dropin, name)(x, target, **legacy)
    with pytest.warns(UserWarning, match="please use reduction="):
        assert_like(ours, getattr(TF, name)(torch.tensor(x), torch.tensor(target), **legacy))


X, Y = make((3, 5)), np.array([1, 2, 3])
ERRORS = {
    "softmax of integers": ("softmax", (np.arange(6).reshape(2, 3), 1), {}),
    "log_softmax of integers": ("log_softmax", (np.arange(6).reshape(2, 3), 1), {}),
    "softmax dim": ("softmax", (X, 2), {}),
    "softmax dim is no int": ("softmax", (X, 1.0), {}),
    "logsumexp dim": ("logsumexp", (X, -3), {}),
    "logsumexp dim twice": ("logsumexp", (X, (1, -1)), {}),
    "target too large": ("cross_entropy", (X, np.array([1, 2, 5])), {}),
    "target negative": ("cross_entropy", (X, np.array([1, 2, -1])), {}),
    "nll target too large": ("nll_loss", (X, np.array([1, 2, 5])), {}),
    "batch size": ("cross_entropy", (X, Y[:2]), {}),
    "nll batch size": ("nll_loss", (X, Y[:2]), {}),
    "scalar target of a batch": ("cross_entropy", (X, Y[0]), {}),
    "float indices": ("cross_entropy", (X, Y.astype(float)), {}),
    "bool indices": ("cross_entropy", (X, Y > 1), {}),
    "column of targets": ("cross_entropy", (X, Y[:, None]), {}),
    "integer probabilities": ("cross_entropy", (X, np.ones((3, 5), int)), {}),
    "ignore_index with probabilities": ("cross_entropy", (X, np.ones((3, 5)) / 5), {"ignore_index": 2}),
    "label_smoothing": ("cross_entropy", (X, Y), {"label_smoothing": 1.5}),
    "label_smoothing of probabilities": ("cross_entropy", (X, np.ones((3, 5)) / 5), {"label_smoothing": 1.5}),
    "reduction": ("cross_entropy", (X, Y), {"reduction": "avg"}),
    "weight shape": ("cross_entropy", (X, Y, np.ones(3)), {}),
    "weight shape for probabilities": ("cross_entropy", (X, np.ones((3, 5)) / 5, np.ones(3)), {}),
    "weight of two axes": ("cross_entropy", (X, Y, np.ones((1, 5))), {}),
    "integer logits": ("cross_entropy", (np.arange(6).reshape(2, 3), Y[:2]), {}),
    "integer log-probabilities": ("nll_loss", (np.arange(6).reshape(2, 3), Y[:2] - 1), {}),
    "scalar logits": ("cross_entropy", (np.array(1.0), np.array(0)), {}),
    "scalar log-probabilities": ("nll_loss", (np.array(1.0), np.array(0)), {}),
    "sample with many targets": ("cross_entropy", (X[0], Y), {}),
    "K-dimensional target": ("cross_entropy", (make((2, 5, 4)), np.zeros((2, 5), int)), {}),
    "K-dimensional batch size": ("cross_entropy", (make((2, 5, 4)), np.zeros((3, 4), int)), {}),
    "too few target axes": ("cross_entropy", (make((2, 5, 4, 3)), np.zeros((2, 4), int)), {}),
    "linear input axes": ("linear_cross_entropy", (make((2, 3, 4)), make((5, 4)), Y), {}),
    "linear weight axes": ("linear_cross_entropy", (make((3, 4)), make((4,)), Y), {}),
    "linear n_in": ("linear_cross_entropy", (make((3, 4)), make((5, 3)), Y), {}),
    "linear bias": ("linear_cross_entropy", (make((3, 4)), make((5, 4)), Y), {"linear_bias": np.zeros(4)}),
    "linear unbatched": ("linear_cross_entropy", (make((4,)), make((5, 2, 4)), np.zeros(2, int)), {}),
    "linear ignore_index": ("linear_cross_entropy", (make((3, 4)), make((5, 4)), X), {"ignore_index": 1}),
    "linear batch size": ("linear_cross_entropy", (make((3, 4)), make((5, 4)), Y[:2]), {}),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_have_torchs_types(case):
    name, args, kwargs = ERRORS[case]

    def tensor(x):
        return torch.tensor(x) if isinstance(x, (np.ndarray, np.generic)) else x

    theirs = getattr(TF, name, None) or getattr(torch, name, None)
    if theirs is None:
        pytest.skip(f"this torch has no {name}")
    with pytest.raises(Exception) as its:  # noqa: PT011 - the type is what is found out
        theirs(*map(tensor, args), **{k: tensor(v) for k, v in kwargs.items()})
    with pytest.raises(its.type):
        getattr(dropin, name)(*args, **kwargs)


def test_negative_smoothing_is_refused():
    """torch takes a negative smoothing for none."""
    with pytest.raises(RuntimeError, match=r"between 0\.0 and 1\.0. Got: -0\.5"):
        dropin.cross_entropy(X, Y, label_smoothing=-0.5)


# CrossEntropyLoss, the module for those who stay in torch


def test_module_gradcheck():
    x = torch.tensor(make((4, 5)), requires_grad=True)
    spatial = torch.tensor(make((2, 5, 3)), requires_grad=True)
    single = torch.tensor(make((5,)), requires_grad=True)
    probabilities = torch.tensor(make_targets((4, 5), "probabilities", "float64"), requires_grad=True)
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    for reduction, smoothing, w in itertools.product(["mean", "sum", "none"], [0.0, 0.1], [None, weight]):
        loss = dropin.CrossEntropyLoss(w, ignore_index=2, reduction=reduction, label_smoothing=smoothing)
        assert torch.autograd.gradcheck(loss, (x, torch.tensor([0, 2, 4, 1])))
        assert torch.autograd.gradcheck(loss, (spatial, torch.tensor([[0, 2, 4], [1, 1, 2]])))
        assert torch.autograd.gradcheck(loss, (single, torch.tensor(3)))
        loss = dropin.CrossEntropyLoss(w, reduction=reduction, label_smoothing=smoothing)
        assert torch.autograd.gradcheck(loss, (x, probabilities))


def test_module_calls_the_fused_kernel_once_on_the_tensors_own_memory(monkeypatch):
    calls = []
    fused = dropin.F.cross_entropy_with_grad

    def spy(logits, *args, **kwargs):
        loss, grad = fused(logits, *args, **kwargs)
        calls.append((logits, grad))
        return loss, grad

    monkeypatch.setattr(dropin.F, "cross_entropy_with_grad", spy)
    monkeypatch.setattr(dropin.F, "cross_entropy", None)
    x = torch.randn(4, 5, requires_grad=True)
    dropin.CrossEntropyLoss()(x, torch.tensor([0, 2, 4, 1])).backward()
    ((logits, grad),) = calls
    assert np.shares_memory(logits, x.detach().numpy())
    assert np.shares_memory(grad, x.grad.numpy())


def test_module_without_gradient_computes_none(monkeypatch):
    monkeypatch.setattr(dropin.F, "cross_entropy_with_grad", None)
    loss = dropin.CrossEntropyLoss()(torch.randn(4, 5), torch.tensor([0, 2, 4, 1]))
    assert not loss.requires_grad
    with torch.no_grad():
        dropin.CrossEntropyLoss()(torch.randn(4, 5, requires_grad=True), torch.tensor([0, 2, 4, 1]))


def test_module_backward_twice_through_a_retained_graph():
    x = torch.tensor(make((4, 5)), requires_grad=True)
    target = torch.tensor([0, 2, 4, 1])
    TF.cross_entropy(x, target).backward()
    expected, x.grad = 3 * 2 * x.grad, None
    loss = 2 * dropin.CrossEntropyLoss()(x, target)
    for _ in range(3):
        loss.backward(retain_graph=True)
    torch.testing.assert_close(x.grad, expected)


def test_module_refuses_second_derivatives():
    x = torch.randn(4, 5, requires_grad=True)
    loss = dropin.CrossEntropyLoss()(x, torch.tensor([0, 2, 4, 1]))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_module_dtypes_and_strides(dtype):
    big = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.tensor([0, 2, 4, 1])
    ours, theirs = (big.t()[::2].clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
    loss = dropin.CrossEntropyLoss()(ours, target)
    expected = TF.cross_entropy(theirs, target)
    assert loss.dtype == dtype
    loss.backward()
    expected.backward()
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if dtype.itemsize == 2 else {}
    torch.testing.assert_close(loss, expected, **tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


def test_module_is_a_module():
    weight = torch.linspace(0.5, 2, 5)
    ours = dropin.CrossEntropyLoss(weight, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(weight, label_smoothing=0.1)
    assert isinstance(ours, torch.nn.Module)
    assert str(ours) == str(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x, target = torch.randn(4, 5), torch.tensor([0, 2, 4, 1])
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(copied(x, target), theirs(x, target))
    with pytest.raises(AttributeError, match="no attribute 'BCELoss'"):
        dropin.BCELoss


def test_module_trains_a_network_as_torchs_does():
    x, target = torch.tensor(make((64, 10), "float32")), torch.tensor(np.arange(64) % 3)
    losses = []
    for criterion in (dropin.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(50):
            optimizer.zero_grad()
            loss = criterion(model(x), target)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# torch's own sample inputs and error inputs: those its test suite runs its functions on


@pytest.fixture(scope="module")
def torch_samples():
    if "expecttest" not in sys.modules:  # torch's test helpers import it for snapshots, which are not used here
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.testing._internal import common_methods_invocations, common_modules
        except ImportError as missing:
            pytest.skip(f"torch is installed without its test helpers: {missing}")
    return common_methods_invocations.op_db, common_modules


def array(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("softmax", 7),
        ("log_softmax", 7),
        ("logsumexp", 10),
        ("nn.functional.cross_entropy", 15),
        ("nn.functional.nll_loss", 30),
        ("nn.functional.linear_cross_entropy", 50),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_sample_inputs(torch_samples, name, at_least, dtype):
    (op,) = [op for op in torch_samples[0] if op.name == name and not op.variant_test_name] or pytest.skip("no such op")
    ours, n_samples = getattr(dropin, name.split(".")[-1]), 0
    for sample in op.sample_inputs("cpu", dtype):
        theirs = op.op(sample.input, *sample.args, **sample.kwargs)
        given = {k: array(v) for k, v in sample.kwargs.items()}
        assert_like(
            ours(array(sample.input), *map(array, sample.args), **given),
            theirs,
            rtol=1e-4 if dtype == torch.float32 else None,
        )
        n_samples += 1
    assert n_samples >= at_least


def test_torchs_inputs_for_its_module(torch_samples):
    make_inputs = torch_samples[1].module_inputs_torch_nn_CrossEntropyLoss
    samples = make_inputs(None, "cpu", torch.float64, requires_grad=True, training=True)
    assert len(samples) > 50
    for sample in samples:
        made, given = sample.constructor_input, sample.forward_input
        ours = dropin.CrossEntropyLoss(*made.args, **made.kwargs)
        theirs = torch.nn.CrossEntropyLoss(*made.args, **made.kwargs)
        results = [loss(*given.args, **given.kwargs) for loss in (ours, theirs)]
        torch.testing.assert_close(*results, equal_nan=True)
        differentiable = [x for x in given.args if x.requires_grad]
        grads = [torch.autograd.grad(result.sum(), differentiable) for result in results]
        torch.testing.assert_close(*grads, equal_nan=True)


def test_torchs_error_inputs_for_its_module(torch_samples):
    make_inputs = getattr(torch_samples[1], "module_error_inputs_torch_nn_CrossEntropyLoss", None)
    if make_inputs is None:
        pytest.skip("this torch has none")
    samples = list(make_inputs(None, "cpu", torch.float64, requires_grad=False, training=False))
    assert samples
    for sample in samples:
        made, given = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        with pytest.raises(sample.error_type, match=sample.error_regex):
            dropin.CrossEntropyLoss(*made.args, **made.kwargs)(*given.args, **given.kwargs)
