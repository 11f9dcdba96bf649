"""The compiler of what is only ever linked into other code: helpers, and the kernels behind their entries.

numba optimises every function alone, makes machine code of it, and does both again wherever it is linked in; only the last time
counts. Here a function is lowered and no more: all kernels took 75 s to build, and then 46, and the code is as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.dispatcher import Dispatcher


class _Part(JITCodeLibrary):
    """A library that is linked, never loaded. numba calls what is overridden; its own ways would do, only longer."""

    def _optimize_final_module(self) -> None:
        """Left to the code that it is linked into."""

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    @property
    def codegen(self) -> _Part:
        """Asked only to `set_env`."""
        return self

    def set_env(self, name: str, env: Any) -> None:
        """Nothing to set: it has no address."""


class PartCompiler(Compiler):
    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


# error_model "numpy": a division by zero gives inf or NaN, as in NumPy, and leaves no branch in the loop.
# fastmath stays off: it folds away the rounding tricks of the exponential and drops NaN; where a sum may be
# reassociated, the kernel says so at that sum. Not parallel: threads are `fastsoftmax._threads`' subject.
# Without its runtime, which counts references to arrays: kernels own none, and run where numba was not imported (`_linker`).
OPTIONS = {"error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# What entries are made of needs no machine code of its own.
PART = {**OPTIONS, "pipeline_class": PartCompiler}


def part(function: Callable[..., Any]) -> Dispatcher:
    """A function to be compiled, by ``compile(signature)``, and linked into others."""
    return njit(**PART)(function)
