"""The control socket, with real sockets."""

import json
import os
import socket
import stat
import threading
import time

import pytest

from daemon.control import ControlServer, NotRunning, address_of, ask
from state.errors import UserError


def echo(request):
    return {"asked": request}


def test_a_request_is_answered_and_only_the_owner_may_ask(tmp_path):
    path = tmp_path / "kaizend.sock"
    with ControlServer(path, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(path, {"command": "pause", "reason": "é"}) == {"asked": {"command": "pause", "reason": "é"}}
        assert ask(path, {"command": "status"}) == {"asked": {"command": "status"}}
    assert not path.exists()


@pytest.mark.parametrize("request_", [{"command": "explode"}, {}, {"command": ["pause"]}, {"command": None}])
def test_an_unknown_command_is_told_what_there_is(tmp_path, request_):
    with ControlServer(tmp_path / "s", echo):
        assert "pause, resume, drain, status, rollback, reload" in ask(tmp_path / "s", request_)["error"]


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"\xff\n", b"\n"])
def test_a_line_that_is_no_request_is_answered_with_an_error(tmp_path, line):
    with ControlServer(tmp_path / "s", echo), socket.socket(socket.AF_UNIX) as wire:
        wire.connect(str(tmp_path / "s"))
        wire.sendall(line)
        assert "error" in json.loads(wire.makefile().readline())


def test_a_refusal_is_an_answer_and_a_defect_ends_one_connection_only(tmp_path, capsys):
    def answer(request):
        if request["command"] == "rollback":
            raise UserError("there is nothing to go back to")
        if request["command"] == "drain":
            raise ZeroDivisionError
        return {}

    with ControlServer(tmp_path / "s", answer):
        assert ask(tmp_path / "s", {"command": "rollback"}) == {"error": "there is nothing to go back to"}
        with pytest.raises(UserError, match="gave no answer"):
            ask(tmp_path / "s", {"command": "drain"})
        assert ask(tmp_path / "s", {"command": "status"}) == {}


def test_nobody_there_is_not_running(tmp_path):
    with pytest.raises(NotRunning, match="kaizend is not running"):
        ask(tmp_path / "s", {"command": "status"})


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning):
        ask(path, {"command": "status"})
    with ControlServer(path, echo):
        assert ask(path, {"command": "status"})


def test_neither_a_living_daemon_nor_a_file_is_replaced(tmp_path):
    with ControlServer(tmp_path / "s", echo):
        with pytest.raises(UserError, match="another kaizend answers"), ControlServer(tmp_path / "s", echo):
            pass
        assert ask(tmp_path / "s", {"command": "status"})
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="is no socket"), ControlServer(tmp_path / "file", echo):
        pass
    assert (tmp_path / "file").read_text() == "precious"


def test_a_path_longer_than_a_socket_address_works(tmp_path):
    folder = tmp_path / ("long " * 25)
    folder.mkdir()
    path = folder / "kaizend.sock"
    assert len(os.fsencode(path)) > 107
    with ControlServer(path, echo):
        assert ask(path, {"command": "status"})
        with pytest.raises(UserError, match="another kaizend answers"), ControlServer(path, echo):
            pass
    assert not path.exists()
    with pytest.raises(NotRunning):
        ask(path, {"command": "status"})


def test_a_slow_answer_is_given_up_and_does_not_hold_up_another(tmp_path):
    free = threading.Event()

    def answer(request):
        if request["command"] == "drain":
            free.wait(5)
        return {}

    with ControlServer(tmp_path / "s", answer):
        began = time.monotonic()
        with pytest.raises(UserError, match=r"did not answer within 0\.3 seconds"):
            ask(tmp_path / "s", {"command": "drain"}, timeout=0.3)
        assert ask(tmp_path / "s", {"command": "status"}) == {}
        assert time.monotonic() - began < 2
        free.set()


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot make the control socket"), ControlServer(tmp_path / "no" / "s", echo):
        pass


def test_a_short_path_is_its_own_address(tmp_path):
    with address_of(tmp_path / "s") as address:
        assert address == str(tmp_path / "s")
