"""Notifier against a real datagram socket."""

import math
import os
import socket

import pytest

from daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def listener(request, tmp_path):
    address = str(tmp_path / "notify") if request.param == "path" else f"\0kaizend-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(2)
        yield listener, address.replace("\0", "@")


def test_every_message_arrives_as_systemd_wants_it(listener):
    wire, address = listener
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("3 cycles\nREADY=0")
    assert wire.recv(1000) == b"READY=1\nSTATUS=3 cycles READY=0"
    notifier.ready()
    assert wire.recv(1000) == b"READY=1"
    notifier.reloading()
    assert wire.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notifier.status("paused: by the operator")
    assert wire.recv(1000) == b"STATUS=paused: by the operator"
    assert notifier.watchdog()
    assert wire.recv(1000) == b"WATCHDOG=1"
    notifier.stopping()
    assert wire.recv(1000) == b"STOPPING=1"


def test_without_a_service_manager_nothing_is_sent_and_the_watchdog_never_asks():
    notifier = Notifier({})
    assert not notifier.ready("here")
    assert not notifier.watchdog()
    assert notifier.watchdog_seconds == math.inf


def test_a_listener_that_is_gone_does_not_stop_the_service(tmp_path):
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_the_watchdog_time_is_read_for_this_process_only():
    asked = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000"}
    assert Notifier({**asked, "WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 30
    assert Notifier(asked).watchdog_seconds == 30
    assert Notifier({**asked, "WATCHDOG_PID": "1"}).watchdog_seconds == math.inf
