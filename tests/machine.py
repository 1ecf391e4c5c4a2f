"""A machine for the units: a real systemd as the first process of namespaces of its own, on a private root.

Nothing of it is the host's: the root is built by private_root.sh and vanishes with the first process. What the host
does not permit is said by `why_not`. Needs root; the files of a kaizend folder are copied in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from miniature import ROOT

SYSTEMD: Final = Path("/usr/lib/systemd/systemd")
PROGRAMS: Final = ("unshare", "nsenter", "setpriv", "pivot_root", "chroot", "systemctl", "journalctl")
PACKAGES: Final = ("daemon", "loops", "safety", "state")
UNITS: Final = ("kaizend.service", "kaizend-worker.service")
NAMESPACES: Final = (
    "unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--mount-proc",
    "--propagation", "private",
)
USER: Final = 990
LIMIT_SECONDS: Final = 90.0

PASSWD = f"root:x:0:0:root:/root:/bin/sh\nkaizend:x:{USER}:{USER}::/var/lib/kaizend:/usr/sbin/nologin\n" \
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
GROUP = f"root:x:0:\nkaizend:x:{USER}:\nsystemd-journal:x:101:\nnogroup:x:65534:\n"
KAIZEND = """\
#!/opt/kaizend/.venv/bin/python
import sys
from daemon.__main__ import main
sys.exit(main())
"""


def why_not() -> str:
    """Why no machine can be had here, "" where nothing speaks against it."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.is_file():
        return f"there is no {SYSTEMD}"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"there is no {', '.join(missing)}"
    root = cgroup_root()
    if root is None:
        return "no cgroup2 is mounted to be written to"
    try:
        os.rmdir(tempfile.mkdtemp(prefix="kaizend-machine-", dir=root))
    except OSError as error:
        return f"no cgroup can be made: {error.strerror}"
    tried = subprocess.run(
        [*NAMESPACES, "--cgroup", "--", "mount", "-n", "-t", "cgroup2", "private", tempfile.gettempdir()],
        capture_output=True, text=True, check=False,
    )
    return "" if tried.returncode == 0 else f"no namespaces or mounts of its own: {tried.stderr.strip()}"


