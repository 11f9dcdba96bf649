"""Calls that go the long way, through Python, whatever their size."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

from fastsoftmax import functional
from fastsoftmax.kernels import ByWidth, Kernel


@contextmanager
def no_small_calls():
    """Kernels decline every small call, and are not asked for one; no matrix is small enough to be turned for one."""
    declines = property(lambda kernel: lambda *arguments: None, lambda kernel, function: None)
    with (
        mock.patch.object(Kernel, "small", declines, create=True),
        mock.patch.object(ByWidth, "small", declines, create=True),
        mock.patch.object(functional, "_small", return_value=None),
        mock.patch.object(functional, "_TURNED", 0),
    ):
        yield
