"""The nursery with the modules that real jobs need."""

import time

from daemon.pool import Nursery
from safety.sandbox import Limits, Rules


def test_the_real_nursery_imports_every_job_and_stays_fit_to_fork(tmp_path):
    """One thread, no OpenMP pool, no complaint; and a fork of all that takes a fraction of a second."""
    nursery = Nursery(tmp_path, 1, "", None)
    try:
        assert nursery.wait_started(120), (tmp_path / "worker.log").read_text()
        assert nursery.started is not None
        assert nursery.started["threads"] == 1
        assert (tmp_path / "worker.log").read_text() == ""
        began = time.monotonic()
        assert nursery.fork(Rules((), (), Limits(8.0, 1.0), str(tmp_path))).receive(5)
        assert time.monotonic() - began < 1
    finally:
        nursery.stop()
