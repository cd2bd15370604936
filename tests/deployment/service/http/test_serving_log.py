"""The log of the service: JSON lines written together, trouble at once; answers sent in one piece."""

import asyncio
import gc
import io
import json
import logging
import subprocess
import sys

import pytest

from frevl.deployment.service.http import connection as service_connection
from frevl.deployment.service.http import log as service_log
from frevl.deployment.service.http.connection import _OnePiece
from frevl.deployment.service.http.log import JsonLines, LinesTogether


class Stream(io.StringIO):
    """Counts how often it is written to."""

    writes = 0

    def write(self, text):
        self.writes += 1
        return super().write(text)


@pytest.fixture
def stream():
    return Stream()


@pytest.fixture
def logger(stream):
    handler = LinesTogether(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("a service")
    logger.addHandler(handler)
    yield logger
    handler.close()


def lines(stream):
    return [json.loads(line)["message"] for line in stream.getvalue().splitlines()]


def test_lines_of_a_moment_are_written_together(stream, logger, monkeypatch):
    monkeypatch.setattr(service_log, "_SECONDS", 0.05)

    async def run():
        for number in range(7):
            logger.info("line %d", number)
        assert stream.writes == 0
        while not stream.writes:
            await asyncio.sleep(0.01)
        logger.info("later")

    asyncio.run(run())
    assert (stream.writes, lines(stream)) == (1, [f"line {number}" for number in range(7)])
    logger.handlers[0].flush()  # as at the end of the process
    assert lines(stream)[-1] == "later"


def test_trouble_is_written_at_once_after_what_came_before(stream, logger):
    async def run():
        logger.info("before")
        logger.warning("trouble")
        assert lines(stream) == ["before", "trouble"]

    asyncio.run(run())


def test_outside_of_a_loop_and_in_masses_nothing_is_kept(stream, logger, monkeypatch):
    logger.info("at once")
    assert lines(stream) == ["at once"]
    monkeypatch.setattr(service_log, "_MOST_LINES", 3)

    async def run():
        for number in range(7):
            logger.info("%d", number)
        assert lines(stream)[1:] == ["0", "1", "2", "3", "4", "5"]

    asyncio.run(run())


def test_a_log_that_is_closed_stops_nobody(stream, logger):
    stream.close()
    logger.error("nobody hears this")


class Wire(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.seen = []

    def write(self, data):
        self.seen.append(bytes(data))

    def close(self):
        self.seen.append("closed")

    def abort(self):
        self.seen.append("aborted")

    def is_closing(self):
        return "closed" in self.seen

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.seen.append("end")


class Owner:
    """What `_OnePiece` asks of its connection."""

    def __init__(self, has_unread=False):
        self.loop, self.has_unread, self.seen = asyncio.get_running_loop(), has_unread, []

    def linger(self):
        self.seen.append("linger")

    def wait_for_the_last_bytes(self):
        self.seen.append("wait")


def test_head_and_body_leave_in_one_piece(monkeypatch):
    async def run():
        wire, owner = Wire(), Owner()
        one = _OnePiece(wire, owner)
        one.write(b"head ")
        one.write(b"body")
        assert wire.seen == []
        await asyncio.sleep(0)
        assert wire.seen == [b"head body"]
        one.write(b"last")
        one.close()
        await asyncio.sleep(0)
        assert (wire.seen, owner.seen) == ([b"head body", b"last", "closed"], ["wait"])
        monkeypatch.setattr(service_connection, "_MOST_HELD", 10)
        one.write(b"12345678901")  # more than is held: a slow reader must be noticed
        assert wire.seen[3:] == [b"12345678901"]
        one.write(b"dropped")
        one.abort()
        await asyncio.sleep(0)
        assert wire.seen[4:] == ["aborted"]

    asyncio.run(run())


def test_where_the_client_still_sends_only_our_side_is_closed():
    async def run():
        wire, owner = Wire(), Owner(has_unread=True)
        one = _OnePiece(wire, owner)
        one.write(b"answer")
        one.close()
        one.close()
        one.write(b"dropped")
        await asyncio.sleep(0)
        assert one.is_closing()
        assert (wire.seen, owner.seen) == ([b"answer", "end"], ["linger"])

    asyncio.run(run())


def test_a_start_that_fails_leaves_garbage_collection_as_it_was(frevl, tmp_path):
    assert frevl("serve", "--store", tmp_path / "none", "--run", tmp_path / "none").code == 1
    assert gc.isenabled()


def test_what_is_loaded_is_left_out_of_collections():
    code = (
        "import gc; gc.disable(); "
        "from frevl.deployment.service.http.gc_tuning import freeze_loaded_objects as keep; keep(); "
        "print(gc.isenabled(), gc.get_freeze_count() > 1000, gc.get_threshold())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "True True (20000, 20, 100)\n"


def test_what_a_library_warns_of_is_a_json_line_too(capsys):
    import logging
    import warnings

    from frevl.deployment.service.http.log import LinesTogether, log_json_lines

    root = logging.getLogger()
    before = list(root.handlers), logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    try:
        log_json_lines()
        logging.getLogger("python_multipart.multipart").warning("Found invalid character %r", "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", UserWarning, stacklevel=1)
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        logging.captureWarnings(False)
        root.handlers = before[0]
        logging.logThreads, logging.logProcesses, logging.logMultiprocessing = before[1:]
        for name in ("frevl.service", "uvicorn"):
            own = logging.getLogger(name)
            own.handlers, own.propagate = [], True
    assert [line["logger"] for line in lines] == ["python_multipart.multipart", "py.warnings"]
    assert lines[0]["message"] == r"Found invalid character '\n'"
    assert all(line["level"] == "warning" for line in lines)
    assert not any(isinstance(one, LinesTogether) for one in root.handlers)
