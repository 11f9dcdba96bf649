"""The training loop: steps, history, progress, early stopping, checkpoints, and what stops it."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays, _checkpoint
from ._batches import Batches
from ._program import Program, joined

if TYPE_CHECKING:
    from .models import Classifier

SNAPSHOT_EVERY = 64  # steps between copies of the weights known to be good: a copy costs a tenth of a step


@dataclass
class History:
    """What happened in training; lists have one entry for each completed epoch.

    Attributes
    ----------
    loss : list of float
        Mean training loss (cross-entropy, without the L2 penalty) over the epoch, while the weights were changing.
    val_loss, val_accuracy : list of float
        On the validation set after the epoch; empty without one.
    n_steps : int
        Steps of the optimizer, those of an unfinished epoch included.
    stopped : str
        Why training ended: ``"epochs"`` done, ``"patience"`` exhausted, ``"interrupt"`` by Ctrl-C; else empty.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    n_steps: int = 0
    stopped: str = ""


@dataclass
class Position:
    """Where a run stands.

    With the weights and the optimizer's state it is all that a resumed run needs: the order of an epoch's rows follows
    from the model's seed and the epoch's number alone.
    """

    epoch: int = 0
    row: int = 0  # rows of this epoch done
    loss_sum: float = 0.0  # over these rows
    best: float = -1.0  # validation accuracy
    best_epoch: int = 0


