"""What the kernel takes from a process that is about to run a program nobody trusts: Landlock and seccomp, through ctypes.

Both hold for the process and all that comes from it, cannot be undone, and need no privilege. The filter lists what a program that
computes needs: memory, time, reading files, writing to what is open already. Everything else fails, whatever its arguments: processes,
threads, sockets, executing, opening for writing, signals to others, tracing, mounts, keys, io_uring, and what later kernels bring.

Sources: linux/landlock.h, linux/seccomp.h, linux/filter.h, the system call tables of x86_64 and of asm-generic (aarch64).
Standard library only: this file is also imported inside the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import stat
import struct
from collections.abc import Iterable

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CAPABILITY_VERSION_3 = 0x20080522
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
RULESET_VERSION, RULE_PATH_BENEATH = 1, 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Landlock's ABI → number of rights on files it knows (5 and later: 16); all that it knows is denied but reading."""
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine → AUDIT_ARCH_*: the other calling conventions of a machine (32 bit) have other numbers."""
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68), "lseek": (8, 62),
    "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "pause": (34, None),
    "restart_syscall": (219, 128), "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "futex": (202, 98), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179),
    "getrandom": (318, 278), "getrlimit": (97, 163), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
"""System call → its number on x86_64 and on aarch64 (None: it does not exist there)."""
CONDITIONAL: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261),
}  # fmt: skip
"""System calls that are allowed with some arguments; `conditions` says which."""
FIRST_RECENT = 434
"""From here on the numbers are the same everywhere, and libc falls back to older calls where the kernel says ENOSYS."""
OPEN_FOR_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: not F_SETOWN and F_SETSIG, which send signals, nor locks and leases."""
IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX."""

LOAD, AND, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
ALLOW, DENY, UNKNOWN, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
"""Offsets in struct seccomp_data."""
Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, operand."""


def check(result: int, what: str) -> int:
    """The result of a C function.

    Raises:
        OSError: it is -1.
    """
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent's thread has ended."""
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def give_up_privileges() -> None:
    """Nobody of the same user may look into this process; nothing that is executed gains rights; no capabilities."""
    check(LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")
    check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    check(LIBC.capset(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24)), "capset")


def landlock_abi() -> int:
    """Version of Landlock that this kernel has.

    Raises:
        OSError: none, or it is switched off.
    """
    return check(LIBC.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), RULESET_VERSION), "Landlock")


def restrict_files(readable: Iterable[str]) -> None:
    """Leave this process nothing but reading these files and what is below these folders.

    Raises:
        OSError: the kernel refuses, or a path does not exist.
    """
    rights = (1 << NUM_FILE_RIGHTS.get(landlock_abi(), 16)) - 1
    ruleset = check(LIBC.syscall(LANDLOCK_CREATE_RULESET, struct.pack("=Q", rights), ctypes.c_size_t(8), 0), "landlock_create_ruleset")
    for path in readable:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        is_folder = stat.S_ISDIR(os.fstat(beneath).st_mode)
        rule = struct.pack("=Qi", READ_FILE | (READ_DIR if is_folder else 0), beneath)
        check(LIBC.syscall(LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
        os.close(beneath)
    check(LIBC.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def system_call_filter(pid: int, machine: str) -> bytes:
    """The filter for the process `pid`, as an array of struct sock_filter.

    Raises:
        OSError: the machine's system calls are not known here.
    """
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine} (there are: {', '.join(ARCHITECTURES)})")
    column = list(ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT), (JUMP_IF_EQUAL, 1, 0, ARCHITECTURES[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT),
    ]  # fmt: skip
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            code += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for name, numbers in CONDITIONAL.items():
        if (number := numbers[column]) is not None:
            block = conditions(name, pid)
            code += [(JUMP_IF_EQUAL, 0, len(block) + 1, number), *block, (RETURN, 0, 0, DENY)]
    code += [(JUMP_IF_AT_LEAST, 0, 1, FIRST_RECENT), (RETURN, 0, 0, UNKNOWN), (RETURN, 0, 0, DENY)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def conditions(name: str, pid: int) -> list[Instruction]:
    """Instructions that allow a conditional call or fall through. Arguments are C ints: the lower half is what the kernel looks at."""
    if name in ("open", "openat"):
        flags = 2 if name == "openat" else 1
        return [argument(flags), (AND, 0, 0, OPEN_FOR_WRITING), (JUMP_IF_EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW)]
    if name in ("kill", "tgkill"):
        return [argument(0), (JUMP_IF_EQUAL, 0, 1, pid), (RETURN, 0, 0, ALLOW)]
    if name == "prlimit64":  # of itself (0), without new limits (a null pointer: both halves)
        zero = [(argument(0), 5), (argument(2), 3), (argument(2, upper=True), 1)]
        return [step for load, skip in zero for step in (load, (JUMP_IF_EQUAL, 0, skip, 0))] + [(RETURN, 0, 0, ALLOW)]
    allowed = FCNTL_COMMANDS if name == "fcntl" else IOCTL_REQUESTS
    return [argument(1), *(step for value in allowed for step in ((JUMP_IF_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)))]


def argument(number: int, upper: bool = False) -> Instruction:
    """Loads half of an argument (both machines are little-endian)."""
    return LOAD, 0, 0, ARGUMENTS_AT + 8 * number + 4 * upper


def filter_system_calls() -> None:
    """Install the filter for this process, for good.

    Raises:
        OSError: the kernel refuses, or has no filter for this machine.
    """
    code = system_call_filter(os.getpid(), platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    check(LIBC.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "prctl(PR_SET_SECCOMP)")
