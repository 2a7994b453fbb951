"""The rendezvous: processes that are late, lost, started twice, or not of the run at all."""

import json
import socket
import threading
import time

import pytest

from vit_jax.errors import ConfigError, LostError
from vit_jax.parallel import rendezvous
from vit_jax.parallel.launchers import ADDRESS, Membership


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rendezvous, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(rendezvous, "HINT_SECONDS", 0.6)
    monkeypatch.setattr(rendezvous, "_RETRY_SECONDS", 0.05)


class Process(threading.Thread):
    """Process `index` of a run, in a thread: what `meet` raises in it is its `error`."""

    def __init__(self, address, count, index, *, after=0.0):
        super().__init__(daemon=True)
        self.membership, self.after = Membership(ADDRESS, address, count, index), after
        self.error = None

    def run(self):
        time.sleep(self.after)
        try:
            rendezvous.meet(self.membership)
        except (ConfigError, LostError) as error:
            self.error = error


def errors(*processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join(10)
        assert not process.is_alive()
    return [process.error for process in processes]


@pytest.mark.parametrize("bound", ["0.0.0.0", "[::]:", ":"])
def test_an_address_to_listen_at_without_a_port_is_an_error(address, bound, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", bound)
    (error,) = errors(Process(address, 2, 0))
    assert isinstance(error, ConfigError)
    assert "JAX_COORDINATOR_BIND_ADDRESS=" in str(error) and "HOST:PORT" in str(error)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_processes_meet_also_if_one_is_late(address, late, capsys):
    run = [Process(address, 3, i, after=0.4 * (i == late)) for i in range(3)]
    assert errors(*run) == [None] * 3
    assert capsys.readouterr().err == ""
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        pass  # The port is free for JAX's service.


def test_many_processes_meet(address):
    assert errors(*(Process(address, 40, i) for i in range(40))) == [None] * 40


def test_a_process_that_never_arrives_is_named_in_all(address, capsys):
    found = errors(Process(address, 4, 0), Process(address, 4, 1, after=0.2))
    assert all(isinstance(error, LostError) for error in found)
    missing = f"processes 2, 3 of 4 have not arrived at {address}"
    here = socket.gethostname()
    for error in found:
        assert f"{missing} (there: 0 on {here}, 1 on {here}) within 1 s. Start all 4" in str(error)
    assert str(found[1]).startswith(f"process 1 of 4 (on {here})")
    hint = capsys.readouterr().err
    assert hint.count("note:") == 1 and "has waited 1 s, and ends after 1 s" in hint, hint
    assert missing in hint


def test_a_process_that_ends_while_it_waits_is_missing(address):
    host = Process(address, 3, 0)
    host.start()
    time.sleep(0.1)
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as guest:
        guest.sendall(rendezvous._line({"index": 2, "count": 3, "host": "elsewhere"}))
    host.join(10)
    assert "processes 1, 2 of 3 have not arrived" in str(host.error)


def test_without_process_0_the_others_end(address):
    (error,) = errors(Process(address, 2, 1))
    assert isinstance(error, LostError)
    assert f"process 0 has not been reached at {address} within 1 s (" in str(error)


def test_an_index_that_was_given_twice_and_another_count_are_refused(address, capsys):
    found = errors(
        Process(address, 3, 0),
        Process(address, 3, 1),
        Process(address, 3, 1, after=0.2),
        Process(address, 9, 2, after=0.2),
    )
    assert isinstance(found[0], LostError) and isinstance(found[1], LostError)
    assert "process 2 of 3 has not arrived" in str(found[0])
    here = socket.gethostname()
    assert isinstance(found[2], ConfigError) and isinstance(found[3], ConfigError)
    assert f"process 1 was started twice, on {here} and on {here}." in str(found[2])
    assert "one of 9 processes, and process 0 as one of 3" in str(found[3])
    assert capsys.readouterr().err.count("note: process ") == 2 + 1  # And the hint.


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 3000 + b"\n",
        b"x" * 9000,
        json.dumps({"magic": rendezvous._MAGIC, "index": "1"}).encode() + b"\n",
        json.dumps({"index": 1, "count": 2}).encode() + b"\n",
        rendezvous._line({"index": -1, "count": 2}),
    ],
)
def test_what_other_programs_send_is_no_process(address, message):
    host, guest = Process(address, 2, 0), Process(address, 2, 1, after=0.4)
    host.start()
    time.sleep(0.1)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as other:
        other.sendall(message)
        assert errors(guest) == [None]
        host.join(10)
    assert host.error is None


def test_another_program_at_the_address_is_not_process_0(address, capsys):
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))) as other:

        def serve():
            while True:
                connection, _ = other.accept()
                with connection:
                    connection.sendall(b"\x00\x00\x00\x04\x00\n")

        threading.Thread(target=serve, daemon=True).start()
        host, guest = errors(Process(address, 2, 0), Process(address, 2, 1))
    assert isinstance(host, ConfigError)
    assert f"Process 0 cannot listen at {address}" in str(host) and "COORDINATOR_PORT" in str(host)
    assert isinstance(guest, LostError) and "another program listens there" in str(guest)
