"""What the processor that kernels are compiled for can do, asked of the code generator itself.

Not of numba's list of features: that is the host's, or empty, where NUMBA_CPU_NAME names another processor.
"""

from __future__ import annotations

import re

from llvmlite import binding
from numba.core import config
from numba.core.registry import cpu_target

_CODE = """
define <8 x i32> @add_integers(<8 x i32> %a, <8 x i32> %b) {
  %r = add <8 x i32> %a, %b
  ret <8 x i32> %r
}
define <16 x float> @multiply_add(<16 x float> %a, <16 x float> %b, <16 x float> %c) {
  %r = call <16 x float> @llvm.fmuladd.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %c)
  ret <16 x float> %r
}
declare <16 x float> @llvm.fmuladd.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""


def _assembly() -> str:
    codegen = cpu_target.target_context.codegen()
    module = binding.parse_assembly(_CODE)
    module.triple = codegen._tm.triple
    return str(codegen._tm.emit_assembly(module))


_assembly_text = _assembly()
FMA = re.search(r"\b(vfn?m(add|sub)|fml[as]|fn?m(add|sub))", _assembly_text) is not None
WIDE = "zmm" in _assembly_text  # vectors of 512 bits
PERMUTES = re.search(r"vpaddd\b.*ymm", _assembly_text) is not None  # AVX2, and with it permutations by a vector of indices
ZEN = (config.CPU_NAME or binding.get_host_cpu_name()).startswith("znver")  # measured apart where prefetching differs
