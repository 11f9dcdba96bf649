"""Softmax and its relatives."""

from .common import SIZES, Found, Operation, parameters

FEW = ["1x10", "8192x10", "128x1000", "4096x4096"]


class Softmax(Operation):
    op = "softmax"
    params = parameters(op, SIZES)

    def setup_cache(self) -> Found:
        return self.measure()


class SoftmaxAxis0(Operation):
    """Features x samples: softmax down the columns of a C-ordered matrix. The sizes are samples x features."""

    op = "softmax_axis0"
    params = parameters(op, SIZES)

    def setup_cache(self) -> Found:
        return self.measure()


class LogSoftmax(Operation):
    op = "log_softmax"
    params = parameters(op, SIZES)

    def setup_cache(self) -> Found:
        return self.measure()


class Logsumexp(Operation):
    op = "logsumexp"
    params = parameters(op, FEW)

    def setup_cache(self) -> Found:
        return self.measure()


class SoftmaxBackward(Operation):
    op = "softmax_backward"
    params = parameters(op, SIZES)

    def setup_cache(self) -> Found:
        return self.measure()


class SoftmaxBackwardAxis0(Operation):
    """Features x samples, as `SoftmaxAxis0`."""

    op = "softmax_backward_axis0"
    params = parameters(op, SIZES)

    def setup_cache(self) -> Found:
        return self.measure()
