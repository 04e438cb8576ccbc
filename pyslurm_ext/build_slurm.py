"""Builds `pyslurm_ext._slurm`: slurm_ext.c against the headers and the library of the Slurm that is installed."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

ffibuilder = FFI()
ffibuilder.cdef(
    """
    struct ext_table { size_t rows, columns; int64_t *cells[32]; uint8_t gaps[32]; char *strings; size_t length; ...; };
    void ext_free(struct ext_table *);
    int ext_jobs(struct ext_table *, uint32_t, int64_t *);
    int ext_nodes(struct ext_table *, const char *, int64_t *);
    int ext_steps(struct ext_table *, uint32_t);
    int ext_partitions(struct ext_table *, int64_t *);
    int ext_update_nodes(const char *, int, const char *, uint32_t);
    int ext_requeue(uint32_t, int);
    int ext_comment(uint32_t, const char *);
    char *ext_expand(const char *, size_t *);
    char *ext_compress(const char *);
    int ext_version(void);
    int ext_init(char *, size_t);
    char *slurm_strerror(int);
    const char *ext_job_state(uint32_t);
    const char *ext_job_reason(int);
    void free(void *);
    #define ESLURM_ACCESS_DENIED ...
    #define SLURM_NO_CHANGE_IN_DATA ...
    #define ESLURM_USER_ID_MISSING ...
    #define ESLURM_INVALID_JOB_ID ...
    #define ESLURM_INVALID_NODE_NAME ...
    """
)
ffibuilder.set_source(
    "pyslurm_ext._slurm",
    '#include "slurm_ext.c"',
    include_dirs=[str(HERE)],
    libraries=["slurm"],
    # Without debugging information, so that where it was built is not in it.
    extra_compile_args=["-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-sign-compare"],
)
