"""Published files from a server of our own: whole and checked, or one line and nothing left."""

import errno
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lra.tasks import download
from lra.tasks.base import Place
from lra.tasks.download import Published, fetch
from tests.runs import ROOT, environment

CONTENT = bytes(range(256)) * 4_000  # several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHERWISE = "task.source=synthetic"
Reply = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine has no business between a test and its own server."""
    monkeypatch.setenv("no_proxy", "*")


class Server:
    """A server on this machine that answers every request with `reply`, and counts them."""

    def __init__(self, reply: Reply) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                reply(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Closing waits for answers under way.
        self.http.daemon_threads = False
        self.address = f"http://127.0.0.1:{self.http.server_port}/file.tar.gz"
        self.published = Published("file.tar.gz", self.address, len(CONTENT), SHA256)


@contextmanager
def serving(reply: Reply) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def start(handler: BaseHTTPRequestHandler, length: int | None = len(CONTENT)) -> None:
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()


def whole(handler: BaseHTTPRequestHandler) -> None:
    start(handler)
    handler.wfile.write(CONTENT)


def held(first: int, release: threading.Event) -> Reply:
    """An answer that stops after `first` bytes until it is released, and then goes on to its end."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        start(handler)
        handler.wfile.write(CONTENT[:first])
        handler.wfile.flush()
        release.wait()
        try:
            handler.wfile.write(CONTENT[first:])
        except OSError:
            handler.close_connection = True

    return reply


