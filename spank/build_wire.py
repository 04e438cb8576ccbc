"""Makes `piolet._wire`, the Python side of wire.h: cffi's cdef reads the very same file.

An out-of-line module in ABI mode: no compiler is needed, and importing it costs no C parser.
"""

from pathlib import Path

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef(Path(__file__).with_name("wire.h").read_text("ascii"))
ffibuilder.set_source("piolet._wire", None)

if __name__ == "__main__":
    import sys

    ffibuilder.emit_python_code(sys.argv[1])
