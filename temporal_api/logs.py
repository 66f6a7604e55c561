"""The log of the process, on standard output: a line for each record, as JSON or for people.

A thread writes it. Logging only appends to a bounded queue: a reader that stalls costs lines, but delays no answer.
"""

import asyncio
import json
import logging
import os
import re
import select
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any

import msgspec
from prometheus_client import Counter
from temporalio.runtime import LogForwardingConfig, LoggingConfig, TelemetryFilter

STDOUT = 1
FIELD_BYTES = 1024
TRACEBACK_CHARACTERS = 16_384
QUEUE_LINES = 2000
WRITE_EVERY_SECONDS = 0.02
FLUSH_SECONDS = 1.0
"""When the process ends, how long a reader has to take the queued lines."""

_JSON = msgspec.json.Encoder(enc_hook=str)
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
    # While Temporal or the collector of spans is away, or tokens are bad, these log lines for each request.
    spans = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    for name in ("temporalio", "temporal_api.temporal.failures", spans):
        logging.getLogger(name).addFilter(seldom(60))
    logging.getLogger("temporal_api.auth.verifier").addFilter(seldom(1))


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
        for key, value in line.items():
            if isinstance(value, str) and (len(value) > FIELD_BYTES or not value.isascii()):
                line[key] = _cut(value)
        if record.exc_info:
            line["traceback"] = _traceback(record.exc_info[1])
        text = _JSON.encode(line)
        return text.decode() if text.isascii() else json.dumps(msgspec.json.decode(text), separators=(",", ":"))


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
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        if self._queue.qsize() >= QUEUE_LINES:
            DROPPED.inc()
            return
        try:
            self._queue.put(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until the reader has taken what is queued, a second at most. `logging` calls this at the end."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(FLUSH_SECONDS)

    def _write_lines(self) -> None:
        while True:
            queued = [self._queue.get()]
            if isinstance(queued[0], str):
                time.sleep(WRITE_EVERY_SECONDS)  # writing many lines costs hardly more than writing one
            queued += [self._queue.get() for _ in range(self._queue.qsize())]
            lines = [each for each in queued if isinstance(each, str)]
            content = "".join(lines).encode()
            try:
                while content:
                    try:
                        content = content[os.write(STDOUT, content) :]
                    except BlockingIOError:  # another process made the pipe non-blocking
                        select.select([], [STDOUT], [])
            except OSError:  # the reader has gone, or the disk is full
                DROPPED.inc(len(lines))
            for each in queued:
                if isinstance(each, threading.Event):
                    each.set()


def _is_not_cut_short(_: logging.LogRecord) -> bool:
    """Leave out the tracebacks of tasks that a signal has cancelled: a second Ctrl-C is no failure."""
    with suppress(RuntimeError):  # no event loop runs
        return not ((task := asyncio.current_task()) and task.cancelling())
    return True


def seldom(repeat_seconds: float) -> Callable[[logging.LogRecord], bool]:
    """Make a filter that passes one record a second of each source, and the same message again after `repeat_seconds`.

    A source is a module of the SDK's core, or a text without its values. Messages are the same if only numbers differ,
    such as the seconds until a retry. A record says how many were left out.
    """
    passed: dict[str, tuple[float, str, int]] = {}

    def is_passed(record: logging.LogRecord) -> bool:
        source = getattr(getattr(record, "temporal_log", None), "target", record.msg)
        now, message = time.monotonic(), record.getMessage()
        told = re.sub(r"\d", "", message)
        passed_at, before, left_out = passed.get(source, (float("-inf"), "", 0))
        if now - passed_at < (repeat_seconds if told == before else 1):
            passed[source] = passed_at, before, left_out + 1
            return False
        passed[source] = now, told, 0
        if left_out:
            record.msg, record.args = f"{message} (and {left_out} like it before)", ()
        return True

    return is_passed
