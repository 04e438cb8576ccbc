"""Makes `piolet._munge`, the declarations of libmunge's functions (munge.h of MUNGE 0.5).

An out-of-line module in ABI mode, as that of wire.h: a node's forwarder keeps no C parser in its memory.
"""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef("""
    typedef struct munge_ctx *munge_ctx_t;
    int munge_encode(char **, munge_ctx_t, const void *, int);
    int munge_decode(const char *, munge_ctx_t, void **, int *, uint32_t *, uint32_t *);
    munge_ctx_t munge_ctx_create(void);
    void munge_ctx_destroy(munge_ctx_t);
    const char *munge_ctx_strerror(munge_ctx_t);
    const char *munge_strerror(int);
    int munge_ctx_get(munge_ctx_t, int, ...);
    int munge_ctx_set(munge_ctx_t, int, ...);
    void free(void *);
""")
ffibuilder.set_source("piolet._munge", None)

if __name__ == "__main__":
    import sys

    ffibuilder.emit_python_code(sys.argv[1])
