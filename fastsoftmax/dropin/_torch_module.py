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
    def forward(
        ctx: Any,
        input: Any,
        target: Any,
        weight: Any,
        need_grad: bool,
        ignore_index: int,
        reduction: str,
        smoothing: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(input, target, weight)
        ctx.options = options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
        arrays = _array(input), _array(target), _array(weight)
        if need_grad:
            loss, grad = dropin.cross_entropy_with_grad(*arrays, **options)
            ctx.grad = _tensor(grad, input.dtype)
        else:
            loss = dropin.cross_entropy(*arrays, **options)
        return torch.tensor(loss.item(), dtype=input.dtype) if loss.ndim == 0 else _tensor(loss, input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph=True: the result must not pass for a constant
            raise RuntimeError(
                "fastsoftmax's CrossEntropyLoss has no second derivative; use torch's for create_graph=True"
            )
        grad_input = grad_target = None
        if ctx.needs_input_grad[0]:
            # The kernel's gradient is handed on, scaled in place, once. A second backward through a retained graph must
            # not meet it again, since its receiver may have written to it, and computes it anew.
            grad_input, ctx.grad = ctx.grad, None
            if grad_input is None:
                input, target, weight = ctx.saved_tensors
                _, grad = dropin.cross_entropy_with_grad(_array(input), _array(target), _array(weight), **ctx.options)
                grad_input = _tensor(grad, input.dtype)
            if grad_loss.ndim:
                grad_input.mul_(grad_loss.unsqueeze(min(1, grad_input.ndim - 1)))
            elif grad_loss.item() != 1:  # loss.backward() itself needs no pass over the gradient
                grad_input.mul_(grad_loss)
        if ctx.needs_input_grad[1]:
            grad_target = _grad_target(*ctx.saved_tensors, grad_loss, ctx.options)
        return grad_input, grad_target, None, None, None, None, None


def _grad_target(
    input: Any, target: Any, weight: Any, grad_loss: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Gradient for probabilities: ``(smoothing - 1) * weight * log_probs * grad_loss``, divided by N for a mean."""
    class_dim = min(1, input.ndim - 1)
    log_probs = _tensor(dropin.log_softmax(_array(input), class_dim), target.dtype)
    if weight is not None:
        log_probs *= weight.reshape(-1, *(1,) * (input.ndim - class_dim - 1))
    n_rows = input.numel() // input.shape[class_dim] if options["reduction"] == "mean" else 1
    scale = grad_loss.unsqueeze(class_dim) if grad_loss.ndim else grad_loss
    return log_probs.mul_(scale * ((options["label_smoothing"] - 1) / n_rows))


def _tensor(array: Any, dtype: torch.dtype) -> torch.Tensor:
    """The array's memory as a tensor, converted where the dtype differs."""
    return torch.from_numpy(array).to(dtype)


def _array(tensor: torch.Tensor | None) -> Any:
    """The tensor's memory as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
