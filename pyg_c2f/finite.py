"""Checks that stop at NaN or infinity."""

from collections.abc import Iterable

import torch
from torch import Tensor


class NotFiniteError(ArithmeticError):
    """A tensor holds NaN or infinity; the message names it."""


def check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Checks that tensors hold finite numbers only.

    It checks their sums first, which takes one pass over each tensor and one
    synchronization with the device. The error names the first that is not.
    """
    named = [(name, x.detach()) for name, x in tensors]
    if torch.stack([x.sum() for _, x in named]).isfinite().all():
        return
    for name, x in named:  # A sum of finite numbers may overflow, too.
        wrong = x[~x.isfinite()]
        if wrong.numel():
            raise NotFiniteError(f'{name} holds {float(wrong[0])}')


def check_step(loss: Tensor, model: torch.nn.Module) -> None:
    """Checks the loss of a step and its gradients, as :func:`check_finite` does."""
    gradients = (
        (f'the gradient of {name}', parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    )
    check_finite([('the loss', loss), *gradients])
