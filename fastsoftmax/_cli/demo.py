"""``demo``: a digit classifier trained, checked and timed in under a minute, with nothing but the package."""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np

from .. import get_num_threads
from ..datasets import load_digits
from ..gradcheck import GradientCheck, gradient_check
from ..models import MLP
from . import positive
from .bench import measure
from .building import TRAINING, build
from .table import progress, seconds, show

GOOD_ACCURACY = 0.97
MEASURED = (  # those of what is compared, besides
    "softmax_narrow",
    "cross_entropy_narrow",
    "cross_entropy_with_grad_narrow",
    "affine_backward",
    "affine_parts",
    "add_parts",
    "gather",
    "sgd_update",
)
NEEDED = [*((name, dtype) for name in TRAINING for dtype in ("float32", "float64")), *((name, "float32") for name in MEASURED)]
COMPARED = {
    "softmax": "8192x10",
    "cross_entropy_with_grad": "8192x10",
    "affine_backward": "128x784x100",
    "training_epoch": "12800x784x100x10",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=positive, default=30)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    x_train, y_train, x_test, y_test = load_digits()
    model = MLP(hidden=(100,), scale=1 / 16, seed=args.seed)
    compile_first()
    print(f"Training on {len(x_train)} handwritten digits (8x8), testing on {len(x_test)} others.")
    model.fit(x_train, y_train, epochs=args.epochs, batch_size=32, verbose=True)
    accuracy = model.score(x_test, y_test)
    print(f"test accuracy {accuracy:.2%} after {args.epochs} epochs, training loss {model.history.loss[-1]:.4f}")

    checked = check_gradient(x_train[:64], y_train[:64], args.seed)
    print(checked)
    print()
    print_comparison()
    return 0 if accuracy >= GOOD_ACCURACY and checked else 1


def compile_first() -> None:
    """Build what all of this needs, under a progress bar: with a cold cache that is most of the time this command takes."""
    start = perf_counter()
    build(NEEDED)
    print(f"Kernels ready in {perf_counter() - start:.1f} s (kept on disk for the next time).")


def check_gradient(x: np.ndarray, targets: np.ndarray, seed: int) -> GradientCheck:
    """Central differences of a whole network in float64."""
    model = MLP(hidden=(32,), scale=1 / 16, dtype="float64", seed=seed).fit(x, targets, epochs=1)
    return gradient_check(lambda params: model.loss_and_grads(x, targets), model.params, n_entries=50, seed=seed)


def print_comparison() -> None:
    """A small table beside plain NumPy, measured here and now."""
    names = ["fastsoftmax", "fastsoftmax_out", "numpy"]
    rows = []
    for op, shape in progress(COMPARED.items(), "measuring"):
        times, _ = measure(op, shape, "float32", get_num_threads(), names, 0.3)
        ours = min(times["fastsoftmax"], times.get("fastsoftmax_out", np.inf))
        rows.append([op, shape, seconds(ours), seconds(times["numpy"]), f"{times['numpy'] / ours:.1f}x"])
    show(["float32, medians", "shape", "fastsoftmax", "NumPy", "ratio"], rows, 2)
