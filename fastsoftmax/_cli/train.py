"""``train``: a multi-layer perceptron on files in MNIST's format."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

import numpy as np

from ..datasets import load_mnist
from ..models import MLP, History
from . import fail, positive
from .building import TRAINING, build

HELD_OUT = 12
"""One training row in so many is kept back for the validation accuracy; the test set is looked at once, at the end."""

NEEDED = (*TRAINING, "affine_parts", "add_parts", "cross_entropy_narrow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the four files, plain or .gz")
    parser.add_argument("--hidden", type=positive, nargs="*", default=[100], metavar="N", help="sizes of the hidden layers")
    parser.add_argument("--epochs", type=positive, default=5)
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="model.npz", help="write the trained model")
    parser.add_argument("--plot", type=Path, metavar="curve.png", help="draw loss and accuracy (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        return fail("--plot needs matplotlib, which is not installed (pip install matplotlib)")
    for path in filter(None, (args.save, args.plot)):  # found out now and not after the training
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            return fail(f"cannot write {path}: expected a file in a folder that exists and is writable")
    try:
        x, y, x_test, y_test = load_mnist(args.data)
    except (OSError, ValueError) as error:
        return fail(_reason(error))

    if args.hidden:
        build((name, "float32") for name in NEEDED)
    held_out = np.arange(len(x)) % HELD_OUT == HELD_OUT - 1
    model = MLP(args.hidden, scale=1 / 255, n_classes=int(max(y.max(), y_test.max())) + 1, seed=args.seed)
    code = 0
    try:
        model.fit(
            x[~held_out],
            y[~held_out],
            epochs=args.epochs,
            batch_size=args.batch_size,
            validation=(x[held_out], y[held_out]),
            verbose=True,
        )
    except KeyboardInterrupt:
        code = fail("interrupted: what follows is the model as it stands", 130)
    for epoch, (loss, accuracy) in enumerate(zip(model.history.loss, model.history.val_accuracy), start=1):
        print(f"epoch {epoch}: loss {loss:.4f}, validation accuracy {accuracy:.2%}")
    print(f"test accuracy {model.score(x_test, y_test):.2%} on {len(x_test)} images")
    try:
        if args.save:
            model.save(args.save)
            print(f"saved {args.save}")
        if args.plot:
            plot(model.history, args.plot)
            print(f"drew {args.plot}")
    except OSError as error:
        return fail(_reason(error))
    return code


def plot(history: History, path: Path) -> None:
    """Loss and validation accuracy by epoch."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(6, 4), layout="constrained")
    loss_axes = figure.subplots()
    epochs = range(1, len(history.loss) + 1)
    loss_axes.plot(epochs, history.loss, "o-", color="tab:blue")
    loss_axes.set(xlabel="epoch", xticks=list(epochs))
    loss_axes.set_ylabel("training loss", color="tab:blue")
    accuracy_axes = loss_axes.twinx()
    accuracy_axes.plot(epochs, [100 * share for share in history.val_accuracy], "s-", color="tab:orange")
    accuracy_axes.set_ylabel("validation accuracy, %", color="tab:orange")
    figure.savefig(path, dpi=150)


def _reason(error: Exception) -> str:
    """``file: what is wrong`` without the error number."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
