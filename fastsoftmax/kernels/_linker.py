"""Machine code of kernels becomes functions that Python calls.

llvmlite is enough for that. A process whose kernels lie on the disk never imports numba, which would take most of its start.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding

# ---- names that kernels refer to, beside functions of Python and of the C library -----------------------------------------
NDARRAY, INTEGER, TUPLE = "fastsoftmax.ndarray", "fastsoftmax.int", "fastsoftmax.tuple"
NEW, SCALAR = "fastsoftmax.new", "fastsoftmax.scalar"


def _numpy_function(k: int) -> int:
    """The address of an entry of NumPy's table for extensions, found as they find it."""
    try:
        extension = importlib.import_module("numpy._core._multiarray_umath")
    except ModuleNotFoundError:  # NumPy 1.26.0
        extension = importlib.import_module("numpy.core._multiarray_umath")
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return (ctypes.c_void_p * (k + 1)).from_address(get(extension._ARRAY_API, None))[k]


for _name, _address in {
    NDARRAY: id(np.ndarray),
    INTEGER: id(int),
    TUPLE: id(tuple),
    NEW: _numpy_function(93),  # PyArray_New
    SCALAR: _numpy_function(76),  # PyArray_Return
    "_Py_NoneStruct": id(None),
    # By these names Python has the addresses of the exceptions' addresses; numba means the exceptions, and adds the same.
    "PyExc_TypeError": id(TypeError),
    "PyExc_RuntimeError": id(RuntimeError),
}.items():
    binding.add_symbol(_name, _address)


def symbol(name: str) -> str:
    """What a kernel's C function for a dtype (its name: `_cache.name_of`) is called in the machine code."""
    return f"fastsoftmax.{name}"


def link(code: bytes, name: str) -> Callable[..., Any]:
    """The function of that name in an object file's content."""
    engine = _engine()
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return callable_at(engine.get_function_address(symbol(name)), name, engine)


def _engine() -> Any:
    """One for each kernel: what two kernels call by the same name does not meet."""
    _initialize()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(jit=True)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


@cache
def _initialize() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


# ---- a C function as a Python object -------------------------------------------------------------------------------------
class _Definition(ctypes.Structure):
    """Python's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    )  # fmt: skip


_FASTCALL = 0x80  # arguments as an address and a number: no tuple is made
_make = ctypes.pythonapi.PyCFunction_NewEx
_make.restype, _make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)


def callable_at(address: int, name: str, library: Any) -> Callable[..., Any]:
    """What calls the C function at `address`, and keeps the library that it is in."""
    definition = _Definition(name.encode(), address, _FASTCALL, None)
    return _make(ctypes.addressof(definition), (definition, library), None)
