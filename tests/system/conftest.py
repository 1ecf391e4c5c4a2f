"""One finished run of the miniature for all system tests; a test that changes anything does so in a copy.

The worker unit keeps the imports of the workers across daemons; `kaizend score` still starts a nursery of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from miniature import CYCLES, ROOT, copy_of, environment, kaizend
from watching import until


@pytest.fixture(scope="session")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a worker unit that serves one daemon after another."""
    address = tmp_path_factory.mktemp("unit") / "socket"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "brood.py"), str(address)], cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
    ) as process:
        yield address
        process.kill()


@pytest.fixture(scope="session")
def begun(unit: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kaizend folder whose daemon has not been started yet. Do not change it. The unit imports while models train."""
    folder = copy_of(trained, tmp_path_factory.mktemp("begun") / "mini")
    config = folder / "kaizend.toml"
    config.write_text(config.read_text().replace("[service]", f'[service]\nnursery = "{unit}"'))
    until(unit.exists, 120)
    return folder


@pytest.fixture(scope="session")
def finished(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after `kaizend run --cycles 8`. Do not change it."""
    folder = tmp_path_factory.mktemp("finished") / "mini"
    shutil.copytree(begun, folder)
    done = kaizend(folder, "run", "--cycles", str(CYCLES))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def life(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder, for this test alone."""
    return Path(shutil.copytree(finished, tmp_path / "life", symlinks=True))


@pytest.fixture
def fresh(begun: Path, tmp_path: Path) -> Path:
    """A copy of the folder before its first start, for this test alone."""
    return Path(shutil.copytree(begun, tmp_path / "fresh"))
