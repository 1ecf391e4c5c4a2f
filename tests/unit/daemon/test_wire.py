"""Messages arrive whole or not at all."""

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.wire import Closed, Wire

MESSAGES = st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=8)


@settings(max_examples=40, deadline=None)
@given(MESSAGES)
def test_what_is_sent_arrives_in_order(messages):
    here, there = map(Wire, socket.socketpair())
    for message in messages:
        here.send(message)
    assert [there.receive() for _ in messages] == messages
    assert there.receive(0) is None
    here.close()
    there.close()


def test_half_a_message_is_nothing():
    end, other = socket.socketpair()
    wire = Wire(other)
    end.sendall(b'{"done": 1')
    assert wire.receive(0.01) is None
    end.close()
    with pytest.raises(Closed):
        wire.receive()
    with pytest.raises(Closed):
        wire.send({})
    wire.close()


def test_what_json_cannot_say_is_not_sent():
    here, there = map(Wire, socket.socketpair())
    with pytest.raises(ValueError, match="JSON"):
        here.send({"loss": float("nan")})
    assert there.receive(0) is None
    here.close()
    there.close()
