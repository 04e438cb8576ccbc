"""libdcgm and the engine behind it: one for all steps of this process, from the first of them to the last.

The library counts no users: a second dcgmStartEmbedded gives no handle, and one dcgmShutdown ends every connection and
the embedded engine. So they are counted here. It is loaded with cffi in ABI mode: NVIDIA's own Python files are not
packaged, differ with every release, and build a Python object for each value. A host engine that runs is taken (TCP
5555, or root's socket), else an embedded one is started.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

from piolet.api import Unavailable

LIBRARIES = ("libdcgm.so.4", "libdcgm.so.3")
SOCKET = "/tmp/nv-hostengine"  # noqa: S108 - where nv-hostengine puts it; used only if it is root's

DECLARATIONS = """
typedef uintptr_t handle;
typedef struct { unsigned int version, persist, timeout_ms, is_unix; } connect_params;
typedef struct { unsigned int group, id; } entity;
typedef union { int64_t i64; double dbl; char str[256]; char blob[4096]; } value_of;
typedef struct {
    unsigned int version; unsigned short field, type; int status; int64_t ts; value_of value;
} value_v1;
typedef struct {
    unsigned int version, group, id; unsigned short field, type; int status; unsigned int unused; int64_t ts;
    value_of value;
} value_v2;
typedef int (*enumerate)(unsigned int group, unsigned int id, value_v1 *values, int count, void *data);
int dcgmInit(void);
int dcgmShutdown(void);
const char *errorString(int code);
int dcgmConnect_v2(const char *address, connect_params *params, handle *engine);
int dcgmDisconnect(handle engine);
int dcgmStartEmbedded(int mode, handle *engine);
int dcgmStopEmbedded(handle engine);
int dcgmGetAllDevices(handle engine, unsigned int ids[32], int *count);
int dcgmEntitiesGetLatestValues(handle engine, entity entities[], unsigned int entity_count, unsigned short fields[],
    unsigned int field_count, unsigned int flags, value_v2 values[]);
int dcgmGroupCreate(handle engine, int type, const char *name, handle *group);
int dcgmGroupAddEntity(handle engine, handle group, unsigned int entity_group, unsigned int id);
int dcgmGroupDestroy(handle engine, handle group);
int dcgmFieldGroupCreate(handle engine, int count, unsigned short *fields, const char *name, handle *group);
int dcgmFieldGroupDestroy(handle engine, handle group);
int dcgmWatchFields(handle engine, handle group, handle fields, long long us, double age_s, int samples);
int dcgmUnwatchFields(handle engine, handle group, handle fields);
int dcgmGetValuesSince_v2(handle engine, handle group, handle fields, long long since, long long *next,
    enumerate callback, void *data);
"""


class EngineError(Exception):
    """A call of DCGM failed."""


class Engine:
    """The library, and a handle of its engine. `source` says which, `simulated` is the mark of a simulator."""

    _shared: ClassVar[Engine | None] = None

    def __init__(self) -> None:
        try:
            self.ffi: Any = importlib.import_module("cffi").FFI()
        except ImportError:
            raise Unavailable("the Python module cffi is not installed") from None
        self.ffi.cdef(DECLARATIONS)
        self.lib, self.source = self._load()
        self.simulated = self._mark(self.source)
        self.handle: Any = None
        self._embedded = False
        self._users = 0

    @classmethod
    def join(cls) -> Engine:
        """Return the engine, which is started for its first user. Raises Unavailable, EngineError."""
        engine = cls._shared or cls()
        if cls._shared is None:
            engine._start()
            cls._shared = engine
        engine._users += 1
        return engine

    def leave(self) -> None:
        """End one use; the last one ends the engine, or the connection to it."""
        self._users -= 1
        if self._users == 0:
            Engine._shared = None
            (self.lib.dcgmStopEmbedded if self._embedded else self.lib.dcgmDisconnect)(self.handle)
            self.lib.dcgmShutdown()

    def check(self, code: int, what: str) -> None:
        """Raise EngineError if a call failed."""
        if code != 0:
            text = self.lib.errorString(code)
            raise EngineError(f"{what}: {self.ffi.string(text).decode() if text else code}")

    def _load(self) -> tuple[Any, str]:
        for name in LIBRARIES:
            try:
                return self.ffi.dlopen(name), name
            except OSError:
                continue
        raise Unavailable(f"neither {' nor '.join(LIBRARIES)} is there")

    def _mark(self, name: str) -> str:
        """Return the name of a simulator, which exports it for this purpose."""
        ffi = importlib.import_module("cffi").FFI()
        ffi.cdef("extern const char piolet_simulation[64];")
        try:
            return str(ffi.string(ffi.dlopen(name).piolet_simulation).decode())
        except AttributeError:
            return ""

    def _start(self) -> None:
        self.check(self.lib.dcgmInit(), "dcgmInit")
        try:
            self._connect()
        except EngineError:
            self.lib.dcgmShutdown()
            raise

    def _connect(self) -> None:
        engine = self.ffi.new("handle *")
        addresses = [("127.0.0.1:5555", 0)]
        if os.path.exists(SOCKET) and os.lstat(SOCKET).st_uid == 0:
            addresses.insert(0, (SOCKET, 1))
        for address, is_unix in addresses:
            size = self.ffi.sizeof("connect_params")
            params = self.ffi.new("connect_params *", [size | 2 << 24, 0, 1000, is_unix])
            if self.lib.dcgmConnect_v2(address.encode(), params, engine) == 0:
                self.handle = engine[0]
                self.source += f", host engine at {address}"
                return
        self.check(self.lib.dcgmStartEmbedded(1, engine), "no host engine answers, and dcgmStartEmbedded")
        self.handle, self._embedded = engine[0], True
        self.source += ", embedded engine"