def left(folder: Path) -> set[str]:
    """What is in a folder, but for the locks, which may stay."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")} if folder.exists() else set()


def refusal(file: Published, folder: Path) -> str:
    """The one line that fetching ends in; nothing is left."""
    with pytest.raises(ValueError) as caught:
        fetch(file, Place(folder, folder), OTHERWISE)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert left(folder) == set()
    return message


def test_a_file_is_fetched_whole_and_its_bytes_are_counted(tmp_path: Path) -> None:
    shown: list[tuple[str, int | None, bool]] = []
    counts: list[int] = []

    @contextmanager
    def progress(doing: str, total: int | None, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
        shown.append((doing, total, in_bytes))
        yield counts.append

    with serving(whole) as server:
        found = fetch(server.published, Place(tmp_path / "manual", tmp_path, progress), OTHERWISE)
    assert found == tmp_path / "manual" / "file.tar.gz"
    assert found.read_bytes() == CONTENT
    assert shown == [("downloading file.tar.gz", len(CONTENT), True)]
    assert len(counts) > 1
    assert sum(counts) == len(CONTENT)
    assert left(tmp_path / "manual") == {"file.tar.gz"}


def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    with serving(whole) as server:
        for _ in range(3):
            fetch(server.published, Place(tmp_path, tmp_path), OTHERWISE)
    assert server.requests == 1


def test_a_file_brought_by_hand_is_taken_from_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    (tmp_path / "file.tar.gz").write_bytes(CONTENT)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(download, "_alone", refuse)
    file = Published("file.tar.gz", "http://nobody.invalid/", len(CONTENT), SHA256)
    assert fetch(file, Place(tmp_path, tmp_path), OTHERWISE).read_bytes() == CONTENT


def test_an_existing_file_of_another_content_is_refused_and_kept(tmp_path: Path) -> None:
    other = tmp_path / "file.tar.gz"
    other.write_bytes(b"mine")
    with serving(whole) as server, pytest.raises(ValueError) as caught:
        fetch(server.published, Place(tmp_path, tmp_path), OTHERWISE)
    assert str(caught.value) == (
        f"{other} has sha256 {hashlib.sha256(b'mine').hexdigest()}, the published file has {SHA256}: "
        f"delete it, and it is fetched again from {server.address}"
    )
    assert server.requests == 0
    assert other.read_bytes() == b"mine"


def remedy(server: Server, folder: Path) -> str:
    return f"download {server.address} (1 MB) to {folder / 'file.tar.gz'}; {OTHERWISE} needs no download"


def test_another_content_than_published_is_thrown_away(tmp_path: Path) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        start(handler)
        handler.wfile.write(CONTENT[::-1])

    with serving(reply) as server:
        message = refusal(server.published, tmp_path)
    sent = "1,024,000 of 1,024,000 bytes, not of the published content"
    assert message == f"{server.address} sent {sent}: {remedy(server, tmp_path)}"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_an_answer_cut_short_is_thrown_away(tmp_path: Path, share: float) -> None:
    size = int(share * len(CONTENT))

    def reply(handler: BaseHTTPRequestHandler) -> None:
        start(handler)
        handler.wfile.write(CONTENT[:size])

    with serving(reply) as server:
        message = refusal(server.published, tmp_path)
    assert message.startswith(f"{server.address} sent {size:,} of 1,024,000 bytes, not of the published content: ")


def test_an_answer_in_chunks_that_breaks_off_is_thrown_away(tmp_path: Path) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"400\r\n" + CONTENT[:100])
        handler.close_connection = True

    with serving(reply) as server:
        message = refusal(server.published, tmp_path)
    assert message.startswith(f"{server.address} broke off (IncompleteRead(")
    assert message.endswith(remedy(server, tmp_path))


def test_a_connection_that_is_reset_is_told(tmp_path: Path) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        start(handler)
        handler.wfile.write(CONTENT[:1_000])
        # With a linger of zero, closing sends a reset.
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        handler.connection.close()

    with serving(reply) as server:
        message = refusal(server.published, tmp_path)
    assert message.endswith(remedy(server, tmp_path))


def test_a_server_that_never_stops_is_cut_off(tmp_path: Path) -> None:
    stopped = threading.Event()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        start(handler, None)
        try:
            while True:
                handler.wfile.write(CONTENT)
        except OSError:
            stopped.set()

    with serving(reply) as server:
        message = refusal(server.published, tmp_path)
        assert stopped.wait(60)
    sent = re.search(r"sent ([\d,]+) of 1,024,000 bytes", message)
    assert sent is not None
    assert len(CONTENT) < int(sent[1].replace(",", "")) <= len(CONTENT) + download.PIECE


def test_a_server_that_stalls_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL", 0.2)
    release = threading.Event()
    with serving(held(1_000, release)) as server:
        try:
            message = refusal(server.published, tmp_path)
        finally:
            release.set()
    assert message == f"{server.address} broke off (timed out): {remedy(server, tmp_path)}"


@pytest.mark.parametrize(("code", "says"), [(404, "HTTP Error 404: Not Found"), (503, "HTTP Error 503: ")])
def test_a_server_that_refuses_is_told(tmp_path: Path, code: int, says: str) -> None:
    with serving(lambda handler: handler.send_error(code)) as server:
        message = refusal(server.published, tmp_path)
    assert message.startswith(f"{server.address} cannot be reached ({says}")
    assert message.endswith(f": {remedy(server, tmp_path)}")


def test_an_address_that_has_moved_is_followed(tmp_path: Path) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        if handler.path != "/moved":
            handler.send_response(302)
            handler.send_header("Location", "/moved")
            handler.end_headers()
        else:
            whole(handler)

    with serving(reply) as server:
        assert fetch(server.published, Place(tmp_path, tmp_path), OTHERWISE).read_bytes() == CONTENT


def test_nobody_waits_longer_than_seconds_for_an_answer() -> None:
    assert 0 < download.ANSWER < 5


def test_a_server_that_accepts_and_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ANSWER", 0.2)
    release = threading.Event()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        release.wait()

    with serving(reply) as server:
        try:
            message = refusal(server.published, tmp_path)
        finally:
            release.set()
    assert message == f"{server.address} cannot be reached (no answer in 0.2 s): {remedy(server, tmp_path)}"


def test_a_name_that_cannot_be_resolved_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    address = "https://nobody.invalid/file.tar.gz"
    message = refusal(Published("file.tar.gz", address, 170_000_000, SHA256), tmp_path)
    assert message.startswith(f"{address} cannot be reached (<urlopen error [Errno -2] Name or service not known>): ")
    assert f"download {address} (170 MB) to {tmp_path / 'file.tar.gz'}; {OTHERWISE} needs no download" in message


def test_a_name_that_nobody_resolves_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*arguments: object, **options: object) -> None:
        release.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(download, "ANSWER", 0.2)
    address = "https://nobody.invalid/file.tar.gz"
    try:
        message = refusal(Published("file.tar.gz", address, 1, SHA256), tmp_path)
    finally:
        release.set()
    assert message.startswith(f"{address} cannot be reached (no answer in 0.2 s): ")


def test_a_refused_connection_is_told(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/file.tar.gz"
        message = refusal(Published("file.tar.gz", address, 1, SHA256), tmp_path)
    assert message.startswith(f"{address} cannot be reached (<urlopen error [Errno {errno.ECONNREFUSED}] ")


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with serving(whole) as server, pytest.raises(OSError, match="No space left on device"):
        fetch(server.published, Place(tmp_path, tmp_path), OTHERWISE)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_interrupts_a_download_the_part_goes(tmp_path: Path, interruption: type[BaseException]) -> None:
    def interrupt(count: int) -> None:
        assert left(tmp_path) == {".file.tar.gz.part"}
        raise interruption

    @contextmanager
    def interrupting(doing: str, total: int | None, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
        yield interrupt

    with serving(whole) as server, pytest.raises(interruption):
        fetch(server.published, Place(tmp_path, tmp_path, interrupting), OTHERWISE)
    assert left(tmp_path) == set()


# In processes of their own, which can be killed.

FETCH = """
import sys
from contextlib import contextmanager
from pathlib import Path
from lra.tasks.base import Place
from lra.tasks.download import Published, fetch
@contextmanager
def progress(doing, total, in_bytes=False):
    print(doing, flush=True)
    yield lambda count: print(count, flush=True)
