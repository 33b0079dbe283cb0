"""Puts Python functions in the place of CuPy's wrappers of the CUDA runtime and driver.

CuPy's Cython modules find each other's C functions in a table, ``__pyx_capi__``, when they are
imported. Each entry is a capsule whose name is the C signature. An entry is replaced by a small C
function, generated from that signature, that calls a Python function, so that Python exceptions
reach CuPy's callers as they do from the original.
"""

from __future__ import annotations

import atexit
import ctypes
import re
from collections.abc import Callable
from types import ModuleType

from .compile import build_library

# C type -> how PyObject_CallFunction packs it
PACKING = {
    "int": "i",
    "unsigned int": "I",
    "size_t": "n",
    "intptr_t": "n",
    "uintmax_t": "K",
    "CUdevice": "i",
    "cudaMemcpyKind": "i",
    "PyObject *": "O",
}
# What the original returns to say that an exception is set: its `except` clause, which the
# signature does not show.
ERROR_VALUE = {
    "int": "-1",
    "float": "0",
    "unsigned int": "0",
    "size_t": "0",
    "intptr_t": "0",
    "uintmax_t": "0",
}
ERROR_VALUE_OF = {"funcGetAttribute": "-2"}
# These work without a device.
KEEP = {"check_status", "runtimeGetVersion", "_getCUDAMajorVersion", "get_build_version"}

PROLOGUE = """
#include <stddef.h>
#include <stdint.h>
extern "C" {
typedef struct _object PyObject;
typedef int CUdevice;
typedef int cudaMemcpyKind;
extern PyObject _Py_NoneStruct;
void Py_IncRef(PyObject *);
void Py_DecRef(PyObject *);
PyObject *PyObject_CallFunction(PyObject *, const char *, ...);
long long PyLong_AsLongLong(PyObject *);
double PyFloat_AsDouble(PyObject *);
PyObject *functions[200];
int finished = 0;  // set at exit: objects that are destroyed later get harmless answers
static PyObject *none() { Py_IncRef(&_Py_NoneStruct); return &_Py_NoneStruct; }
static long long integer(PyObject *o) {
  long long v = PyLong_AsLongLong(o);
  Py_DecRef(o);
  return v;
}
static double real(PyObject *o) { double v = PyFloat_AsDouble(o); Py_DecRef(o); return v; }
"""

_api = ctypes.pythonapi
_api.PyCapsule_GetName.restype, _api.PyCapsule_GetName.argtypes = (
    ctypes.c_char_p,
    [ctypes.py_object],
)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_keep_alive: list = []


def replace(functions: dict[ModuleType, dict[str, Callable]]) -> None:
    """Replaces the functions in the modules' tables and namespaces.

    What has no stand-in raises an error.
    """
    entries = []
    for module, stand_ins in functions.items():
        for name, capsule in list(module.__pyx_capi__.items()):
            signature = _api.PyCapsule_GetName(capsule).decode()
            wrapper = _wrapper(len(entries), name, signature)
            if wrapper and name not in KEEP:
                entries.append(
                    (
                        module,
                        name,
                        signature,
                        wrapper,
                        stand_ins.get(name) or _missing(module, name),
                    )
                )
        for name, function in stand_ins.items():
            setattr(module, name, function)
    text = PROLOGUE + "".join(wrapper for _, _, _, wrapper, _ in entries) + "}\n"
    library = ctypes.CDLL(str(build_library(text, name="entry_points.so")))
    table = (ctypes.py_object * len(entries)).in_dll(library, "functions")
    for i, (module, name, signature, _, function) in enumerate(entries):
        table[i] = function
        setattr(module, name, function)
        c_name = signature.encode()
        address = ctypes.cast(getattr(library, f"wrapper_{i}"), ctypes.c_void_p)
        module.__pyx_capi__[name] = _api.PyCapsule_New(address, c_name, None)
        _keep_alive.append(c_name)
    _keep_alive.extend((library, table))
    atexit.register(lambda: setattr(ctypes.c_int.in_dll(library, "finished"), "value", 1))


def _missing(module: ModuleType, name: str) -> Callable:
    def missing(*_args):
        short = module.__name__.rpartition(".")[2]
        raise NotImplementedError(f"{short}.{name} is not provided by the CPU stand-in device")

    return missing


def _wrapper(number: int, name: str, signature: str) -> str:
    """The C function for a table entry; empty if that is no function, or has structs by value."""
    result, parenthesis, rest = signature.partition(" (" if " (" in signature else "(")
    types = [text.strip() for text in rest.rstrip(")").split(",") if text.strip() != "void"]
    given = [
        text for text in types if "__pyx_skip_dispatch" not in text and "__pyx_opt_args" not in text
    ]
    packing = [PACKING.get("PyObject *" if "__pyx_obj" in text else text) for text in given]
    is_object = result.endswith("*")
    if not parenthesis or None in packing or not (is_object or result in ERROR_VALUE):
        return ""
    declared = [
        "int" if "__pyx_skip_dispatch" in text else re.sub(r"struct \w+ \*.*", "PyObject *", text)
        for text in types
    ]
    c_result = "PyObject *" if is_object else result
    header = ", ".join(f"{text} a{i}" for i, text in enumerate(declared)) or "void"
    arguments = "".join(f", a{i}" for i in range(len(given)))
    call = f'PyObject_CallFunction(functions[{number}], "({"".join(packing)})"{arguments})'
    if is_object:
        body = f"return finished ? none() : {call};"
    else:
        convert = "real" if result == "float" else "integer"
        error = ERROR_VALUE_OF.get(name, ERROR_VALUE[result])
        body = (
            f"if (finished) return 0; PyObject *r = {call}; "
            f"if (!r) return {error}; return ({c_result}){convert}(r);"
        )
    return f"{c_result} wrapper_{number}({header}) {{ {body} }}\n"
