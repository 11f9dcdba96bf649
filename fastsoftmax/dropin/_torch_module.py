"""`CrossEntropyLoss` for CPU tensors, imported by `fastsoftmax.dropin.torch` when asked for: it needs torch."""

from __future__ import annotations

from typing import Any

import torch

from fastsoftmax.dropin import torch as dropin

__all__ = ["CrossEntropyLoss"]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` for tensors in CPU memory: same parameters, same results, one fused kernel call.

    The kernel reads the tensors' own memory and computes the gradient with the loss, if one will be needed;
    ``backward`` only scales it. Gradients flow to the logits and to target probabilities, not to ``weight``; there is
    no second derivative (``create_graph=True`` raises). bfloat16 tensors are computed in float32.

    Examples
    --------
    >>> loss = CrossEntropyLoss(label_smoothing=0.1)  # doctest: +SKIP
    >>> loss(model(x), y).backward()  # doctest: +SKIP
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of logits (C,), (N, C) or (N, C, d1, ..., dK) and class indices or probabilities."""
        options = (self.ignore_index, self.reduction, self.label_smoothing)
        need_grad = torch.is_grad_enabled() and input.requires_grad
        return _FusedCrossEntropy.apply(input, target, self.weight, need_grad, *options)


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Any, target: Any, weight: Any, need_grad: bool, *options: Any) -> torch.Tensor:
        ctx.options = options
        ctx.save_for_backward(input, target, weight)
        arrays = [_array(t) for t in (input, target, weight)]
        if need_grad:
            loss, grad = dropin.cross_entropy_with_grad(*arrays, *options)
            ctx.grad = torch.from_numpy(grad).to(input.dtype)
        else:
            ignore_index, reduction, smoothing = options
            loss = dropin.cross_entropy(
                *arrays, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
            )
        return torch.as_tensor(loss).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph=True: the result must not pass for a constant
            raise RuntimeError(
                "fastsoftmax's CrossEntropyLoss has no second derivative; use torch's for create_graph=True"
            )
        input, target, weight = ctx.saved_tensors
        class_dim = min(1, input.ndim - 1)
        scale = grad_loss if grad_loss.ndim == 0 else grad_loss.unsqueeze(class_dim)
        grad_input = grad_target = None
        if ctx.needs_input_grad[0]:
            # The kernel's gradient is handed on, scaled in place, once. A second backward through a retained graph must
            # not meet it again, since its receiver may have written to it, and computes it anew.
            grad, ctx.grad = ctx.grad, None
            if grad is None:
                arrays = [_array(t) for t in (input, target, weight)]
                grad = torch.from_numpy(dropin.cross_entropy_with_grad(*arrays, *ctx.options)[1]).to(input.dtype)
            grad_input = grad.mul_(scale)
        if ctx.needs_input_grad[1]:
            _, reduction, smoothing = ctx.options
            log_probs = torch.from_numpy(dropin.log_softmax(_array(input), class_dim)).to(target.dtype)
            if weight is not None:
                log_probs *= weight.reshape(-1, *(1,) * (input.ndim - class_dim - 1))
            n_rows = input.numel() // input.shape[class_dim] if reduction == "mean" else 1
            grad_target = log_probs.mul_(scale * ((smoothing - 1) / n_rows))
        return grad_input, grad_target, None, None, None, None, None


def _array(tensor: torch.Tensor | None) -> Any:
    """The tensor's memory as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
