"""The log of the process, on standard output: a line for each record, as JSON or for people.

A thread writes it. Logging only appends to a bounded queue: a reader that stalls costs lines, but delays no answer.
"""

import asyncio
import json
import logging
import os
import select
import threading
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
from prometheus_client import Counter
from temporalio.runtime import LogForwardingConfig, LoggingConfig, TelemetryFilter

STDOUT = 1
FIELD_BYTES = 1024
TRACEBACK_CHARACTERS = 16_384
QUEUE_CHARACTERS = 1024 * 1024
WRITE_EVERY_SECONDS = 0.02
FLUSH_SECONDS = 1.0
"""When the process ends, how long a reader has to take the queued lines."""

DROPPED = Counter("temporal_api_log_lines_dropped", "Log lines dropped because nobody read them.", registry=None)

SDK_LOGGING = LoggingConfig(
    TelemetryFilter(core_level="WARN", other_level="ERROR"),
    LogForwardingConfig(logging.getLogger("temporalio"), append_target_to_name=False, prepend_target_on_message=False),
)
"""For the SDK's runtime: its core logs to the logger `temporalio`."""


def configure_logging(level: str, log_format: str) -> None:
    """Send every logger of the process, and Python's warnings, to standard output in one format."""
    # No format shows these, and collecting them is half the cost of a line (logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined] # new in Python 3.12
    handler = QueueHandler()
    handler.setFormatter(JSONFormatter() if log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at info, a line for each request to the issuer
    logging.getLogger("uvicorn.error").addFilter(_is_not_cut_short)
    # While Temporal is away, these log lines for each request.
    for name in ("temporalio", "temporal_api.temporal.failures"):
        logging.getLogger(name).addFilter(_is_new)


class JSONFormatter(logging.Formatter):
    """One JSON object on a line, in ASCII: the record, and the fields logged as `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if not record.exc_info:
            try:
                text = msgspec.json.encode(line, enc_hook=str)
            except UnicodeEncodeError:  # half a surrogate pair
                text = b""
            if 0 < len(text) <= FIELD_BYTES and text.isascii():  # then so is each field
                return text.decode()
        line = {key: _cut(value) if isinstance(value, str) else value for key, value in line.items()}
        if record.exc_info:
            line["traceback"] = _traceback(record.exc_info[1])
        return json.dumps(msgspec.to_builtins(line, enc_hook=str), separators=(",", ":"))


class ConsoleFormatter(logging.Formatter):
    """The same record for people: one line, with an exception's traceback indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        fields = " ".join(f"{k}={_one_line(v)}" for k, v in getattr(record, "fields", {}).items() if v is not None)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {_one_line(record.getMessage())} {fields}".rstrip()
        if not record.exc_info:
            return line
        return "\n  ".join([line, *map(_printable, _traceback(record.exc_info[1]).splitlines())])


def _one_line(value: object) -> str:
    return _printable(_cut(str(value)))


def _cut(text: str) -> str:
    """Keep the first kilobyte."""
    if len(text) <= FIELD_BYTES and text.isascii():
        return text
    encoded = text.encode(errors="backslashreplace")
    return encoded[:FIELD_BYTES].decode(errors="ignore") + ("…" if len(encoded) > FIELD_BYTES else "")


def _printable(text: str) -> str:
    """Escape line breaks and other control characters, so that no caller can forge a line or control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _traceback(error: BaseException | None) -> str:
    """Format an exception. Its text, which may be a caller's, is one line; a long traceback loses its middle."""
    text = "".join(
        part if part.lstrip(" |+").startswith('File "') else f"{_one_line(part.rstrip())}\n"
        for part in traceback.format_exception(error)
    )
    half = TRACEBACK_CHARACTERS // 2
    return text if len(text) <= TRACEBACK_CHARACTERS else f"{text[:half]}\n…\n{text[-half:]}"


class QueueHandler(logging.Handler):
    """Queues lines for the thread that writes them. Without room for a line, it drops and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self._own_lock = threading.RLock()
        self._lines: list[str] = []
        self._characters = 0  # of the lines that are queued or being written
        self._queued = threading.Event()
        self._closing = threading.Event()
        self._ended = False
        self._writer = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._writer.start()

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Use no lock of logging's: `logging.shutdown` holds it while it waits for the thread, which needs one."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        if self._characters > QUEUE_CHARACTERS:
            DROPPED.inc()
            return
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._own_lock:
            if not self._ended:
                self._lines.append(line)
                self._characters += len(line)
                if not self._queued.is_set():
                    self._queued.set()
                return
        _write_now(line)

    def close(self) -> None:
        """Write what is queued, if the reader takes it in time."""
        self._closing.set()
        self._queued.set()
        self._writer.join(FLUSH_SECONDS)
        super().close()

    def _write_lines(self) -> None:
        while not self._ended:
            self._queued.wait()
            self._closing.wait(WRITE_EVERY_SECONDS)  # writing many lines costs hardly more than writing one
            with self._own_lock:
                lines, self._lines = self._lines, []
                if self._closing.is_set():
                    self._ended = not lines
                else:
                    self._queued.clear()
            try:
                _write("".join(f"{line}\n" for line in lines).encode())
            except OSError:  # the reader has gone, or the disk is full
                DROPPED.inc(len(lines))
            with self._own_lock:
                self._characters -= sum(map(len, lines))


def _write(content: bytes) -> None:
    while content:
        try:
            content = content[os.write(STDOUT, content) :]
        except BlockingIOError:  # another process made the pipe non-blocking
            select.select([], [STDOUT], [])


def _write_now(line: str) -> None:
    """Write a line after the thread has ended, if that does not block: a pipe that is ready takes PIPE_BUF bytes."""
    content = f"{line}\n".encode()
    with suppress(OSError):
        if len(content) <= select.PIPE_BUF and select.select([], [STDOUT], [], 0)[1]:
            os.write(STDOUT, content)


def _is_not_cut_short(_: logging.LogRecord) -> bool:
    """Leave out the tracebacks of tasks that a signal has cancelled: a second Ctrl-C is no failure."""
    with suppress(RuntimeError):  # no event loop runs
        return not ((task := asyncio.current_task()) and task.cancelling())
    return True


_passed: dict[str, tuple[float, str]] = {}


def _is_new(record: logging.LogRecord) -> bool:
    """Pass one record a second of each logger or module of the SDK's core, and the same message once a minute."""
    source = getattr(getattr(record, "temporal_log", None), "target", record.name)
    now, message = time.monotonic(), record.getMessage()
    passed_at, passed = _passed.get(source, (float("-inf"), ""))
    if now - passed_at < (60 if message == passed else 1):
        return False
    _passed[source] = now, message
    return True
