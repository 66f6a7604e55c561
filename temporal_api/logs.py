"""The log of the process, on standard output: a line for each record, as JSON or for people."""

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

import msgspec


class JSONFormatter(logging.Formatter):
    """One JSON object on a line: the record, and the fields logged as `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class ConsoleFormatter(logging.Formatter):
    """The same for people: one line, and the traceback of an exception below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        fields = " ".join(f"{k}={_one_line(v)}" for k, v in getattr(record, "fields", {}).items() if v is not None)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _one_line(value: object) -> str:
    """Escape line breaks and other control characters, so that no caller can forge a line."""
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def configure_logging(level: str, log_format: str) -> None:
    """Send every logger of the process to standard output, in one format."""
    # Neither format shows these, and looking them up is half the cost of a line (logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined] # new in Python 3.12
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JSONFormatter() if log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel("WARNING")