folder, address, size, sha256 = sys.argv[1:]
print(fetch(Published("file.tar.gz", address, int(size), sha256), Place(Path(folder), Path(folder), progress), ""))"""


@contextmanager
def fetching(folder: Path, server: Server) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder), *map(str, server.published[1:])],
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_download_leaves_no_file_of_that_name_and_the_next_one_is_whole(tmp_path: Path) -> None:
    release = threading.Event()
    with serving(held(600_000, release)) as server:
        try:
            with fetching(tmp_path, server) as process:
                assert line(process) == "downloading file.tar.gz"
                assert int(line(process)) > 0
                process.kill()
                assert process.wait() == -signal.SIGKILL
        finally:
            release.set()
        assert left(tmp_path) == {".file.tar.gz.part"}
        assert fetch(server.published, Place(tmp_path, tmp_path), OTHERWISE).read_bytes() == CONTENT
    assert left(tmp_path) == {"file.tar.gz"}


def test_what_a_killed_download_left_goes_even_when_the_next_one_fails(tmp_path: Path) -> None:
    (tmp_path / ".file.tar.gz.part").write_bytes(CONTENT[:1_000])
    with serving(lambda handler: handler.send_error(404)) as server:
        assert "404" in refusal(server.published, tmp_path)


def test_two_processes_at_once_download_once(tmp_path: Path) -> None:
    release = threading.Event()
    with serving(held(600_000, release)) as server:
        try:
            with fetching(tmp_path, server) as worker:
                assert line(worker) == "downloading file.tar.gz"
                with fetching(tmp_path, server) as waiter:
                    assert line(waiter) == "another process is downloading file.tar.gz: waiting for it"
                    release.set()
                    worked, errors = worker.communicate()
                    waited, more_errors = waiter.communicate()
        finally:
            release.set()
    assert (errors, more_errors) == ("", "")
    assert worked.splitlines()[-1] == waited.strip() == str(tmp_path / "file.tar.gz")
    assert server.requests == 1
    assert (tmp_path / "file.tar.gz").read_bytes() == CONTENT
