"""Makes what tritonserver and its model processes create readable by their own user only.

Their shared memory holds callers' texts. Triton's Python backend creates it with Boost, which changes the mode to 0644
afterwards, whatever the umask is, and ignores whether that worked. So the kernel refuses that system call (fchmod) if
it would give others a permission.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

UMASK = 0o077

_PR_SET_NO_NEW_PRIVS, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW = 38, 1, 4
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_LOAD, _EQUALS, _HAS_ANY_OF, _RETURN = 0x20, 0x15, 0x45, 0x06  # of BPF
# By machine: the kernel's number of the architecture, and those of the system calls fchmod and seccomp.
_NUMBERS = {"x86_64": (0xC000003E, 91, 317), "aarch64": (0xC00000B7, 52, 277)}
_architecture, _fchmod, _seccomp = _NUMBERS.get(platform.machine(), (0, 0, 0))
_lines = (
    (_LOAD, 0, 0, 4),  # the architecture
    (_EQUALS, 0, 5, _architecture),
    (_LOAD, 0, 0, 0),  # the system call's number
    (_EQUALS, 0, 3, _fchmod),
    (_LOAD, 0, 0, 24),  # its second argument: the mode
    (_HAS_ANY_OF, 0, 1, UMASK),
    (_RETURN, 0, 0, _REFUSE),
    (_RETURN, 0, 0, _ALLOW),
)
_program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _lines))
_filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(_lines), ctypes.addressof(_program)))
_libc = ctypes.CDLL(None, use_errno=True)


def keep_files_private() -> bool:
    """For this process and all that it starts from now on; returns whether the kernel allows it.

    Makes system calls only, so it may be called between fork and exec.
    """
    os.umask(UMASK)
    if not _seccomp or _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(_libc.syscall(_seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, _filter) == 0)
