"""Jobs that try to get out of their worker's sandbox, one way each. Loaded by a nursery with `--table`.

A job that comes back has escaped: what stops it must be an error or a kill. `at` is the file or folder that it aims at,
`daemon` the process id of the daemon.
"""

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from state.jobs import Desk, JobSpec, Produced

ESCAPED = Produced({"escaped": True})
LIBC = ctypes.CDLL(None, use_errno=True)


def escape(spec: JobSpec, desk: Desk) -> Produced:
    """The way out that the parameter `way` names."""
    WAYS[spec.params["way"]](spec, desk)
    return ESCAPED


def at(spec: JobSpec) -> Path:
    return Path(spec.params["at"])


def checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def append(spec: JobSpec, desk: Desk) -> None:
    with at(spec).open("ab") as out:
        out.write(b"changed")


def change_input(spec: JobSpec, desk: Desk) -> None:
    (desk.inputs["data:given"] / "item.txt").write_text("changed")


def unlock_input(spec: JobSpec, desk: Desk) -> None:
    handle = os.open(desk.inputs["data:given"] / "item.txt", os.O_RDONLY)
    os.fchmod(handle, 0o666)


def cut(spec: JobSpec, desk: Desk) -> None:
    os.close(os.open(at(spec), os.O_RDONLY | os.O_TRUNC))


def link_out(spec: JobSpec, desk: Desk) -> None:
    (desk.folder / "steps").symlink_to(at(spec))


def second_name(spec: JobSpec, desk: Desk) -> None:
    (desk.folder / "name").hardlink_to(at(spec))
    (desk.folder / "name").read_bytes()


def connect_tcp(spec: JobSpec, desk: Desk) -> None:
    socket.create_connection(("127.0.0.1", spec.params["port"]), 2).sendall(b"out")


def listen_tcp(spec: JobSpec, desk: Desk) -> None:
    socket.create_server(("127.0.0.1", 0))


def send_udp(spec: JobSpec, desk: Desk) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(b"out", ("127.0.0.1", spec.params["port"]))


def connect_unix(spec: JobSpec, desk: Desk) -> None:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(str(at(spec)))


def send_unix(spec: JobSpec, desk: Desk) -> None:
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"STOPPING=1", str(at(spec)))


def kill_parent(spec: JobSpec, desk: Desk) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def kill_daemon(spec: JobSpec, desk: Desk) -> None:
    os.kill(spec.params["daemon"], signal.SIGTERM)


def kill_everybody(spec: JobSpec, desk: Desk) -> None:
    os.kill(-1, signal.SIGKILL)


def kill_thread(spec: JobSpec, desk: Desk) -> None:
    pid = spec.params["daemon"]
    checked(LIBC.syscall(234, pid, pid, signal.SIGTERM))                        # tgkill


def limit_daemon(spec: JobSpec, desk: Desk) -> None:
    resource.prlimit(spec.params["daemon"], resource.RLIMIT_CORE, (0, 0))


def slow_daemon(spec: JobSpec, desk: Desk) -> None:
    os.setpriority(os.PRIO_PROCESS, spec.params["daemon"], 19)


def read_daemon(spec: JobSpec, desk: Desk) -> None:
    Path(f"/proc/{spec.params['daemon']}/environ").read_bytes()


def trace_daemon(spec: JobSpec, desk: Desk) -> None:
    checked(LIBC.ptrace(16, spec.params["daemon"], 0, 0))                       # PTRACE_ATTACH


def start_process(spec: JobSpec, desk: Desk) -> None:
    subprocess.run(["/bin/true"], check=True)


def fork_without_end(spec: JobSpec, desk: Desk) -> None:
    while True:
        with contextlib.suppress(BlockingIOError):
            os.fork()


def thread_without_end(spec: JobSpec, desk: Desk) -> None:
    threading.stack_size(1 << 16)
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def fill(spec: JobSpec, desk: Desk) -> None:
    with (desk.folder / "big").open("wb") as out:
        while True:
            out.write(b"x" * (1 << 20))


def fill_with_many(spec: JobSpec, desk: Desk) -> NoReturn:
    number = 0
    while True:
        number += 1
        (desk.folder / f"{number}").write_bytes(b"x" * (1 << 20))


def fill_namelessly(spec: JobSpec, desk: Desk) -> NoReturn:
    kept = []
    while True:
        file = (desk.folder / "nameless").open("wb", buffering=0)
        (desk.folder / "nameless").unlink()
        file.write(b"x" * (1 << 23))
        kept.append(file)
        time.sleep(0.01)


def eat_memory(spec: JobSpec, desk: Desk) -> NoReturn:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)) * 8)
        time.sleep(0.001)


def eat_shared_memory(spec: JobSpec, desk: Desk) -> NoReturn:
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 1 << 23))
        kept[-1].write(b"x" * (1 << 23))
        time.sleep(0.001)


def memory_file(spec: JobSpec, desk: Desk) -> None:
    os.memfd_create("hidden")


