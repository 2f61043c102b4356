"""The program that becomes PostgreSQL: it gives up root, ties its life to its parent's, then executes.

Run as ``python -I -S embedded_child.py PARENT_PID UID GID PROGRAM ARGUMENT...``; a UID of -1 keeps the user.

Rule 1: only the standard library, so that it starts in 15 ms and needs no package path.
Rule 2: the user changes before the death signal is set: the kernel forgets the signal at a change of user.
Rule 3: the signal comes when the *thread* that started us ends, so that thread must outlive the server.

A program of its own, because ``preexec_fn`` runs Python between fork and exec, and may deadlock if there are threads.

Source: prctl(2), PR_SET_PDEATHSIG; PostgreSQL manual, "Shutting Down the Server" (SIGINT is the fast shutdown).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

EXIT_CANNOT_RUN = 71
"""EX_OSERR of sysexits.h; the reason is on stderr."""


def main() -> None:
    """Become the program of the command line; returns only by an exception."""
    parent_pid, uid, gid, *command = sys.argv[1:]
    os.umask(0o077)
    os.chdir("/")
    if int(uid) >= 0:
        os.setgroups([])
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # A parent that died before the call above sends no signal any more.
    if os.getppid() != int(parent_pid):
        sys.exit("the parent process has died")
    os.execv(command[0], command)  # noqa: S606 - the command is our launcher's own


if __name__ == "__main__":
    try:
        main()
    except OSError as exc:
        sys.stderr.write(f"cannot run {sys.argv[4]}: {exc}\n")
        sys.exit(EXIT_CANNOT_RUN)