def cgroup_root() -> Path | None:
    """Where the host's cgroup2 is mounted and can be written."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    return None


class Machine:
    """Boots on entering; on leaving everything in it is killed, its cgroups go, and the host is as before."""

    def __init__(self, folder: Path, drop_ins: Mapping[str, str], program: tuple[str, ...] = ()) -> None:
        """`folder` is a kaizend folder: its files are /etc/kaizend, its models and state lie where the unit wants."""
        self.folder = folder
        self.drop_ins = drop_ins
        self.program = program
        self.home = Path(tempfile.mkdtemp(prefix="kaizend-machine-"))
        self.pid = 0

    def __enter__(self) -> Machine:
        root = cgroup_root()
        assert root is not None
        self.mounts = mounts()
        self.group = root / self.home.name
        self.group.mkdir()
        (self.home / "root").mkdir()
        self._furnish(self.home / "world")
        self.output = (self.home / "output").open("w+")
        packages = next(path for path in site.getsitepackages() if path.endswith("site-packages"))
        self.outer = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *NAMESPACES, "--",
             str(ROOT / "tests" / "private_root.sh"), str(self.home / "root"), str(self.group),
             str(self.home / "world"), sys.base_prefix, packages, os.readlink("/proc/self/ns/mnt"), *self.program],
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output,
        )
        try:
            if not self.program:
                self.until(self._booted)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        """Kill everything inside and see that nothing of it is left."""
        for child in children(self.outer.pid):
            os.kill(child, signal.SIGKILL)
        self.outer.wait(30)
        self.output.close()
        remove_groups(self.group)
        assert mounts() == self.mounts, "the host's mounts have changed"
        shutil.rmtree(self.home)

    def said(self) -> str:
        return (self.home / "output").read_text()

    def run(self, *command: str, seconds: float = LIMIT_SECONDS) -> subprocess.CompletedProcess[str]:
        """A command inside, as its root."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--", *command],
            env={"PATH": "/usr/sbin:/usr/bin", "LANG": "C"}, capture_output=True, text=True, timeout=seconds,
            check=False,
        )

    def systemctl(self, *words: str, seconds: float = LIMIT_SECONDS) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *words, seconds=seconds)

    def kaizend(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("/opt/kaizend/.venv/bin/kaizend", *words, "-c", "/etc/kaizend")

    def python(self, code: str) -> str:
        """What a few lines of Python print inside."""
        done = self.run("/opt/kaizend/.venv/bin/python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def property(self, name: str, unit: str = "kaizend") -> str:
        return self.systemctl("show", "-P", name, unit).stdout.strip()

    def journal(self, unit: str = "kaizend") -> list[dict[str, Any]]:
        lines = self.run("journalctl", "-u", unit, "-o", "json", "--no-pager").stdout.splitlines()
        return [json.loads(line) for line in lines]

    def write(self, path: str, text: str) -> None:
        """Replace the contents of a file inside. Never by way of /proc/PID/root: what resolves that leaves it."""
        self.python(f"import pathlib; pathlib.Path({path!r}).write_text({text!r})")

    def read(self, path: str) -> str:
        return self.run("cat", path).stdout

    def asked(self, query: str) -> list[list[Any]]:
        """What a query of the daemon's database gives."""
        return list(json.loads(self.python(
            "import json, sqlite3\n"
            "found = sqlite3.connect('file:/var/lib/kaizend/kaizend.db?mode=ro', uri=True)\n"
            f"print(json.dumps(found.execute({query!r}).fetchall()))"
        )))

    def until(self, condition: Callable[[], Any], seconds: float = LIMIT_SECONDS) -> Any:
        """Wait for it; what it last was is returned."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.outer.poll() is None, self.said()
            assert time.monotonic() < deadline, f"not so within {seconds:g} seconds\n{self.said()}"
            time.sleep(0.1)
        return found

    def _booted(self) -> bool:
        self.pid = next(iter(children(self.outer.pid)), 0)
        if not self.pid or not Path(f"/proc/{self.pid}/comm").read_text().startswith("systemd"):
            return False
        return self.systemctl("is-system-running").stdout.strip() in ("running", "degraded", "starting")

    def _furnish(self, world: Path) -> None:
        """What is copied into the private root."""
        etc, program, state = world / "etc", world / "opt" / "kaizend", world / "var" / "lib" / "kaizend"
        units = etc / "systemd" / "system"
        for folder in (units, etc / "kaizend", program / ".venv" / "bin", program / ".venv" / "packages",
                       state / "jobs"):
            folder.mkdir(parents=True)
        for name, text in {
            "passwd": PASSWD, "group": GROUP, "nsswitch.conf": "passwd: files\ngroup: files\n",
            "machine-id": os.urandom(16).hex() + "\n", "hostname": "private\n",
            "systemd/journald.conf": "[Journal]\nStorage=volatile\nRateLimitBurst=0\n",
        }.items():
            (etc / name).write_text(text)
        for unit in UNITS:
            shutil.copy(ROOT / "systemd" / unit, units)
        for unit, text in self.drop_ins.items():
            (units / f"{unit}.d").mkdir()
            (units / f"{unit}.d" / "test.conf").write_text(text)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, program / package, ignore=shutil.ignore_patterns("__pycache__"))
        self._make_environment(program / ".venv")
        for name in ("kaizend.toml", "bounds.toml"):
            shutil.copy(self.folder / name, etc / "kaizend")
        shutil.copytree(self.folder / "models", etc / "kaizend" / "models")
        (etc / "kaizend").chmod(0o750)

    def _make_environment(self, environment: Path) -> None:
        """A virtual environment as `make install` leaves it, with the packages that this test runs on."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        libraries = environment / "lib" / version / "site-packages"
        libraries.mkdir(parents=True)
        (libraries / "here.pth").write_text("/opt/kaizend\n/opt/kaizend/.venv/packages\n")
        (environment / "pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")
        (environment / "bin" / "python").symlink_to(f"/opt/python/bin/{version}")
        script = environment / "bin" / "kaizend"
        script.write_text(KAIZEND)
        script.chmod(0o755)


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def mounts() -> list[str]:
    """The host's mounts."""
    return sorted(Path("/proc/self/mountinfo").read_text().splitlines())


def remove_groups(group: Path) -> None:
    """Remove a cgroup and those below it, the innermost first; the kernel needs a moment after the last process."""
    for folder, _, _ in list(os.walk(group, topdown=False)):
        for _ in range(100):
            try:
                os.rmdir(folder)
                break
            except OSError:
                time.sleep(0.05)
    assert not group.exists(), f"something still runs in {group}"
