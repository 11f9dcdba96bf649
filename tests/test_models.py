"""The models: they learn, their gradients are right, and they take data as they come."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import MLP, SGD, Adam, SoftmaxRegression, gradient_check
from fastsoftmax._batches import Batches
from fastsoftmax.datasets import load_digits


def blobs(rng, n_rows=300, n_classes=3, n_in=4):
    """Classes far apart."""
    targets = rng.integers(0, n_classes, n_rows)
    targets[:n_classes] = np.arange(n_classes)
    return 8.0 * np.eye(n_classes, n_in)[targets] + rng.normal(size=(n_rows, n_in)), targets


def bits(model):
    return [p.tobytes() for p in model.params]


# ---- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SoftmaxRegression, MLP, lambda **k: MLP((8, 6), **k)], ids=["regression", "mlp", "deep"])
def test_separable_data_are_learned(rng, dtype, make):
    x, targets = blobs(rng)
    model = make(dtype=dtype)
    assert model.fit(x, targets, epochs=30) is model
    assert model.score(x, targets) == 1.0
    assert all(p.dtype == dtype for p in model.params)
    assert model.history.loss[-1] < 0.1 * model.history.loss[0]


def test_what_one_layer_cannot_learn():
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype="f4").repeat(20, axis=0)
    targets = np.array([0, 1, 1, 0]).repeat(20)
    assert SoftmaxRegression().fit(x, targets, epochs=100).score(x, targets) < 0.8
    assert MLP((16,)).fit(x, targets, epochs=100).score(x, targets) == 1.0


def test_digits():
    x_train, y_train, x_test, y_test = load_digits()
    model = MLP(hidden=(100,), scale=1 / 16).fit(x_train, y_train, epochs=30, batch_size=32)
    assert model.score(x_test, y_test) >= 0.97


def test_regression_reaches_the_optimum(rng):
    """The problem is convex: the gradient of the whole objective, penalty included, vanishes where training ends."""
    x, targets = rng.normal(size=(200, 5)), rng.integers(0, 4, 200)
    model = SoftmaxRegression(l2=0.01, dtype="float64", optimizer=SGD(0.5, momentum=0.9))
    model.fit(x, targets, epochs=500, batch_size=200)
    loss, grads = model.loss_and_grads(x, targets)
    assert max(np.abs(g).max() for g in grads) < 1e-8
    assert loss < np.log(4)
    linear_model = pytest.importorskip("sklearn.linear_model")
    peer = linear_model.LogisticRegression(C=1 / (0.01 * 200), tol=1e-10, max_iter=1000).fit(x, targets)
    np.testing.assert_allclose(model.layers[0].weight, peer.coef_.T, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(x), peer.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("sizes", [(5, 4, 3), (1, 1, 1), (17, 33, 5), (3, 2), (4, 6, 5, 3)], ids=str)
@pytest.mark.parametrize("n_rows", [1, 13])
def test_gradient_of_the_whole_network(rng, sizes, n_rows):
    n_in, *hidden, n_classes = sizes
    x, targets = rng.normal(size=(n_rows, n_in)), rng.integers(0, n_classes, n_rows)
    model = MLP(hidden, n_classes=n_classes, l2=0.1, dtype="float64", scale=0.5).fit(x, targets, epochs=1)
    for p in model.params:
        p += 0.1 * rng.normal(size=p.shape)  # biases away from 0 too
    weights = {"sample_weight": rng.uniform(0.5, 2, n_rows), "class_weight": rng.uniform(0.5, 2, n_classes)}
    result = gradient_check(lambda _: model.loss_and_grads(x, targets, **weights), model.params, tolerance=1e-6)
    assert result, str(result)
    assert result.n_checked == sum(p.size for p in model.params)


def test_a_step_of_plain_sgd_is_the_gradient(rng):
    """What training does is what loss_and_grads says; the penalty pulls at weights, never at biases."""
    x, targets = rng.normal(size=(10, 4)), rng.integers(0, 3, 10)
    weights = {"sample_weight": rng.uniform(0.5, 2, 10), "class_weight": np.array([1.0, 3.0, 0.5])}
    model = MLP((5,), l2=0.3, dtype="float64", optimizer=SGD(0.1))
    start = MLP((5,), l2=0.3, dtype="float64").fit(x, targets, epochs=0)
    model.fit(x, targets, epochs=1, batch_size=10, shuffle=False, **weights)
    loss, grads = start.loss_and_grads(x, targets, **weights)
    for after, before, grad in zip(model.params, start.params, grads):
        np.testing.assert_allclose(after, before - 0.1 * grad, rtol=1e-12, atol=1e-14)
    penalty = 0.15 * sum(float(np.sum(p**2)) for p in start.params[::2])
    assert model.history.loss[0] == pytest.approx(loss - penalty, rel=1e-12)
    without = MLP((5,), dtype="float64").fit(x, targets, epochs=0).loss_and_grads(x, targets, **weights)[1]
    for i, (grad, plain) in enumerate(zip(grads, without)):
        expected = plain if i % 2 else plain + 0.3 * start.params[i]
        np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-14)


def test_probabilities_as_targets(rng):
    x, targets = blobs(rng)
    one_hot = np.eye(3)[targets]
    by_index = MLP(dtype="float64").fit(x, targets, epochs=5)
    by_probability = MLP(dtype="float64").fit(x, one_hot, epochs=5, validation=(x, one_hot))
    for a, b in zip(by_index.params, by_probability.params):
        np.testing.assert_allclose(a, b, atol=1e-10)
    assert by_probability.score(x, one_hot) == by_index.score(x, targets) == by_probability.history.val_accuracy[-1]


@pytest.mark.parametrize("label_dtype", ["u1", "i1", "i2", "u4", "i8", "u8"])
def test_labels_of_any_integer_type(rng, label_dtype):
    x, targets = blobs(rng)
    expected = SoftmaxRegression().fit(x, targets, epochs=2)
    assert bits(SoftmaxRegression().fit(x, targets.astype(label_dtype), epochs=2)) == bits(expected)
    assert bits(SoftmaxRegression().fit(x.tolist(), targets.tolist(), epochs=2)) == bits(expected)


# ---- the same bits -----------------------------------------------------------------------------------------------


def test_the_seed_gives_the_bits(rng):
    x, targets = blobs(rng)
    first, second, third = (MLP((7,), seed=s).fit(x, targets, epochs=3) for s in (1, 1, 2))
    assert bits(first) == bits(second) != bits(third)
    assert first.history == second.history
    assert bits(first.fit(x, targets, epochs=3)) == bits(second)  # fit begins anew
    assert MLP(seed=None).seed != MLP(seed=None).seed


def test_each_epoch_has_an_order_of_its_own(rng, monkeypatch):
    x, targets = np.arange(20.0).reshape(20, 1), np.arange(20) % 2
    taken = []
    choose = Batches.choose

    def recording(self, rows):
        taken.append(x[rows, 0])
        return choose(self, rows)

    monkeypatch.setattr(Batches, "choose", recording)
    MLP((3,)).fit(x, targets, epochs=3, batch_size=6)
    orders = np.concatenate(taken).reshape(3, 20)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), x[:, 0])
    assert len(np.unique(orders, axis=0)) == 3


def test_the_optimizer_given_is_not_used_up(rng):
    x, targets = blobs(rng)
    optimizer = Adam(0.01)
    first = MLP((7,), optimizer=optimizer).fit(x, targets, epochs=2)
    second = MLP((7,), optimizer=optimizer).fit(x, targets, epochs=2)
    assert bits(first) == bits(second)
    assert optimizer.n_steps == 0
    assert first.optimizer.n_steps == first.history.n_steps == 6


def in_file(x, path):
    np.save(path, x)
    return np.load(path, mmap_mode="r")


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "fortran": lambda x, path: np.asfortranarray(x),
    "strided": lambda x, path: np.repeat(x, 2, axis=0)[::2],
    "reversed": lambda x, path: x[::-1].copy()[::-1],
    "byte-swapped": lambda x, path: x.astype(x.dtype.newbyteorder()),
    "read-only": lambda x, path: read_only(x),
    "memory-mapped": in_file,
    "images": lambda x, path: x.reshape(len(x), 2, 2),
    "images, transposed": lambda x, path: np.ascontiguousarray(x.reshape(-1, 2, 2).transpose(0, 2, 1)).transpose(0, 2, 1),
    "list": lambda x, path: x.tolist(),
}


@pytest.mark.parametrize("data_dtype", ["u1", "i4", "f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes_make_no_difference(rng, tmp_path, layout, data_dtype):
    x, targets = blobs(rng)
    x = np.clip(np.rint(8 * x + 60), 0, 255)
    given = LAYOUTS[layout](x.astype(data_dtype), tmp_path / "x.npy")
    before = np.array(given)
    kwargs = {"epochs": 2, "batch_size": 64, "validation": (given, targets)}
    expected = MLP((5,), scale=1 / 128).fit(x.astype("f4"), targets, epochs=2, batch_size=64)
    model = MLP((5,), scale=1 / 128).fit(given, targets, **kwargs)  # 1/128 scales exactly
    assert bits(model) == bits(expected)
    np.testing.assert_array_equal(model.decision_function(given), expected.decision_function(x))
    np.testing.assert_array_equal(np.array(given), before)


def test_uint8_images_are_scaled(rng):
    images, targets = rng.integers(0, 256, (50, 6, 5), np.uint8), rng.integers(0, 3, 50)
    model = MLP((8,), scale=1 / 255).fit(images, targets, epochs=3)
    same = MLP((8,)).fit((images / 255).astype("f4").reshape(50, 30), targets, epochs=3)
    for a, b in zip(model.params, same.params):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(model.decision_function(images)).max() < 100


# ---- prediction --------------------------------------------------------------------------------------------------


def test_predictions_agree(rng, dtype):
    x, targets = blobs(rng, n_rows=2500)  # more than a block
    model = MLP((6,), dtype=dtype).fit(x, targets, epochs=1)
    scores = model.decision_function(x)
    assert scores.shape == (2500, 3)
    assert scores.dtype == dtype
    h = np.maximum(x.astype(dtype) @ model.params[0] + model.params[1], 0)
    np.testing.assert_allclose(scores, h @ model.params[2] + model.params[3], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.predict(x), scores.argmax(axis=1))
    probs = model.predict_proba(x)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(probs.argmax(axis=1), model.predict(x))
    np.testing.assert_array_equal(scores, model.decision_function(x))  # softmax worked on its own copy
    assert model.score(x, targets) == np.mean(model.predict(x) == targets)
    assert model.predict(x[:0]).shape == (0,)
    assert model.predict_proba(x[:0]).shape == (0, 3)


def test_threads_may_share_a_model(rng):
    x, targets = blobs(rng, n_rows=600)
    model = MLP((32,)).fit(x, targets, epochs=2)
    expected = model.decision_function(x)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: model.decision_function(x[i % 5 :]), range(100)))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[i % 5 :])


@pytest.mark.parametrize("data_dtype", ["u1", "f4", "f8"])
def test_every_block_takes_its_own_rows(rng, data_dtype):
    x, targets = rng.integers(0, 256, (2500, 4)).astype(data_dtype), rng.integers(0, 3, 2500)  # three blocks
    model = MLP((6,), scale=1 / 128).fit(x[:300], targets[:300], epochs=1)
    rows = [0, 1023, 1024, 2047, 2048, 2499]
    np.testing.assert_array_equal(model.predict(x)[rows], [model.predict(x[r : r + 1])[0] for r in rows])
    expected = np.maximum(x.astype("f4") / 128 @ model.params[0] + model.params[1], 0) @ model.params[2] + model.params[3]
    np.testing.assert_allclose(model.decision_function(x), expected, rtol=1e-4, atol=1e-4)
    assert len(np.unique(expected[rows], axis=0)) == len(rows)


# ---- partial_fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam()], ids=repr)
def test_partial_fit_in_pieces_is_one_pass(rng, optimizer):
    x, targets = blobs(rng, n_rows=320)
    whole = MLP((6,), optimizer=optimizer).fit(x, targets, epochs=2, batch_size=32, shuffle=False)
    pieces = MLP((6,), optimizer=optimizer, n_classes=3)
    for _ in range(2):
        for i in range(0, 320, 64):
            pieces.partial_fit(x[i : i + 64], targets[i : i + 64], batch_size=32)
    assert bits(pieces) == bits(whole)
    assert pieces.history.n_steps == whole.history.n_steps == 20
    assert len(pieces.history.loss) == 10


MEMORY_MAPPED = """
    import resource, sys
    import numpy as np
    from fastsoftmax import MLP

    n_rows, n_in = 400_000, 784  # 314 MB
    x = np.memmap(sys.argv[1], np.uint8, "w+", shape=(n_rows, n_in))  # a sparse file: no disk is used for the zeros
    x[:: n_rows // 10] = 200
    x.flush()
    x = np.memmap(sys.argv[1], np.uint8, "r", shape=(n_rows, n_in))
    targets = np.arange(n_rows) % 10
    model = MLP((16,), n_classes=10, scale=1 / 255)
    model.partial_fit(x[:1000], targets[:1000], batch_size=500)  # compiled, threads started
    used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()  # data and stacks
    resource.setrlimit(resource.RLIMIT_DATA, (used + (128 << 20),) * 2)
    try:
        x.astype(np.float32)
    except MemoryError:
        print("limited")
    model.partial_fit(x, targets, batch_size=500)
    print(model.history.n_steps, np.isfinite(model.history.loss).all())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers private mappings on Linux only")
def test_partial_fit_beyond_memory(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(MEMORY_MAPPED), str(tmp_path / "x.dat")]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert output.split() == ["limited", "802", "True"]


def test_memory_is_flat(rng):
    x, targets = rng.integers(0, 256, (2048, 100), np.uint8), rng.integers(0, 10, 2048)
    model = MLP((32,), scale=1 / 255, optimizer=SGD(0.01, momentum=0.9), n_classes=10)
    model.partial_fit(x, targets, batch_size=64)
    tracemalloc.start()
    try:
        used = []
        for _ in range(5):
            model.fit(x, targets, epochs=8, batch_size=64)  # 256 steps
            used.append(tracemalloc.get_traced_memory()[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used[-1] - used[1] < 4_000, used  # the first two still fill caches of the interpreter
    assert peak < x.size * 4, "as much as a float copy of the data"


RESIDENT = """
    import resource
    import numpy as np
    from fastsoftmax import MLP, Adam

    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 256, (6400, 100), np.uint8), rng.integers(0, 10, 6400)
    model = MLP((32,), scale=1 / 255, optimizer=Adam(), n_classes=10)
    used, n_steps = [], 0
    while n_steps < 12_000:
        model.fit(x, targets, epochs=10, batch_size=64)  # 1,000 steps
        n_steps += model.history.n_steps
        used.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize())
    print(used[-1] - used[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_10_000_steps():
    """As the system sees it, hence also what was allocated by neither Python nor NumPy."""
    output = subprocess.run([sys.executable, "-c", textwrap.dedent(RESIDENT)], check=True, capture_output=True, text=True)
    assert int(output.stdout) < 1 << 20  # 100 bytes a step


# ---- history, validation, early stopping -------------------------------------------------------------------------


def test_history(rng):
    x, targets = blobs(rng)
    model = MLP((6,)).fit(x, targets, epochs=4, batch_size=100, validation=(x, targets))
    history = model.history
    assert history.n_steps == 12
    assert history.stopped == "epochs"
    assert len(history.loss) == len(history.val_loss) == len(history.val_accuracy) == 4
    assert history.val_accuracy[-1] == model.score(x, targets)
    assert history.val_loss[-1] == pytest.approx(model.loss_and_grads(x, targets)[0], rel=1e-5)
    assert SoftmaxRegression().fit(x, targets, epochs=1, batch_size=1000).history.loss == [pytest.approx(np.log(3))]
    unvalidated = MLP((6,)).fit(x, targets, epochs=4, batch_size=100)
    assert unvalidated.history.val_loss == []
    assert bits(unvalidated) == bits(model)  # looking does not disturb


def test_early_stopping_keeps_the_best(rng):
    """Random labels: validation accuracy has no reason to rise for long."""
    x, targets = rng.normal(size=(200, 10)), rng.integers(0, 4, 200)
    x_val, y_val = rng.normal(size=(100, 10)), rng.integers(0, 4, 100)
    model = MLP((32,)).fit(x, targets, epochs=200, validation=(x_val, y_val), patience=5)
    history = model.history
    assert history.stopped == "patience"
    best = int(np.argmax(history.val_accuracy))
    assert len(history.val_accuracy) == best + 1 + 5 < 200
    assert model.score(x_val, y_val) == history.val_accuracy[best] > history.val_accuracy[-1]
    short = MLP((32,)).fit(x, targets, epochs=best + 1, validation=(x_val, y_val))
    assert bits(model) == bits(short)


def test_an_equal_accuracy_is_no_improvement(rng):
    x, targets = blobs(rng)
    model = MLP((6,), optimizer=SGD(0.0)).fit(x, targets, epochs=50, validation=(x, targets), patience=3)
    assert model.history.stopped == "patience"
    assert len(model.history.val_accuracy) == 4


def test_best_weights_are_kept_when_epochs_run_out(rng):
    x, targets = rng.normal(size=(200, 10)), rng.integers(0, 4, 200)
    x_val, y_val = rng.normal(size=(100, 10)), rng.integers(0, 4, 100)
    model = MLP((32,)).fit(x, targets, epochs=20, validation=(x_val, y_val), patience=100)
    assert model.history.stopped == "epochs"
    assert model.score(x_val, y_val) == max(model.history.val_accuracy) > model.history.val_accuracy[-1]


# ---- what stops a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [SGD(1e6), SGD(1e5, momentum=0.9)], ids=repr)
def test_divergence_is_reported_and_undone(rng, optimizer):
    x, targets = 100 * rng.normal(size=(400, 10)), rng.integers(0, 4, 400)
    model = MLP((16, 16), optimizer=optimizer)
    with pytest.raises(FloatingPointError, match=r"step \d+ with learning rate (1e\+06|100000).*weights of step \d+") as caught:
        model.fit(x, targets, epochs=50, batch_size=20)
    assert str(model.history.n_steps) in str(caught.value)
    assert all(np.isfinite(p).all() for p in model.params)
    assert np.isfinite(model.loss_and_grads(x[:20], targets[:20])[0])
    assert all(np.isfinite(s).all() for slots in model.optimizer.slots for s in slots)
    model.optimizer.learning_rate = 1e-12
    model.partial_fit(x[:20], targets[:20])  # goes on


def test_divergence_late_in_a_run_keeps_late_weights(rng):
    x, targets = blobs(rng, n_rows=200)
    model = MLP((8,), n_classes=3).fit(x, targets, epochs=100, batch_size=20)  # 1,000 steps
    good = bits(model)
    spoilt = x.copy()
    spoilt[100] = np.nan
    with pytest.raises(FloatingPointError, match=r"step 1005 .*weights of step 1000"):
        model.partial_fit(spoilt, targets, batch_size=20)
    assert bits(model) == good


def test_the_last_update_is_checked_too(rng):
    x, targets = blobs(rng, n_rows=20)
    model = SoftmaxRegression(optimizer=SGD(3e38))
    with pytest.raises(FloatingPointError, match="step 1 "):
        model.fit(100 * x, targets, epochs=1)
    assert all(np.isfinite(p).all() for p in model.params)


def test_weights_whose_sum_overflows_are_good(rng):
    x, targets = np.zeros((20, 5), np.float32), rng.integers(0, 3, 20)
    model = SoftmaxRegression(n_classes=3).fit(x, targets, epochs=1)
    model.layers[0].weight[...] = 3e38
    model.partial_fit(x, targets)
    assert (model.layers[0].weight == np.float32(3e38)).all()


def interrupting(monkeypatch, at):
    """Ctrl-C in the middle of the step ``at``."""
    step, calls = SGD.step, [0]

    def interrupted(self, *args):
        calls[0] += 1
        if calls[0] == at:
            signal.raise_signal(signal.SIGINT)
        step(self, *args)

    monkeypatch.setattr(SGD, "step", interrupted)


def test_ctrl_c_stops_after_the_batch(rng, monkeypatch):
    x, targets = blobs(rng)
    handler = signal.getsignal(signal.SIGINT)
    interrupting(monkeypatch, at=8)
    model = MLP((6,))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, targets, epochs=100, batch_size=100)
    assert signal.getsignal(signal.SIGINT) is handler
    assert model.history.n_steps == 8  # the batch was finished
    assert len(model.history.loss) == 2  # two whole epochs of three steps
    assert model.history.stopped == "interrupt"
    monkeypatch.undo()
    pieces = MLP((6,)).fit(x, targets, epochs=2, batch_size=100)
    assert model.history.loss == pieces.history.loss
    assert bits(model) != bits(pieces)
    assert 0 <= model.score(x, targets) <= 1
    model.partial_fit(x, targets)
    assert model.history.stopped == "epochs"


def test_ctrl_c_reaches_the_programs_own_handler(rng, monkeypatch):
    seen = []
    previous = signal.signal(signal.SIGINT, lambda *_: seen.append("own"))
    try:
        interrupting(monkeypatch, at=2)
        model = MLP((6,)).fit(*blobs(rng), epochs=100, batch_size=100)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == ["own"]
    assert (model.history.n_steps, model.history.stopped) == (2, "interrupt")


def test_the_second_ctrl_c_does_not_wait(rng, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)

    def stuck(self, *args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(SGD, "step", stuck)
    with pytest.raises(KeyboardInterrupt):
        MLP((6,)).fit(*blobs(rng), epochs=1)
    assert signal.getsignal(signal.SIGINT) is handler


def test_fit_in_a_thread(rng):
    x, targets = blobs(rng)
    model = MLP((6,))
    thread = threading.Thread(target=model.fit, args=(x, targets), kwargs={"epochs": 2})
    thread.start()
    thread.join()
    assert bits(model) == bits(MLP((6,)).fit(x, targets, epochs=2))


# ---- progress ----------------------------------------------------------------------------------------------------


def test_progress_bar(rng, capfd):
    pytest.importorskip("tqdm")
    x, targets = blobs(rng)
    quiet = MLP((6,)).fit(x, targets, epochs=2)
    assert capfd.readouterr() == ("", "")
    loud = MLP((6,)).fit(x, targets, epochs=2, validation=(x, targets), verbose=True)
    out, err = capfd.readouterr()
    assert out == ""
    for part in ("epoch 2", "600/600", "loss=", "accuracy=", "rows/s", f"val_accuracy={loud.score(x, targets):.4f}"):
        assert part in err
    assert bits(loud) == bits(quiet)


def test_without_tqdm_nothing_is_shown(rng, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # what a missing module looks like to an import
    MLP((6,)).fit(*blobs(rng), epochs=1, verbose=True)
    assert capfd.readouterr() == ("", "")


# ---- bad input ---------------------------------------------------------------------------------------------------

X, T = np.zeros((6, 4)), np.array([0, 1, 2, 0, 1, 2])
ERRORS = {
    "hidden": (lambda: MLP((0,)), ValueError, "hidden must be at least 1, got 0"),
    "hidden size no integer": (lambda: MLP((1.5,)), TypeError, r"hidden must be an integer, got 1\.5 \(float\)"),
    "l2": (lambda: MLP(l2=-1), ValueError, "l2 must be finite and at least 0, got -1"),
    "dtype": (lambda: MLP(dtype="float16"), TypeError, "float32 or float64, got float16"),
    "seed": (lambda: MLP(seed=-1), ValueError, "seed must be at least 0"),
    "n_classes": (lambda: MLP(n_classes=2.0), TypeError, r"n_classes must be an integer, got 2\.0"),
    "epochs": (lambda: MLP().fit(X, T, epochs=-1), ValueError, "epochs must be at least 0"),
    "batch_size": (lambda: MLP().fit(X, T, batch_size=0), ValueError, "batch_size must be at least 1"),
    "one dimension": (lambda: MLP().fit(T, T), ValueError, r"x must have shape \(n_rows, ...\), got \(6,\)"),
    "no rows": (lambda: MLP().fit(X[:0], T[:0]), ValueError, "at least one row"),
    "complex": (lambda: MLP().fit(X + 1j, T), TypeError, "integers or floats of at most 64 bits, got dtype complex128"),
    "strings": (lambda: MLP().fit([["a"]], [0]), TypeError, "integers or floats"),
    "masked": (lambda: MLP().fit(np.ma.masked_equal(X, 0), T), TypeError, "masked array"),
    "too few targets": (
        lambda: MLP().fit(X, T[:5]),
        ValueError,
        r"shape \(6,\) or \(6, n_classes\) like x, got \(5,\)",
    ),
    "float labels": (
        lambda: MLP().fit(X, T / 1.0),
        TypeError,
        "integer class indices or 2-D probabilities, got dtype float64",
    ),
    "integer one-hot": (lambda: MLP().fit(X, np.eye(6, dtype=int)), TypeError, "must be floats, got dtype int64"),
    "negative label": (lambda: MLP().fit(X, T - 1), IndexError, "row 0 has label -1, expected 0 <= label < 2"),
    "large label": (lambda: MLP(n_classes=2).fit(X, T), IndexError, "row 2 has label 2, expected 0 <= label < 2"),
    "columns": (
        lambda: MLP(n_classes=2).fit(X, np.ones((6, 3)) / 3),
        ValueError,
        "2 columns, one for each class, got 3",
    ),
    "sample_weight": (
        lambda: MLP().fit(X, T, sample_weight=[1.0]),
        ValueError,
        r"sample_weight must have shape \(6,\)",
    ),
    "class_weight": (lambda: MLP().fit(X, T, class_weight=[1.0]), ValueError, r"class_weight must have shape \(3,\)"),
    "patience alone": (lambda: MLP().fit(X, T, patience=3), ValueError, "patience needs a validation set"),
    "validation": (
        lambda: MLP().fit(X, T, validation=(X[:, :3], T)),
        ValueError,
        "4 values in a row as in training, got 3",
    ),
    "validation label": (lambda: MLP().fit(X, T, validation=(X, T + 1)), IndexError, "row 2 has label 3"),
    "resume alone": (lambda: MLP().fit(X, T, resume=True), ValueError, "need a file"),
    "checkpoint_every alone": (lambda: MLP().fit(X, T, checkpoint_every=3), ValueError, "need a file"),
    "not fitted": (lambda: MLP().predict(X), ValueError, "this MLP has no parameters yet"),
    "not fitted, loss": (lambda: SoftmaxRegression().loss_and_grads(X, T), ValueError, "this SoftmaxRegression has no"),
    "not fitted, params": (lambda: MLP().params, ValueError, "no parameters yet"),
    "other width": (lambda: MLP().fit(X, T, epochs=0).predict(X[:, :2]), ValueError, "4 values in a row .* got 2"),
    "later label": (
        lambda: SoftmaxRegression().partial_fit(X[:2], T[:2]).partial_fit(X, T),
        IndexError,
        "row 2 has label 2, expected 0 <= label < 2",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()


def test_refused_data_leave_a_trained_model_alone(rng):
    x, targets = blobs(rng)
    model = MLP((6,)).fit(x, targets, epochs=1)
    before, history = bits(model), model.history
    for bad in ((x, targets - 1), (x[:, :0], targets), (x, targets[:-1])):
        with pytest.raises((ValueError, IndexError)):
            model.partial_fit(*bad)
        with pytest.raises((ValueError, IndexError)):
            model.fit(*bad, validation=(x, targets))
    assert bits(model) == before
    assert model.history is history


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_threads_that_share_a_step_change_no_bit(rng, kind):
    """Batches of 128 x 784: gathered, multiplied and updated by several threads."""
    x = rng.integers(0, 256, (500, 784)).astype(kind)
    targets = rng.integers(0, 10, 500)
    params = []
    for n in (1, 2, 3, 8):
        with fs.num_threads(n):
            model = MLP(hidden=(100, 40), scale=1 / 255, seed=3).fit(x, targets, epochs=2)
        params.append(np.concatenate([p.ravel() for p in model.params]))
    assert np.isfinite(params[0]).all()
    for others in params[1:]:
        np.testing.assert_array_equal(others, params[0])


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64])
def test_labels_of_any_integer_type_train_alike(rng, kind):
    x, targets = rng.normal(size=(50, 6)), rng.integers(0, 3, 50)
    losses = [MLP(hidden=(8,), seed=1).fit(x, t, epochs=3).history.loss for t in (targets, targets.astype(kind))]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("i", "weight", "bias"), [(0, (6, 4000), 8), (0, (6, 8), 2), (1, (7, 3), 3), (1, (8, 3), 2)])
def test_layers_that_do_not_fit_are_refused_before_a_kernel_reads_beyond_them(rng, i, weight, bias):
    x, targets = rng.normal(size=(50, 6)), rng.integers(0, 3, 50)
    model = MLP(hidden=(8,), seed=1).fit(x, targets, epochs=1)
    model.layers[i].weight, model.layers[i].bias = np.zeros(weight, np.float32), np.zeros(bias, np.float32)
    for use in (model.loss_and_grads, model.partial_fit, model.score, lambda x, _: model.predict_proba(x)):
        with pytest.raises(ValueError, match=rf"layers\[{i}\] must have a weight"):
            use(x, targets)
