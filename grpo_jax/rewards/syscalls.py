"""The system calls that a Python program needs, as a seccomp filter: whatever else it calls fails.

Left out, among others, is what outlives or reaches beyond a sandbox (keyrings, System V IPC, POSIX
message queues, memfd_create, ptrace, io_uring, bpf, perf_event_open, userfaultfd), namespaces and
mounts, and every family of sockets but AF_UNIX. The names are x86-64's and aarch64's.
"""

import contextlib
import errno
import functools
import tempfile

FILES = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat creat close
    close_range stat fstat lstat newfstatat statx lseek access faccessat faccessat2 readlink
    readlinkat getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat rmdir link linkat symlink
    symlinkat unlink unlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask
    mknod mknodat truncate ftruncate fallocate fadvise64 fsync fdatasync flock dup dup2 dup3 pipe
    pipe2 getdents getdents64 statfs fstatfs utime utimes utimensat futimesat sendfile
    copy_file_range getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
"""
WAITING = """
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime futex
    set_robust_list get_robust_list rseq membarrier pause alarm setitimer getitimer nanosleep
    clock_nanosleep clock_gettime clock_getres gettimeofday time times restart_syscall
"""
MEMORY = "mmap munmap mprotect mremap madvise brk msync mincore"
PROCESSES = """
    fork vfork execve exit exit_group wait4 waitid kill tkill tgkill rt_sigaction rt_sigprocmask
    rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pidfd_open
    pidfd_send_signal getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid
    getgroups getpgid setpgid getpgrp getsid setsid capget set_tid_address arch_prctl sched_yield
    sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
    sched_get_priority_min getpriority setpriority getrusage getrlimit setrlimit prlimit64 getcpu
    uname sysinfo getrandom
"""
SOCKETS = """
    bind listen accept accept4 connect shutdown getsockname getpeername getsockopt sendto recvfrom
    sendmsg recvmsg
"""
# Of these, only with one of the values in the argument of that number. Pipes and sockets keep the
# size that they have: buffers are memory of no process.
VALUES = {
    "socket": (0, {"AF_UNIX": 1}),
    "socketpair": (0, {"AF_UNIX": 1}),
    "fcntl": (
        1,
        {
            **{"F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4},
            **{"F_GETLK": 5, "F_SETLK": 6, "F_SETLKW": 7, "F_OFD_GETLK": 36, "F_OFD_SETLK": 37},
            **{"F_OFD_SETLKW": 38, "F_DUPFD_CLOEXEC": 1030, "F_GETPIPE_SZ": 1032},
        },
    ),
    "ioctl": (
        1,
        {
            **{"TCGETS": 0x5401, "TIOCGWINSZ": 0x5413, "FIONREAD": 0x541B, "FIONBIO": 0x5421},
            **{"FIOCLEX": 0x5451, "FIONCLEX": 0x5450},
        },
    ),
    "setsockopt": (
        2,
        {
            **{"SO_REUSEADDR": 2, "SO_BROADCAST": 6, "SO_KEEPALIVE": 9, "SO_LINGER": 13},
            **{"SO_REUSEPORT": 15, "SO_PASSCRED": 16, "SO_RCVTIMEO": 20, "SO_SNDTIMEO": 21},
        },
    ),
    # The process stays dumpable, so that its memory can be looked at.
    "prctl": (
        0,
        {
            **{"PR_SET_PDEATHSIG": 1, "PR_GET_PDEATHSIG": 2, "PR_GET_DUMPABLE": 3},
            **{"PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_CAPBSET_READ": 23},
            **{"PR_SET_NO_NEW_PRIVS": 38, "PR_GET_NO_NEW_PRIVS": 39},
        },
    ),
}
NEW_NAMESPACES = 0x7E020000  # the flags CLONE_NEW* of clone(2)


@functools.cache
def filter_program() -> bytes:
    """The filter as the kernel reads it, an array of struct sock_filter.

    A call that is not allowed fails with ENOSYS, as on a kernel without it, so that libraries fall
    back: clone3, whose flags no filter can read, on clone. A call by another architecture's
    numbers, x32's among them, ends the process. ImportError or RuntimeError without libseccomp.
    """
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)

    def allow(name: str, *arguments: pyseccomp.Arg) -> None:
        with contextlib.suppress(OSError, ValueError):  # a name that this libseccomp does not know
            rules.add_rule(pyseccomp.ALLOW, name, *arguments)

    for name in " ".join((FILES, WAITING, MEMORY, PROCESSES, SOCKETS)).split():
        allow(name)
    for name, (argument, values) in VALUES.items():
        for value in values.values():
            allow(name, pyseccomp.Arg(argument, pyseccomp.EQ, value))
    allow("clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, NEW_NAMESPACES, 0))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