def stay(spec: JobSpec, desk: Desk) -> None:
    """Past its deadline, deaf to everything that a process can be deaf to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    desk.progress(0.0, str(os.getpid()))
    time.sleep(60)


def leave_a_grandchild(spec: JobSpec, desk: Desk) -> None:
    """A process of nobody's, in a session of its own where it can have one, that outlives its worker."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(OSError):
            os.setsid()
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            time.sleep(60)
        os._exit(0)
    desk.progress(0.0, f"{os.readlink('/proc/self')} {os.read(reading, 100).decode()}")
    time.sleep(60 if spec.params.get("stays") else 0)


def live_on(spec: JobSpec, desk: Desk) -> None:
    checked(LIBC.prctl(1, 0, 0, 0, 0))                                          # PR_SET_PDEATHSIG


def hide(spec: JobSpec, desk: Desk) -> None:
    checked(LIBC.prctl(4, 0, 0, 0, 0))                                          # PR_SET_DUMPABLE


def new_namespace(spec: JobSpec, desk: Desk) -> None:
    checked(LIBC.unshare(0x10000000))


def mount(spec: JobSpec, desk: Desk) -> None:
    checked(LIBC.mount(b"none", str(desk.folder).encode(), b"tmpfs", 0, None))


def ring(spec: JobSpec, desk: Desk) -> None:
    checked(LIBC.syscall(425, 4, ctypes.create_string_buffer(120)))             # io_uring_setup


def lie(spec: JobSpec, desk: Desk) -> None:
    """Say in the worker's place that somebody else's files are what came out."""
    word = {"done": {"values": {}, "outputs": {spec.params["name"]: spec.params["at"]}, "items": 0, "tokens": 0}}
    for handle in range(3, 100):
        with contextlib.suppress(OSError):
            os.write(handle, json.dumps(word).encode() + b"\n")
    time.sleep(60)


def chatter(spec: JobSpec, desk: Desk) -> NoReturn:
    """A line without end."""
    while True:
        for handle in range(3, 100):
            with contextlib.suppress(OSError):
                os.write(handle, b"x" * (1 << 16))


def keep_open(spec: JobSpec, desk: Desk) -> Produced:
    """An output that the worker can write to still, and a later job that does."""
    if "again" in spec.params:
        os.pwrite(desk.cache["kept"], b"changed", 0)
        return Produced({"wrote": True})
    model = desk.folder / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"x" * spec.params["bytes"])
    desk.cache["kept"] = os.open(model / "weights", os.O_WRONLY)
    return Produced({}, {"model": model})


def reach_back(spec: JobSpec, desk: Desk) -> Produced:
    """A later job that writes in the folder of an earlier one, by name and by a handle that it kept."""
    if "before" not in desk.cache:
        desk.cache["before"] = os.open(desk.folder, os.O_RDONLY)
        return Produced({"handle": True})
    os.open("planted", os.O_CREAT | os.O_WRONLY, dir_fd=desk.cache["before"])
    return ESCAPED


def look(spec: JobSpec, desk: Desk) -> Produced:
    """What a worker finds of itself."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return Produced({
        "capabilities": int(status["CapEff"], 16), "bounding": int(status["CapBnd"], 16),
        "no_new_privs": status["NoNewPrivs"], "uid": os.getuid(), "pid": os.getpid(), "groups": os.getgroups(),
        "interfaces": [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]],
        "given": {name: (path / "item.txt").read_text() for name, path in desk.inputs.items()},
    })


WAYS: dict[str, Any] = {
    "read": lambda spec, desk: at(spec).read_bytes(), "list": lambda spec, desk: os.listdir(at(spec)),
    "append": append, "cut": cut, "shorten": lambda spec, desk: os.truncate(at(spec), 0),
    "remove": lambda spec, desk: at(spec).unlink(), "make": lambda spec, desk: (at(spec) / "planted").write_text("x"),
    "rename": lambda spec, desk: at(spec).rename(desk.folder / "taken"),
    "lock_out": lambda spec, desk: at(spec).chmod(0), "touch": lambda spec, desk: os.utime(at(spec), (0, 0)),
    "tag": lambda spec, desk: os.setxattr(at(spec), "user.tag", b"x"),
    "exec": lambda spec, desk: os.execv("/bin/true", ["true"]),
    "setsid": lambda spec, desk: os.setsid(),
} | {
    job.__name__: job for job in (
        change_input, unlock_input, link_out, second_name, connect_tcp, listen_tcp, send_udp, connect_unix, send_unix,
        kill_parent, kill_daemon, kill_everybody, kill_thread, limit_daemon, slow_daemon, read_daemon, trace_daemon,
        start_process, fork_without_end, thread_without_end, fill, fill_with_many, fill_namelessly, eat_memory,
        eat_shared_memory, memory_file, stay, leave_a_grandchild, live_on, hide, new_namespace, mount, ring, lie,
        chatter,
    )
}

JOBS = {name: f"escape_jobs:{name}" for name in ("escape", "keep_open", "reach_back", "look")} | {
    "train": "escape_jobs:escape", "gate": "escape_jobs:look", "seal": "escape_jobs:escape",
}
