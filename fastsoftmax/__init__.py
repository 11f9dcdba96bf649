"""fastsoftmax: softmax, cross-entropy and its gradient, and classifier heads, compiled for the CPU they run on."""

from .datasets import load_digits, load_mnist, read_idx
from .functional import (
    affine,
    affine_backward,
    cross_entropy,
    cross_entropy_grad_hess,
    cross_entropy_with_grad,
    get_num_threads,
    linear_cross_entropy,
    linear_cross_entropy_with_grad,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    num_threads,
    relu,
    relu_backward,
    set_num_threads,
    show_config,
    softmax,
    softmax_backward,
    warmup,
)
from .gradcheck import gradient_check
from .layers import Affine, ReLU, SoftmaxCrossEntropy
from .models import MLP, SoftmaxRegression
from .optimizers import SGD, Adam

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "SGD",
    "Adam",
    "Affine",
    "ReLU",
    "SoftmaxCrossEntropy",
    "SoftmaxRegression",
    "affine",
    "affine_backward",
    "cross_entropy",
    "cross_entropy_grad_hess",
    "cross_entropy_with_grad",
    "get_num_threads",
    "gradient_check",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "load_digits",
    "load_mnist",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "num_threads",
    "read_idx",
    "relu",
    "relu_backward",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_backward",
    "warmup",
]