class Run:
    """One call of ``fit`` or ``partial_fit``."""

    def __init__(
        self,
        model: Classifier,
        x: NDArray,
        targets: NDArray,
        *,
        sample_weight: NDArray | None = None,
        class_weight: NDArray | None = None,
        batch_size: int,
        shuffle: bool,
        validation: tuple[NDArray, NDArray] | None = None,
        patience: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        self.model, self.targets = model, targets
        self.sample_weight, self.class_weight = sample_weight, class_weight
        self.batches = Batches(x, batch_size=batch_size, scale=model.scale, dtype=model.dtype)
        self.buffers = model._buffers(self.batches.batch_size)
        self._steps: dict[int, Step | None] = {}  # by the number of rows
        self.params, self.l2 = model.params, [model.l2, 0.0] * len(model.layers)  # the penalty is on weights, not biases
        self.shuffle, self.validation, self.patience = shuffle, validation, patience
        self.checkpoint, self.checkpoint_every = checkpoint is not None, checkpoint_every
        self._path = checkpoint or ""
        self.position = Position()
        self.best_params: list[NDArray] = []
        self._good: list[list[NDArray]] = []  # the weights known to be good, and the optimizer's slots for each
        self._good_steps = 0, 0  # the run's, and the optimizer's

    # ---- the loop --------------------------------------------------------------------------------------------

    def train(self, epochs: int, *, verbose: bool = False) -> None:
        history, position = self.model.history, self.position
        if history.stopped != "patience":
            history.stopped = ""
        n_rows = len(self.targets)
        # an exploding run overflows before its loss is NaN: that is reported below, once, and not as NumPy warnings
        with np.errstate(over="ignore", invalid="ignore"), _Interrupt() as interrupt, _Progress(verbose) as progress:
            progress.start(n_rows * epochs, n_rows * position.epoch + position.row)
            while position.epoch < epochs and not history.stopped:
                order = self._order()
                while position.row < n_rows and not interrupt.pending:
                    stop = min(position.row + self.batches.batch_size, n_rows)
                    rows = slice(position.row, stop) if order is None else order[position.row : stop]
                    self._step(rows, stop - position.row, progress)
                    if self.checkpoint and self.checkpoint_every and history.n_steps % self.checkpoint_every == 0:
                        self.save()
                if position.row == n_rows:
                    self._end_epoch(progress)
                if interrupt.pending:
                    history.stopped = history.stopped or "interrupt"
            history.stopped = history.stopped or "epochs"
            if self.checkpoint:
                self.save()
            if self.best_params:
                self._restore(self.best_params)

    def _order(self) -> NDArray | None:
        if not self.shuffle:
            return None
        return np.random.default_rng((self.model.seed, 1 + self.position.epoch)).permutation(len(self.targets))

    def _step(self, rows: NDArray | slice, n_rows: int, progress: _Progress) -> None:
        model, history, position = self.model, self.model.history, self.position
        keep_good = None if self._good and history.n_steps % SNAPSHOT_EVERY else self._keep_good
        if n_rows not in self._steps:  # the first is taken at once: to record it takes as long, and there may be no other
            self._steps[n_rows] = None
            x, loss = self._step_now(rows, keep_good)
        else:
            step = self._steps[n_rows] = self._steps[n_rows] or Step(self, n_rows)
            step.choose(rows)
            x, loss = step.x, step.run(keep_good)
        if not math.isfinite(loss):
            self._diverged(loss)
        history.n_steps += 1
        position.row += n_rows
        position.loss_sum += loss * n_rows
        if progress.due(n_rows):
            accuracy = model._accuracy(model._forward(x), self.targets[rows])
            progress.show(position, position.loss_sum / position.row, accuracy=accuracy)

    def _step_now(self, rows: NDArray | slice, keep_good: Callable[[], None] | None) -> tuple[NDArray, float]:
        """What a `Step` does, not recorded."""
        x, weight = self.batches.take(rows), None if self.sample_weight is None else self.sample_weight[rows]
        loss = self.model._loss_and_grads(x, self.targets[rows], weight, self.class_weight, self.buffers)()
        if math.isfinite(loss):
            if keep_good is not None:
                keep_good()
            self.model.optimizer.step(self.params, self.buffers.grads, self.l2)
        return x, loss

    def _end_epoch(self, progress: _Progress) -> None:
        model, history, position = self.model, self.model.history, self.position
        if not all(math.isfinite(p.sum()) or np.isfinite(p).all() for p in self.params):  # a sum may overflow
            self._diverged(math.nan)  # the epoch's last update did it: no loss has seen it yet
        loss = position.loss_sum / position.row
        history.loss.append(loss)
        position.epoch, position.row, position.loss_sum = position.epoch + 1, 0, 0.0
        if self.validation is None:
            progress.show(position, loss)
            return
        val_loss, val_accuracy = model._evaluate(*self.validation)
        history.val_loss.append(val_loss)
        history.val_accuracy.append(val_accuracy)
        progress.show(position, loss, val_accuracy=val_accuracy)
        if self.patience is None:
            return
        if val_accuracy > position.best:
            position.best, position.best_epoch = val_accuracy, position.epoch
            self.best_params = [p.copy() for p in self.params]
        elif position.epoch - position.best_epoch >= self.patience:
            history.stopped = "patience"

    # ---- weights kept for bad times --------------------------------------------------------------------------

    def _keep_good(self) -> None:
        """Copy the weights, which just gave a finite loss, and the optimizer's state."""
        optimizer = self.model.optimizer
        now = [self.params, *optimizer.slots]
        if len(self._good) != len(now):
            self._good = [[np.empty_like(a) for a in arrays] for arrays in now]
        for kept, arrays in zip(self._good, now):
            for mine, array in zip(kept, arrays):
                np.copyto(mine, array)
        self._good_steps = self.model.history.n_steps, optimizer.n_steps

    def _restore(self, params: list[NDArray]) -> None:
        for param, kept in zip(self.params, params):
            np.copyto(param, kept)

    def _diverged(self, loss: float) -> None:
        if self._good:
            params, *slots = self._good
            self._restore(params)
            self.model.optimizer.set_state(self._good_steps[1], slots)
        _arrays.loss_not_finite(loss, self.model.history.n_steps, self.model.optimizer.learning_rate, self._good_steps[0])

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What must be the same in a resumed run; of the arrays their checksums, of x, which may be huge, two rows'."""
        arrays = {
            "x": self.batches.x[[0, -1]],
            "targets": self.targets,
            "sample_weight": self.sample_weight,
            "class_weight": self.class_weight,
        }
        return {
            "n_rows": len(self.targets),
            "batch_size": self.batches.batch_size,
            "shuffle": self.shuffle,
            "patience": self.patience,
            **{name: None if a is None else zlib.crc32(np.ascontiguousarray(a).data) for name, a in arrays.items()},
        }

    def save(self) -> None:
        meta, arrays = self.model._to_file()
        meta["run"] = {
            "settings": self._settings(),
            "position": asdict(self.position),
            "history": asdict(self.model.history),
            "optimizer_steps": self.model.optimizer.n_steps,
        }
        for i, slots in enumerate(self.model.optimizer.slots):
            arrays.update({f"optimizer_{i}_{k}": slot for k, slot in enumerate(slots)})
        arrays.update({f"best_{i}": param for i, param in enumerate(self.best_params)})
        _checkpoint.write(self._path, meta, arrays)

    def resume(self) -> None:
        """Take the run up where the checkpoint left it."""
        path, model = self._path, self.model
        meta, arrays = _checkpoint.read(path)
        if "run" not in meta:
            _checkpoint.foreign(path, "a model without the state of a training run: nothing to resume")
        try:
            run = meta["run"]
            there, here = {**meta["model"], **run["settings"]}, {**model._to_file()[0]["model"], **self._settings()}
            position, history = Position(**run["position"]), History(**run["history"])
            optimizer_steps = int(run["optimizer_steps"])
        except (KeyError, TypeError, ValueError) as error:
            _checkpoint.foreign(path, f"damaged: {error!r}")
        different = [f"{k} is {there.get(k)!r} there, {here[k]!r} here" for k in here if there.get(k) != here[k]]
        if different:
            _checkpoint.foreign(path, f"written by another training run: {'; '.join(different)}")

        def expect(name: str, like: NDArray) -> NDArray:
            return _checkpoint.expect(path, arrays, name, like.shape, like.dtype)

        # all is read before anything is changed
        params = [expect(f"param_{i}", p) for i, p in enumerate(self.params)]
        n_slots = model.optimizer._n_slots
        slots = [[expect(f"optimizer_{i}_{k}", p) for k in range(n_slots)] for i, p in enumerate(params)]
        best = [expect(f"best_{i}", p) for i, p in enumerate(params)] if position.best_epoch else []
        self._restore(params)
        model.optimizer.set_state(optimizer_steps, slots)
        model.history, self.position, self.best_params = history, position, best


class Step:
    """A training step on so many rows, recorded part by part: to take it is to choose rows and to run it."""

    def __init__(self, run: Run, n_rows: int) -> None:
        model, buffers = run.model, run.buffers
        self._batches = run.batches
        targets = np.empty_like(run.targets[:n_rows])
        self._copied = [(run.targets, targets)]  # rows from the run's arrays into those that the calls were recorded with
        weight = None
        if run.sample_weight is not None:
            weight = np.empty_like(run.sample_weight[:n_rows])
            self._copied.append((run.sample_weight, weight))
        gather, forward, head, backward, update = self.parts = tuple(Program() for _ in range(5))
        self.x = run.batches.record(gather, n_rows)
        inputs = model._hidden(self.x, buffers, forward)
        self.loss = model._head(inputs[-1], targets, weight, run.class_weight, buffers, head)
        model._backward(inputs, buffers, backward)
        self.advance = model.optimizer.record(update, run.params, buffers.grads, run.l2)
        self._gradients, self._update, self._whole = joined(*self.parts[:-1]), update, joined(*self.parts)

    def choose(self, rows: NDArray | slice) -> None:
        """The next step is about these."""
        self._batches.choose(rows)
        for array, copy in self._copied:
            copy[:] = array[rows]

    def run(self, keep_good: Callable[[], None] | None) -> float:
        """The loss; `keep_good` is called between a finite one and the update of the weights that gave it."""
        if keep_good is None:
            self.advance()
            self._whole.run()
            return self.loss()
        self._gradients.run()
        loss = self.loss()
        if math.isfinite(loss):
            keep_good()
            self.advance()
            self._update.run()
        return loss


class _Interrupt:
    """Ctrl-C waits until the batch is done and the books are kept; a second one does not wait.

    On leaving, the signal is raised again under the handler that was there before, so nothing swallows it. Signals
    reach the main thread only: elsewhere there is nothing to do.
    """

    def __init__(self) -> None:
        self.pending = False
        self._previous: Any = None

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._previous = signal.signal(signal.SIGINT, self._first)
        return self

    def _first(self, *_: Any) -> None:
        self.pending = True
        signal.signal(signal.SIGINT, self._previous)

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if self.pending and error is None:
                signal.raise_signal(signal.SIGINT)


class _Progress:
    """A tqdm bar over rows, where tqdm is installed and the user wants it; else nothing."""

    INTERVAL = 0.1  # seconds between updates

    def __init__(self, verbose: bool) -> None:
        self._tqdm: Any = None
        self._bar: Any = None
        self._rows = 0
        self._shown = 0.0
        if verbose:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._tqdm = tqdm

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, n_rows: int, done: int) -> None:
        if self._tqdm is not None:
            self._bar = self._tqdm(total=n_rows, initial=done, unit=" rows", unit_scale=True, desc="training")

    def due(self, n_rows: int) -> bool:
        """Count rows; true when it is time to show them."""
        self._rows += n_rows
        return self._bar is not None and time.perf_counter() - self._shown > self.INTERVAL

    def show(self, position: Position, loss: float, **figures: float) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {position.epoch + (position.row > 0)}", refresh=False)
            self._bar.set_postfix({"loss": f"{loss:.4f}", **{k: f"{v:.4f}" for k, v in figures.items()}}, refresh=False)
            self._bar.update(self._rows)
            self._rows, self._shown = 0, time.perf_counter()
