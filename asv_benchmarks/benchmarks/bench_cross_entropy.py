"""The loss by rows, and the mean loss with its gradient."""

from .common import SIZES, Found, Operation, parameters

FEW = ["1x10", "8192x10", "128x1000", "4096x4096"]


class CrossEntropy(Operation):
    op = "cross_entropy"
    params = parameters(op, FEW)

    def setup_cache(self) -> Found:
        return self.measure()


class SmoothedCrossEntropyWithGrad(Operation):
    """With label smoothing of 0.1."""

    op = "smoothed_cross_entropy_with_grad"
    params = parameters(op, FEW)

    def setup_cache(self) -> Found:
        return self.measure()


class CrossEntropyWithGrad(Operation):
    op = "cross_entropy_with_grad"
    params = parameters(op, SIZES)

    def setup_cache(self) -> Found:
        return self.measure()
