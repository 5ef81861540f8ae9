"""Restricts a process that works on untrusted input, before it reads the first of it.

    confine(memory_bytes=256 << 20)     # returns the optional restrictions in force: {"landlock", "seccomp"}

Resource limits always apply: memory, size of files, open files, core dumps. Where Linux offers it, Landlock forbids the
file system, and seccomp forbids system calls that reach the network, other processes or new programs.
"""

import ctypes
import os
import platform
import resource
import struct

DESCRIPTORS = 16
NICENESS = 10  # it must not delay the event loop, nor the inference of images that are decoded

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # the same numbers on every architecture
# linux/landlock.h: all rights to files, by the version of Landlock; none is granted
LANDLOCK_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}

# Architectures from linux/audit.h, and for each the system calls that fail with EPERM. Sending is allowed: the process
# answers on its one socket, and cannot open another.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED = {
    # socket connect bind listen accept clone fork vfork execve kill ptrace process_vm_readv, _writev accept4
    # execveat bpf clone3 io_uring_setup openat2 pidfd_open tkill tgkill open openat unshare mount
    "x86_64": (
        *(41, 42, 49, 50, 43, 56, 57, 58, 59, 62, 101, 310, 311, 288),
        *(322, 321, 435, 425, 437, 434, 200, 234, 2, 257, 272, 165),
    ),
    # socket connect bind listen accept clone execve kill ptrace process_vm_readv, _writev accept4 execveat bpf
    # clone3 io_uring_setup openat2 pidfd_open tkill tgkill openat unshare mount
    "aarch64": (
        *(198, 203, 200, 201, 202, 220, 221, 129, 117, 270, 271, 242, 281, 280),
        *(435, 425, 437, 434, 130, 131, 56, 97, 40),
    ),
}


def confine(memory_bytes: int) -> set[str]:
    """Give up all rights that the work does not need. `memory_bytes` may be allocated beyond what is in use now.

    Returns the names of the optional restrictions in force. Raises OSError if a resource limit cannot be set.
    """
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    in_use = _address_space()
    if in_use:
        limit = in_use + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    restrictions = (
        {("landlock", _deny_files), ("seccomp", _deny_system_calls)} if platform.system() == "Linux" else set()
    )
    return {name for name, build in restrictions if build()}


def _address_space() -> int:
    """Bytes of this process's address space; 0 if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _deny_files() -> bool:
    """Forbid opening, creating and removing files (Landlock; Linux 5.13 and later)."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1 or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    rights = struct.pack("Q", LANDLOCK_RIGHTS[min(version, max(LANDLOCK_RIGHTS))])
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, rights, len(rights), 0)
    if ruleset < 0:
        return False
    try:
        return bool(libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _deny_system_calls() -> bool:
    """Forbid the network, other processes and new programs (seccomp; a classic BPF program, linux/filter.h)."""
    machine = platform.machine()
    if machine not in REFUSED:
        return False
    load, equal, greater, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
    calls = REFUSED[machine]
    program = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCH[machine]), (give, 0, 0, refuse), (load, 0, 0, 0)]
    program.append((greater, len(calls) + 1, 0, 0x40000000))  # the same calls have other numbers in the x32 ABI
    program += [(equal, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    argument = ctypes.create_string_buffer(filter_program, len(filter_program))
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(argument), 0, 0) == 0)
