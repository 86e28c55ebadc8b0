"""The filter of system calls, judged by an interpreter for both machines; Landlock, tried in processes that restrict themselves."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mathpipe.eval import sandbox_kernel as kernel

PID = 4711
HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), "aarch64": Path("/usr/include/asm-generic/unistd.h")}
AFTER_LANDLOCK = """
import os, sys
from mathpipe.eval import sandbox_kernel as kernel
kernel.give_up_privileges()
kernel.restrict_files([{folder!r}, {file!r}])
def attempt(act):
    try:
        act()
    except PermissionError:
        return "no"
    return "yes"
for path in ({folder!r} + "/inside", {file!r}, {outside!r}):
    print(attempt(lambda: open(path).close()), attempt(lambda: open(path, "a").close()), attempt(lambda: os.truncate(path, 0)))
for path in ({folder!r}, os.path.dirname({outside!r})):
    print(attempt(lambda: os.listdir(path)), attempt(lambda: os.mkdir(path + "/new")), attempt(lambda: os.symlink("a", path + "/link")))
print(attempt(lambda: os.execv("/bin/true", ["true"])))
"""


def judge(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter says, by the rules of linux/filter.h."""
    data = struct.pack("=iIQ6Q", number, architecture or kernel.ARCHITECTURES[machine], 0, *(*arguments, *(0,) * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", kernel.system_call_filter(PID, machine)))
    place = accumulator = 0
    while True:
        instruction, if_true, if_false, operand = code[place]
        place += 1
        if instruction == kernel.RETURN:
            return operand
        if instruction == kernel.LOAD:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif instruction == kernel.AND:
            accumulator &= operand
        else:
            holds = accumulator == operand if instruction == kernel.JUMP_IF_EQUAL else accumulator >= operand
            place += if_true if holds else if_false


def number(machine: str, name: str) -> int:
    found = (kernel.ALLOWED | kernel.CONDITIONAL)[name][list(kernel.ARCHITECTURES).index(machine)]
    assert found is not None
    return found


@pytest.mark.parametrize("machine", kernel.ARCHITECTURES)
def test_exactly_the_listed_calls_are_allowed(machine: str) -> None:
    column = list(kernel.ARCHITECTURES).index(machine)
    listed = {numbers[column] for numbers in kernel.ALLOWED.values()} - {None}
    conditional = {numbers[column] for numbers in kernel.CONDITIONAL.values()} - {None}
    refused = (2**32 - 1,) * 6
    for n in range(600):
        wanted = kernel.ALLOW if n in listed else kernel.UNKNOWN if n >= kernel.FIRST_RECENT else kernel.DENY
        assert judge(machine, n, *refused) == wanted, n
    assert not listed & conditional and max(conditional) < 600
    assert judge(machine, 0x40000000 + number(machine, "read")) == kernel.UNKNOWN  # x32's numbers
    assert judge(machine, number(machine, "read"), architecture=0x40000003) == kernel.KILL  # those of 32 bits


@pytest.mark.parametrize("machine", kernel.ARCHITECTURES)
@pytest.mark.parametrize(("name", "arguments", "allowed"), [
    ("openat", (0, 0, 0), True), ("openat", (0, 0, 0o2000000), True), ("openat", (0, 0, 1), False), ("openat", (0, 0, 2), False),
    ("openat", (0, 0, 0o100), False), ("openat", (0, 0, 0o1000), False), ("openat", (0, 0, 0o20200001), False),
    ("openat", (0, 0, 2**32), True),  # the upper half of an int is not looked at
    ("kill", (PID, 9), True), ("kill", (PID + 1, 9), False), ("kill", (2**32 - 1, 9), False), ("kill", (0, 9), False),
    ("kill", (2**32 + PID, 9), True), ("tgkill", (PID, PID, 6), True), ("tgkill", (1, PID, 6), False),
    ("prlimit64", (0, 7, 0, 2**40), True), ("prlimit64", (0, 7, 2**40), False), ("prlimit64", (0, 7, 4096), False),
    ("prlimit64", (1, 7), False),
    ("fcntl", (1, 1030, 3), True), ("fcntl", (1, 3), True), ("fcntl", (1, 8, 1), False), ("fcntl", (1, 10, 9), False),
    ("fcntl", (1, 1033), False),
    ("ioctl", (1, 0x5401), True), ("ioctl", (1, 0x5412), False), ("ioctl", (1, 0x541C), False), ("ioctl", (1, 2**32 + 0x5412), False),
])  # fmt: skip
def test_conditional_calls(machine: str, name: str, arguments: tuple[int, ...], allowed: bool) -> None:
    assert judge(machine, number(machine, name), *arguments) == (kernel.ALLOW if allowed else kernel.DENY)


def test_open_of_old_has_its_flags_elsewhere() -> None:
    assert judge("x86_64", 2, 1, 0) == kernel.ALLOW and judge("x86_64", 2, 0, 0o101) == kernel.DENY
    assert kernel.CONDITIONAL["open"][1] is None  # aarch64 has openat alone


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    pattern = re.compile(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)")
    found = {name: int(n) for name, n in pattern.findall(HEADERS[machine].read_text())}
    if machine == "aarch64":
        found["newfstatat"] = found["fstatat"]
    column = list(kernel.ARCHITECTURES).index(machine)
    ours = {name: numbers[column] for name, numbers in (kernel.ALLOWED | kernel.CONDITIONAL).items()}
    assert {name: n for name, n in ours.items() if n is not None} == {name: found[name] for name, n in ours.items() if n is not None}
    assert machine == "aarch64" or None not in ours.values()


def test_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match=r"no table of system calls for riscv64 \(there are: x86_64, aarch64\)"):
        kernel.system_call_filter(1, "riscv64")


def test_landlock_leaves_reading_what_is_listed(tmp_path: Path) -> None:
    try:
        abi = kernel.landlock_abi()
    except OSError as error:
        pytest.skip(f"this kernel has no Landlock: {error}")
    if abi < 3:
        pytest.skip(f"Landlock {abi} does not know truncate, which the filter forbids")
    folder, file, outside = tmp_path / "folder", tmp_path / "file", tmp_path / "elsewhere" / "file"
    for path in (folder / "inside", file, outside):
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    code = AFTER_LANDLOCK.format(folder=str(folder), file=str(file), outside=str(outside))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["yes no no", "yes no no", "no no no", "yes no no", "no no no", "no"], done.stderr
    assert (folder / "inside").read_text() == outside.read_text() == "text"


def test_privileges_are_gone() -> None:
    code = (
        "from mathpipe.eval import sandbox_kernel as kernel\nkernel.give_up_privileges()\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm', 'NoNewPrivs'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['0000000000000000', '0000000000000000', '1']\n", done.stderr
