"""The affine layer, the classifier head in one pass, and an epoch of training."""

from .common import AFFINE_SIZES, Found, Operation, parameters


class Affine(Operation):
    op = "affine"
    params = parameters(op, AFFINE_SIZES)

    def setup_cache(self) -> Found:
        return self.measure()


class AffineBackward(Operation):
    op = "affine_backward"
    params = parameters(op, AFFINE_SIZES)

    def setup_cache(self) -> Found:
        return self.measure()


class LinearCrossEntropyWithGrad(Operation):
    """All three gradients: a head that stands on other layers."""

    op = "linear_cross_entropy_with_grad"
    params = parameters(op, ["128x784x10"])

    def setup_cache(self) -> Found:
        return self.measure()


class LinearCrossEntropyWithGradLarge(Operation):
    """A language model's head. Seconds a call, and plain NumPy needs a gigabyte for the logits: all cores, float32."""

    op = "linear_cross_entropy_with_grad"
    params = parameters(op, ["4096x512x32000"], ["float32"], [2])

    def setup_cache(self) -> Found:
        return self.measure()


class LinearCrossEntropyGradWeight(Operation):
    """A first layer: nobody needs the gradient of the data."""

    op = "linear_cross_entropy_grad_weight"
    params = parameters(op, ["128x784x10", "60000x784x10"])

    def setup_cache(self) -> Found:
        return self.measure()


class TrainingEpoch(Operation):
    """An epoch of MNIST's size, 784-100-10, batches of 128, plain SGD."""

    op = "training_epoch"
    params = parameters(op, ["60000x784x100x10"], ["float32"])

    def setup_cache(self) -> Found:
        return self.measure()
