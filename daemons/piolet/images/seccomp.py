"""System calls that a program which reads foreign bytes has no use for, denied by a seccomp filter.

It closes what neither mount namespaces nor Landlock close: sockets of this machine (the image service's own, and
abstract ones), changes of modes, owners, times and attributes by name, signals and limits of other processes of the
same account, shared memory, keyrings, new namespaces, io_uring (which would make the calls in the filter's stead).
Two filters: the wide one for the image worker, the narrow one on top of it for each program that the worker starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_SECCOMP, _PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 1, 38, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGS = 0, 4, 16
_X32 = 0x40000000
_NAMESPACES = 0x7E020000
_INET, _INET6, _NETLINK = 2, 10, 16

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# name: its number on x86_64, on aarch64 (None: not there).
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setattr": (314, 274), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setaffinity": (203, 122),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "open_tree_attr": (467, 467), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97),
    "setns": (308, 268),
    # what Landlock does not govern: modes, owners, times and attributes of files, by name or by descriptor
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchownat": (260, 54), "fchown": (93, 55), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
    # who listens to a directory learns the names in it
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    # what belongs to the account, not to a process
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # large parts of the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "open_by_handle_at": (304, 265),
}  # fmt: skip
_MODES = ("chmod", "fchmodat", "fchmodat2")
# Denied to programs only: the worker ends the programs that it started, and they end with it.
_DENIED_TO_PROGRAMS: dict[str, tuple[int | None, int | None]] = {
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "setsid": (112, 157), "setpgid": (109, 154),
}  # fmt: skip
_SOCKET, _CLONE, _CLONE3, _FCHMOD = (41, 198), (56, 220), (435, 435), (91, 52)
_PRLIMIT, _PRCTL, _KILL_CALL, _TGKILL = (302, 261), (157, 167), (62, 129), (234, 131)
_Line = tuple[int, int, int, int]


def known() -> bool:
    """Return whether the filter is written for this machine's architecture."""
    return platform.machine() in _ARCHITECTURES


def deny(*, network: bool, modes: int = errno.EPERM) -> None:
    """Put the wide filter on this process and all that come from it; raises OSError.

    modes  what a change of a mode by name is answered with; 0: as if it were done
    """
    _install(_program(network=network, program=None, modes=modes))


def deny_program() -> None:
    """Put the narrow filter on this process, which is about to run a program; raises OSError."""
    _install(_program(network=True, program=os.getpid()))


def _program(*, network: bool, program: int | None, modes: int = errno.EPERM) -> list[_Line]:
    arch, column = _ARCHITECTURES[platform.machine()]
    lines: list[_Line] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if platform.machine() == "x86_64":
        lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    if program is None:
        for name, numbers in _DENIED.items():
            lines += _refuse(numbers[column], modes if name in _MODES else errno.EPERM)
        lines += _refuse(_CLONE3[column], errno.ENOSYS)  # libc then calls clone, whose flags can be seen
        # Answered as if it were done: skopeo opens each blob's file to all, and ends where it may not.
        lines += _refuse(_FCHMOD[column], 0)
        lines += _when(_CLONE[column], [(_LOAD, 0, 0, _ARGS), (_ANY_BIT, 0, 1, _NAMESPACES), _fail(errno.EPERM)])
        allowed = (_INET, _INET6, _NETLINK) if network else ()
        lines += _when(_SOCKET[column], [*_unless(0, *allowed), _fail(errno.EAFNOSUPPORT)])
        lines += _when(_PRLIMIT[column], [*_unless(0, 0), _fail(errno.EPERM)])
    else:
        for numbers in _DENIED_TO_PROGRAMS.values():
            lines += _refuse(numbers[column], errno.EPERM)
        for call in (_KILL_CALL, _TGKILL):
            lines += _when(call[column], [*_unless(0, program), _fail(errno.EPERM)])
        death = [(_LOAD, 0, 0, _ARGS), (_EQUAL, 0, 1, _PR_SET_PDEATHSIG), _fail(errno.EPERM)]
        lines += _when(_PRCTL[column], death)
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _fail(number: int) -> _Line:
    return (_RETURN, 0, 0, _ERRNO | number)


def _refuse(call: int | None, number: int) -> list[_Line]:
    return [] if call is None else [(_EQUAL, 0, 1, call), _fail(number)]


def _unless(argument: int, *values: int) -> list[_Line]:
    """Allow the call where the argument, its lower half, is one of `values`."""
    lines: list[_Line] = [(_LOAD, 0, 0, _ARGS + 8 * argument)]
    for value in values:
        lines += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return lines


def _when(call: int, lines: list[_Line]) -> list[_Line]:
    """Judge a call by `lines`; one that they let pass is allowed."""
    body = [*lines, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), call), *body]


def _install(lines: list[_Line]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    block = struct.pack("@HP", len(lines), ctypes.addressof(code))
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, block, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
