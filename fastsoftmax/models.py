"""Classifiers trained by mini-batches: softmax regression and the multi-layer perceptron.

Thin: the arithmetic is in `functional`, the loop in ``_training``, the files in ``_checkpoint``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _affine, _arrays, _checkpoint, optimizers
from . import functional as F
from ._arrays import NOTHING
from ._batches import Batches
from ._program import NOW, Caller
from ._threads import COST, in_order
from ._training import History, Run
from .kernels import KERNELS
from .layers import Affine

__all__ = ["MLP", "Classifier", "History", "SoftmaxRegression"]

Array = NDArray[np.floating]
Self = TypeVar("Self", bound="Classifier")

OPTIMIZERS = {"SGD": optimizers.SGD, "Adam": optimizers.Adam}  # what a file may name
PREDICT_ROWS = 1024  # rows scored at once: enough to keep the kernels busy, little enough to stay in cache


class Buffers(NamedTuple):
    """Room for a training step, which the steps of a run share."""

    activations: list[Array]  # of each hidden layer
    gradients: list[Array]  # for them
    grads: list[Array]  # of the parameters, in their order


class Classifier:
    """What `SoftmaxRegression` and `MLP` share: affine layers with ReLU between them, trained on cross-entropy."""

    def __init__(
        self,
        hidden: Sequence[int],
        *,
        optimizer: optimizers.Optimizer | None,
        l2: float,
        scale: float,
        n_classes: int | None,
        dtype: DTypeLike,
        seed: int | None,
    ) -> None:
        self.hidden = tuple(_arrays.count("hidden", n) for n in hidden)
        # On MNIST (784-100-10, 5 epochs in batches of 128, 2 to 5 seeds) momentum 0.9 with a learning rate of 0.02,
        # 0.05, 0.1, 0.15, 0.2 gave 96.6, 97.3, 97.6, 97.3, 97.2 % of test images right; Adam's best was 97.2 (0.002),
        # for dearer steps. On the digits 0.1 is as good as any.
        self.optimizer = (optimizer or optimizers.SGD(0.1, momentum=0.9)).fresh()
        self.l2 = _arrays.number("l2", l2, low=0.0)
        self.scale = _arrays.number("scale", scale)
        self.n_classes = None if n_classes is None else _arrays.count("n_classes", n_classes)
        self.dtype = _arrays.parameter_dtype(dtype)
        self.seed: Any = np.random.SeedSequence().entropy if seed is None else _arrays.count("seed", seed, low=0)
        self.layers: list[Affine] = []
        self.history = History()

    # ---- training --------------------------------------------------------------------------------------------

    def fit(
        self: Self,
        x: ArrayLike,
        targets: ArrayLike,
        *,
        epochs: int = 10,
        batch_size: int = 128,
        shuffle: bool = True,
        sample_weight: ArrayLike | None = None,
        class_weight: ArrayLike | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        patience: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
        verbose: bool = False,
    ) -> Self:
        """Train from the beginning.

        Parameters
        ----------
        x : array_like of shape (n_rows, ...)
            Integers or floats; further dimensions (images) are flattened row by row. It is neither copied nor converted
            as a whole: mini-batches are gathered, converted and multiplied by ``scale``.
        targets : array_like of shape (n_rows,) or (n_rows, n_classes)
            Class indices of any integer type, or probabilities.
        epochs : int
            Passes over the data.
        batch_size : int
            Rows in a step; the last of an epoch takes what is left.
        shuffle : bool
            Visit the rows in a new order in each epoch, given by ``seed`` and the epoch's number alone.
        sample_weight : array_like of shape (n_rows,), optional
        class_weight : array_like of shape (n_classes,), optional
            As in `cross_entropy`: the loss of a mini-batch is the weighted mean.
        validation : tuple (x, targets), optional
            Evaluated after each epoch into ``history.val_loss`` and ``history.val_accuracy``.
        patience : int, optional
            Early stopping: end after so many epochs without a better validation accuracy. The weights of the best epoch
            are kept, also if training ends otherwise.
        checkpoint : path, optional
            A file to which the whole state of the run is written: weights, optimizer, position, history. It is replaced
            atomically, and can be read by `load`.
        checkpoint_every : int, optional
            Steps between checkpoints; without it one is written at the end and at Ctrl-C only.
        resume : bool
            Continue from the file ``checkpoint`` if it exists (else start). The run ends with the very bits of one that
            was never stopped; ``epochs`` may have grown.
        verbose : bool
            Show a progress bar with the loss, the accuracy (of a mini-batch; at the end of an epoch, of the validation
            set) and rows per second. Needs tqdm; without it nothing is shown.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError, IndexError
            Unusable input, found before training starts.
        FloatingPointError
            The loss became NaN or infinite. The model keeps the last weights known to be good.
        OSError
            The checkpoint cannot be written; the message names it, and the previous one is intact.
        KeyboardInterrupt
            Ctrl-C: raised after the current batch, with the model usable, the history true, and a checkpoint written.
        """
        x, targets, sample_weight, n_classes = self._check_data(x, targets, sample_weight, None, self.n_classes)
        if validation is not None:
            validation = self._check_data(*validation, None, _arrays.row_size(x), n_classes)[:2]
        _arrays.early_stopping(patience, validation)
        _arrays.checkpointing(checkpoint, checkpoint_every, resume)
        epochs, batch_size = _arrays.count("epochs", epochs, low=0), _arrays.count("batch_size", batch_size)
        self._start(_arrays.row_size(x), n_classes)
        run = Run(
            self,
            x,
            targets,
            sample_weight=sample_weight,
            class_weight=_arrays.data_weights(class_weight, n_classes, "class_weight"),
            batch_size=batch_size,
            shuffle=bool(shuffle),
            validation=validation,
            patience=patience,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )
        if checkpoint is not None:
            if resume and os.path.exists(checkpoint):
                run.resume()
            _checkpoint.check_writable(checkpoint)
        run.train(epochs, verbose=verbose)
        return self

    def partial_fit(
        self: Self,
        x: ArrayLike,
        targets: ArrayLike,
        *,
        batch_size: int = 128,
        sample_weight: ArrayLike | None = None,
        class_weight: ArrayLike | None = None,
        verbose: bool = False,
    ) -> Self:
        """Train on from the present weights: one pass over the rows in the order given.

        For data that arrive in pieces, or that are larger than memory: ``x`` may be a memory-mapped file, which is read
        from front to back. The first call makes the parameters; give the constructor ``n_classes`` unless that call's
        targets hold the largest class.

        Parameters
        ----------
        x, targets, batch_size, sample_weight, class_weight, verbose
            As in `fit`.

        Returns
        -------
        self
        """
        n_in = self.n_in if self.layers else None
        x, targets, sample_weight, n_classes = self._check_data(
            x, targets, sample_weight, n_in, self.layers[-1].weight.shape[1] if self.layers else self.n_classes
        )
        batch_size = _arrays.count("batch_size", batch_size)
        if not self.layers:
            self._start(_arrays.row_size(x), n_classes)
        self.history.stopped = ""
        class_weight = _arrays.data_weights(class_weight, n_classes, "class_weight")
        run = Run(
            self,
            x,
            targets,
            sample_weight=sample_weight,
            class_weight=class_weight,
            batch_size=batch_size,
            shuffle=False,
        )
        run.train(1, verbose=verbose)
        return self

    def _check_data(
        self, x: ArrayLike, targets: ArrayLike, sample_weight: ArrayLike | None, n_in: int | None, n_classes: int | None
    ) -> tuple[NDArray, NDArray, NDArray | None, int]:
        x = _arrays.data_rows(x, n_in)
        targets, n_classes = _arrays.data_targets(targets, len(x), n_classes)
        return x, targets, _arrays.data_weights(sample_weight, len(x), "sample_weight"), n_classes

    def _start(self, n_in: int, n_classes: int) -> None:
        """New parameters, a fresh optimizer, an empty history."""
        sizes = (n_in, *self.hidden, n_classes)
        rng = np.random.default_rng((self.seed, 0))
        self.layers = [Affine.he(*pair, rng=rng, dtype=self.dtype) for pair in pairwise(sizes)]
        if not self.hidden:
            self.layers[0].weight[...] = 0  # the problem is convex: start where all classes are equal
        self.optimizer = self.optimizer.fresh()
        self.history = History()

    # ---- parameters and gradients ----------------------------------------------------------------------------

    @property
    def n_in(self) -> int:
        """Values in a row of ``x``."""
        return self._fitted()[0].weight.shape[0]

    @property
    def params(self) -> list[Array]:
        """The parameters themselves, not copies: ``[weight, bias]`` of each layer in turn."""
        return [param for layer in self._fitted() for param in (layer.weight, cast(Array, layer.bias))]

    def _fitted(self) -> list[Affine]:
        if not self.layers:
            _arrays.not_fitted(self)
        sizes = (*np.shape(self.layers[0].weight)[:1], *self.hidden, *np.shape(self.layers[-1].weight)[1:])
        for i, (layer, n_in, n_out) in enumerate(zip(self.layers, sizes, sizes[1:])):  # somebody may have put in others
            _arrays.layer_shapes(i, layer.weight, layer.bias, n_in, n_out)
        return self.layers

    def loss_and_grads(
        self,
        x: ArrayLike,
        targets: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        class_weight: ArrayLike | None = None,
    ) -> tuple[float, list[Array]]:
        """The objective that training lowers, L2 penalty included, and its gradients, laid out like ``params``.

        Examples
        --------
        >>> import numpy as np
        >>> from fastsoftmax import MLP, gradient_check
        >>> x, targets = np.eye(3), np.array([0, 1, 1])
        >>> model = MLP(hidden=(4,), dtype="float64").fit(x, targets, epochs=1)
        >>> bool(gradient_check(lambda params: model.loss_and_grads(x, targets), model.params))
        True
        """
        n_classes = self._fitted()[-1].weight.shape[1]
        x, targets, sample_weight, _ = self._check_data(x, targets, sample_weight, self.n_in, n_classes)
        class_weight = _arrays.data_weights(class_weight, n_classes, "class_weight")
        batch = Batches(x, batch_size=len(x), scale=self.scale, dtype=self.dtype).take(slice(None))
        buffers = self._buffers(len(x))
        loss = self._loss_and_grads(batch, targets, sample_weight, class_weight, buffers)()
        for layer, grad_weight in zip(self.layers, buffers.grads[::2]):
            loss += self.l2 / 2 * float(np.vdot(layer.weight, layer.weight))
            grad_weight += self.l2 * layer.weight
        return loss, buffers.grads

    def _buffers(self, n_rows: int) -> Buffers:
        """Room for training steps on up to so many rows."""
        activations, gradients = ([np.empty((n_rows, n), self.dtype) for n in self.hidden] for _ in range(2))
        shapes = [shape for layer in self.layers for shape in (layer.weight.shape, layer.weight.shape[1:])]
        return Buffers(activations, gradients, [np.empty(shape, self.dtype) for shape in shapes])

    def _loss_and_grads(
        self,
        x: Array,
        targets: NDArray,
        sample_weight: Array | None,
        class_weight: Array | None,
        buffers: Buffers,
        via: Caller = NOW,
    ) -> Callable[[], float]:
        """Loss and gradients of one mini-batch, without the penalty; the work of a training step.

        Everything was checked when the run began, so the layers go straight to the kernels. The gradients lie in
        ``buffers``; what is returned gives the loss.
        """
        inputs = self._hidden(x, buffers, via)
        loss = self._head(inputs[-1], targets, sample_weight, class_weight, buffers, via)
        self._backward(inputs, buffers, via)
        return loss

    def _hidden(self, x: Array, buffers: Buffers, via: Caller) -> list[Array]:
        """What goes into each layer: x, then the activations."""
        inputs = [via.plain(x, self.dtype)]
        for layer, activations in zip(self.layers, buffers.activations):
            inputs.append(_affine.affine(inputs[-1], *self._plain(layer, via), activations[: len(x)], relu=True, via=via))
        return inputs

    def _head(
        self,
        x: Array,
        targets: NDArray,
        sample_weight: Array | None,
        class_weight: Array | None,
        buffers: Buffers,
        via: Caller,
    ) -> Callable[[], float]:
        """The loss, and its gradients for what went into the last layer, for its weight and its bias."""
        layer, n_rows = self.layers[-1], len(x)
        grad_x = buffers.gradients[-1][:n_rows] if self.hidden else None
        grads = grad_x, *buffers.grads[-2:]
        plain = targets.dtype == np.int64 and sample_weight is None and class_weight is None and x.size
        if plain and layer.weight.shape[1] <= _affine.THIN:
            losses, parameters = np.empty(0, self.dtype), self._plain(layer, via)
            sums = _affine.thin_head(
                x, *parameters, targets, NOTHING, NOTHING, -1, 1.0, float(n_rows), losses, *grads, via=via
            )
            return lambda: in_order(sums) / n_rows
        loss = np.empty(1)

        def any_head() -> None:
            loss[0], new = F.linear_cross_entropy_with_grad(
                x,
                layer.weight,
                targets,
                layer.bias,
                class_weight=class_weight,
                sample_weight=sample_weight,
                need_grad_x=bool(self.hidden),
            )
            for mine, grad in zip(grads, new):
                if mine is not None and grad is not None:
                    np.copyto(mine, grad)

        via.python(any_head)
        return lambda: float(loss[0])

    def _backward(self, inputs: list[Array], buffers: Buffers, via: Caller) -> None:
        """The gradients of the hidden layers' parameters."""
        for i in range(len(self.hidden) - 1, -1, -1):
            active, grad = inputs[i + 1], buffers.gradients[i][: len(inputs[0])]
            if i < len(self.hidden) - 1:
                behind = buffers.gradients[i + 1][: len(grad)]
                _affine.affine_grad_x(behind, self._plain(self.layers[i + 1], via)[0], grad, via=via)
            # ReLU's output is positive where its input is
            via.shares(KERNELS["relu_backward"][self.dtype], (grad, active, grad), grad.size, grad.size * COST)
            _affine.affine_grad_weight(grad, inputs[i], *buffers.grads[2 * i : 2 * i + 2], via=via)

    def _plain(self, layer: Affine, via: Caller) -> tuple[Array, Array]:
        """The layer's parameters as kernels take them, should somebody have put in arrays of another layout."""
        return via.plain(layer.weight, self.dtype), via.plain(cast(Array, layer.bias), self.dtype)

    # ---- prediction ------------------------------------------------------------------------------------------

    def _forward(self, x: Array) -> Array:
        """Scores of converted and scaled rows. It touches nothing in the model, so threads may share one."""
        *hidden, head = self.layers
        x = _arrays.contiguous(x, self.dtype)
        for layer in hidden:
            x = _affine.affine(x, *self._plain(layer, NOW), np.empty((len(x), layer.weight.shape[1]), self.dtype), relu=True)
        return F.affine(x, head.weight, head.bias)

    def _blocks(self, x: NDArray) -> Iterator[tuple[slice, Array]]:
        """(rows, scores) for a block of rows after the other."""
        batches = Batches(x, batch_size=PREDICT_ROWS, scale=self.scale, dtype=self.dtype)
        return ((rows, self._forward(batches.take(rows))) for rows in batches.slices())

    def decision_function(self, x: ArrayLike) -> Array:
        """The scores (logits), of shape (n_rows, n_classes)."""
        x = _arrays.data_rows(x, self.n_in)
        scores = np.empty((len(x), self.layers[-1].weight.shape[1]), self.dtype)
        for rows, block in self._blocks(x):
            scores[rows] = block
        return scores

    def predict_proba(self, x: ArrayLike) -> Array:
        """The probability of each class, of shape (n_rows, n_classes)."""
        scores = self.decision_function(x)
        return F.softmax(scores, out=scores)

    def predict(self, x: ArrayLike) -> NDArray[np.intp]:
        """The most probable class of each row: the largest score, no softmax needed."""
        x = _arrays.data_rows(x, self.n_in)
        labels = np.empty(len(x), np.intp)
        for rows, block in self._blocks(x):
            block.argmax(axis=1, out=labels[rows])
        return labels

    def score(self, x: ArrayLike, targets: ArrayLike) -> float:
        """The share of rows predicted right; of targets that are probabilities, the most probable class counts."""
        x, targets, *_ = self._check_data(x, targets, None, self.n_in, self.layers[-1].weight.shape[1])
        return self._evaluate(x, targets)[1]

    def _evaluate(self, x: NDArray, targets: NDArray) -> tuple[float, float]:
        """Mean loss and accuracy over a data set."""
        loss = right = 0.0
        for rows, scores in self._blocks(x):
            loss += F.cross_entropy(scores, targets[rows], reduction="sum")
            right += self._accuracy(scores, targets[rows]) * len(scores)
        return loss / len(x), right / len(x)

    @staticmethod
    def _accuracy(scores: Array, targets: NDArray) -> float:
        return float(np.mean(scores.argmax(axis=1) == (targets if targets.ndim == 1 else targets.argmax(axis=1))))

    # ---- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a ``.npz`` file of numbers and text, without pickle.

        The file is replaced atomically. The optimizer's settings are kept, its state is not: that, and the position in
        a run, are what ``fit(checkpoint=...)`` writes.

        Raises
        ------
        OSError
            The file cannot be written; the message names it, and a previous file is intact.
        """
        _checkpoint.write(path, *self._to_file())

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str]) -> Self:
        """Read a model that `save` wrote, or the weights of a checkpoint.

        Raises
        ------
        OSError
            The file is missing or unreadable.
        ValueError
            It is truncated, damaged, or not a model of this class; the message names it. Nothing in it is executed.
        """
        meta, arrays = _checkpoint.read(path)
        settings = meta.get("model")
        if not isinstance(settings, dict) or settings.get("class") != cls.__name__:
            _checkpoint.foreign(path, f"expected a {cls.__name__}, got {settings and settings.get('class')}")
        model = cls.__new__(cls)
        try:
            optimizer = dict(settings["optimizer"])
            Classifier.__init__(
                model,
                settings["hidden"],
                optimizer=OPTIMIZERS[optimizer.pop("class")](**optimizer),
                **{key: settings[key] for key in ("l2", "scale", "n_classes", "dtype", "seed")},
            )
            sizes = [_arrays.count("size", n) for n in settings["sizes"]]
        except (KeyError, TypeError, ValueError) as error:
            _checkpoint.foreign(path, f"damaged: {error!r}")
        if tuple(sizes[1:-1]) != model.hidden:
            _checkpoint.foreign(path, f"damaged: hidden layers {model.hidden}, but sizes {sizes}")
        for i, shape in enumerate(pairwise(sizes)):
            weight = _checkpoint.expect(path, arrays, f"param_{2 * i}", shape, model.dtype)
            bias = _checkpoint.expect(path, arrays, f"param_{2 * i + 1}", shape[1:], model.dtype)
            model.layers.append(Affine(weight, bias))
        return model

    def _to_file(self) -> tuple[dict[str, Any], dict[str, Array]]:
        sizes = [self.n_in] + [layer.weight.shape[1] for layer in self.layers]
        optimizer = {"class": type(self.optimizer).__name__, **self.optimizer.settings()}
        settings = {key: getattr(self, key) for key in ("l2", "scale", "n_classes", "seed")}
        settings |= {"class": type(self).__name__, "dtype": self.dtype.name, "hidden": list(self.hidden)}
        settings |= {"sizes": sizes, "optimizer": optimizer}
        return {"model": settings}, {f"param_{i}": param for i, param in enumerate(self.params)}


class SoftmaxRegression(Classifier):
    """Multinomial logistic regression: one affine layer and softmax, trained by mini-batches.

    It minimises the mean cross-entropy of ``x @ weight + bias`` plus ``l2 / 2 * sum(weight**2)``.

    Parameters
    ----------
    optimizer : SGD or Adam, optional
        Its settings are used, the object itself is not. Default ``SGD(0.1, momentum=0.9)``.
    l2 : float, default 0.0
        Penalty on the weights, not on the biases.
    scale : float, default 1.0
        Multiplies ``x``, in training and prediction: ``1/255`` for uint8 images.
    n_classes : int, optional
        Default: inferred from the first targets, as the largest label + 1.
    dtype : {"float32", "float64"}
        Of the parameters and of all computations.
    seed : int or None, default 0
        Gives the order of the mini-batches. The same seed, data and settings give the same bits. None: a new seed.

    Attributes
    ----------
    history : History
        Losses and validation accuracies by epoch.
    layers : list of Affine
        The parameters (empty before training); ``params`` lists the arrays.
    optimizer : SGD or Adam
        The model's own, with its state. ``learning_rate`` may be changed between calls of ``partial_fit``.

    Examples
    --------
    >>> from fastsoftmax import SoftmaxRegression
    >>> from fastsoftmax.datasets import load_digits
    >>> x_train, y_train, x_test, y_test = load_digits()
    >>> model = SoftmaxRegression(scale=1 / 16).fit(x_train, y_train, epochs=20)
    >>> model.score(x_test, y_test) > 0.93
    True
    """

    def __init__(
        self,
        *,
        optimizer: optimizers.Optimizer | None = None,
        l2: float = 0.0,
        scale: float = 1.0,
        n_classes: int | None = None,
        dtype: DTypeLike = "float32",
        seed: int | None = 0,
    ) -> None:
        super().__init__((), optimizer=optimizer, l2=l2, scale=scale, n_classes=n_classes, dtype=dtype, seed=seed)


class MLP(Classifier):
    """A multi-layer perceptron: affine layers with ReLU between them, then softmax, trained by mini-batches.

    It minimises the mean cross-entropy plus ``l2 / 2`` times the sum of all squared weights. Weights start normal with
    variance ``2 / n_in`` (He et al. 2015), biases at 0.

    Parameters
    ----------
    hidden : sequence of int, default (100,)
        Sizes of the hidden layers.
    optimizer, l2, scale, n_classes, dtype
        As in `SoftmaxRegression`.
    seed : int or None, default 0
        Gives the first weights and the order of the mini-batches. The same seed, data and settings give the same bits.
        None: a new seed.

    Attributes
    ----------
    history, layers, optimizer
        As in `SoftmaxRegression`.

    Examples
    --------
    >>> from fastsoftmax import MLP
    >>> from fastsoftmax.datasets import load_digits
    >>> x_train, y_train, x_test, y_test = load_digits()
    >>> model = MLP(hidden=(100,), scale=1 / 16).fit(x_train, y_train, epochs=20)
    >>> model.score(x_test, y_test) > 0.97
    True
    """

    def __init__(
        self,
        hidden: Sequence[int] = (100,),
        *,
        optimizer: optimizers.Optimizer | None = None,
        l2: float = 0.0,
        scale: float = 1.0,
        n_classes: int | None = None,
        dtype: DTypeLike = "float32",
        seed: int | None = 0,
    ) -> None:
        super().__init__(hidden, optimizer=optimizer, l2=l2, scale=scale, n_classes=n_classes, dtype=dtype, seed=seed)
