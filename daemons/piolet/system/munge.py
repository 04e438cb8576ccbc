"""MUNGE: who said this, and where, as the cluster's munged vouches for it. By cffi, in ABI mode, on libmunge.so.2.

A credential holds a payload; munged adds the uid and gid of whoever asked for it, the address of its host and the time.
One that is decoded a second time within its life is a replay, which munged of that host refuses.
Options and errors are those of munge.h of MUNGE 0.5.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from piolet._munge import ffi
from piolet.base.errors import PioletError

UID_ANY = 2**32 - 1
CREDENTIAL_MAX = 8 << 10

_TTL, _ADDR4, _ENCODED, _DECODED, _SOCKET, _FOR_UID = 4, 5, 6, 7, 8, 9
_SUCCESS, _SOCKET_ERROR, _TIMEOUT, _EXPIRED, _REWOUND, _REPLAYED, _UNAUTHORIZED = 0, 6, 7, 15, 16, 17, 18


class MungeError(PioletError):
    """There is no MUNGE here, or it does not vouch for a credential."""


class ReplayError(MungeError):
    """Somebody showed this credential before."""


@dataclass(frozen=True)
class Credential:
    """What munged says of a credential.

    address   IPv4 address of the host that encoded it, '0.0.0.0' where that has none
    encoded   when, in seconds since 1970 by that host's clock; decoded by this one's
    for_uid   who alone may decode it; UID_ANY: everybody
    late      it was decoded outside its life: replays are not noticed then, and the clocks may differ
    """

    payload: bytes
    uid: int
    gid: int
    address: str
    encoded: int
    decoded: int
    for_uid: int
    late: bool = False


def encode(payload: bytes, for_uid: int = UID_ANY, ttl_s: int = 0, socket: str = "") -> str:
    """Return a credential of this process for `payload`, which only `for_uid` may decode.

    ttl_s   how long it lives; 0: as munged is set up
    socket  munged's; '': the usual one

    Raises MungeError.
    """
    _, lib = _library()
    with _Context(socket) as context:
        context.set(_FOR_UID, ffi.cast("uint32_t", for_uid))
        context.set(_TTL, ffi.cast("int", ttl_s))
        out = ffi.new("char **")
        status = lib.munge_encode(out, context.pointer, payload, len(payload))
        try:
            if status != _SUCCESS:
                raise _error(status, context, "no credential was made")
            text: bytes = ffi.string(out[0])
            return text.decode("ascii")
        finally:
            lib.free(out[0])


def decode(credential: str, socket: str = "", late: bool = False) -> Credential:
    """Return what is in a credential that this process may decode.

    late   return one that is outside its life, too, with `late` set: whoever asks for that knows by another means
           that it is no replay

    Raises ReplayError: it was decoded before. MungeError: munged does not vouch for it, or is not there.
    """
    if len(credential) > CREDENTIAL_MAX or not credential.isascii() or "\0" in credential:
        raise MungeError("a MUNGE credential is malformed")
    _, lib = _library()
    with _Context(socket) as context:
        out, size = ffi.new("void **"), ffi.new("int *")
        uid, gid = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        status = lib.munge_decode(credential.encode("ascii"), context.pointer, out, size, uid, gid)
        try:
            if status != _SUCCESS and not (late and status in (_EXPIRED, _REWOUND)):
                raise _error(status, context, "a MUNGE credential was refused")
            payload = bytes(ffi.buffer(out[0], size[0])) if out[0] else b""
            address = bytes(ffi.buffer(context.get(_ADDR4, "unsigned char[4]"), 4))
            return Credential(
                payload, uid[0], gid[0], ".".join(map(str, address)), context.get(_ENCODED, "int64_t *")[0],
                context.get(_DECODED, "int64_t *")[0], context.get(_FOR_UID, "uint32_t *")[0], status != _SUCCESS,
            )  # fmt: skip
        finally:
            lib.free(out[0])


def _error(status: int, context: _Context, what: str) -> MungeError:
    _, lib = _library()
    text = lib.munge_ctx_strerror(context.pointer) or lib.munge_strerror(status)
    why = ffi.string(text).decode("utf-8", "replace") if text else f"error {status}"
    if status in (_SOCKET_ERROR, _TIMEOUT):
        return MungeError(f"MUNGE does not answer: {why}", "is munged running here? systemctl status munge")
    if status == _REPLAYED:
        return ReplayError(f"{what}: it was shown before")
    hints = {
        _EXPIRED: "compare the clocks of both machines",
        _REWOUND: "compare the clocks of both machines",
        _UNAUTHORIZED: "it is for another account; accounts have the same numbers on all machines of a cluster",
    }
    return MungeError(f"{what}: {why}", hints.get(status))


class _Context:
    """One libmunge context, for one call."""

    def __init__(self, socket: str) -> None:
        self._ffi, self._lib = _library()
        self.pointer = self._lib.munge_ctx_create()
        if not self.pointer:
            raise MungeError("there is no memory for a MUNGE credential")
        self._text = self._ffi.new("char[]", socket.encode())
        if socket:
            self.set(_SOCKET, self._text)

    def __enter__(self) -> _Context:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.munge_ctx_destroy(self.pointer)

    def set(self, option: int, value: Any) -> None:
        status = self._lib.munge_ctx_set(self.pointer, option, value)
        if status != _SUCCESS:
            raise _error(status, self, "MUNGE does not take an option")

    def get(self, option: int, kind: str) -> Any:
        value = self._ffi.new(kind)
        status = self._lib.munge_ctx_get(self.pointer, option, value)
        if status != _SUCCESS:
            raise _error(status, self, "MUNGE does not tell what is in a credential")
        return value


@functools.cache
def _library() -> tuple[Any, Any]:
    try:
        return ffi, ffi.dlopen("libmunge.so.2")
    except OSError:
        raise MungeError("libmunge.so.2 is not here", "install MUNGE, or use certificates: docs/central.md") from None
