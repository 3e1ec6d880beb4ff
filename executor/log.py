"""Logs: one event a line on stdout, JSON for machines or coloured text for people, without secrets.

Events are past-tense names and facts are keys: `log.info("playbook_finished", rc=0, duration_s=41.3, vmid=101)`.
Keys that hold for a stretch of work are bound once: `with bound_contextvars(job_id=…, action=…):`. What libraries say
through the standard library's `logging` takes the same way, from WARNING on: urllib3 logs whole URLs at debug.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from executor.redaction import redactor

__all__ = ["LogFormat", "bound_contextvars", "configure", "get_logger", "install_hooks"]

LogFormat = Literal["auto", "json", "console"]
#: The logger above all of ours. Everything else is a third party.
OURS = "executor"
#: These stand first in every line, in this order.
LEADING_KEYS = ("timestamp", "level", "event", "logger")


def get_logger(name: str | None = None) -> structlog.stdlib.BoundLogger:
    """Return a logger of ours; pass `__name__`. It may be made before `configure` is called."""
    if name is None or name == OURS:
        name = OURS
    elif not name.startswith(f"{OURS}."):
        name = f"{OURS}.{name}"
    return structlog.stdlib.get_logger(name)


def configure(format: LogFormat = "auto", level: str = "info", *, stream: TextIO | None = None) -> None:
    """Send everything to `stream` (stdout unless told), ours from `level` on, third parties from WARNING on.

    `auto` means console on a terminal and JSON elsewhere. Called again, it replaces what was there. Until it is
    called, our loggers are silent.
    """
    stream = stream or sys.stdout
    handler = _Handler(stream)
    handler.addFilter(_is_wanted)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_COMMON],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _put_leading_keys_first,
                _redact,  # the last before rendering: nothing can add a secret after it
                *_renderers(format, stream),
            ],
        )
    )
    logging.getLogger().handlers = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    # One warning a repeated request would be one a second in an outage; `state.Link` says it once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger(OURS).setLevel(level.upper())


def install_hooks() -> None:
    """Log uncaught exceptions, of threads too, and Python's warnings: on stderr they would be unredacted."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines; a line that cannot be written costs neither the caller its work nor a secret its cover."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say that a line is lost, and why, without its content; the standard library would print it whole."""
        kind = sys.exc_info()[0] or Exception
        print(f"a log line of {record.name} is lost: {kind.__name__}", file=sys.stderr)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Third parties that set a level of their own are still kept at WARNING."""
    return record.levelno >= logging.WARNING or record.name == OURS or record.name.startswith(f"{OURS}.")


def _put_leading_keys_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    leading = {key: event.pop(key) for key in LEADING_KEYS if key in event}
    return {**leading, **event}


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return cast(EventDict, redactor.redact_value(event))


def _name_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put the traceback, which is one string, under `traceback`."""
    if "exception" in event:
        event["traceback"] = event.pop("exception")
    return event


def _renderers(format: LogFormat, stream: TextIO) -> list[Processor]:
    is_terminal = stream.isatty()
    if format == "json" or (format == "auto" and not is_terminal):
        return [_name_traceback, structlog.processors.JSONRenderer(_to_json)]
    colors = is_terminal and not os.environ.get("NO_COLOR")
    return [
        _escape_event,
        structlog.dev.ConsoleRenderer(
            colors=colors, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


def _escape_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, as `repr_native_str` does for values: text from outside must not steer a terminal."""
    if not str(event["event"]).isprintable():
        event["event"] = repr(event["event"])
    return event


def _to_json(event: EventDict, **_kwargs: Any) -> str:
    try:
        return json.dumps(event, default=str, allow_nan=False)
    except (TypeError, ValueError):  # NaN, or a key that JSON does not have
        return json.dumps(
            {key: value if isinstance(value, (str, int)) else repr(value) for key, value in event.items()}
        )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    get_logger().critical("crashed", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    name = args.thread.name if args.thread else "unknown"
    get_logger().critical("thread_crashed", thread=name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


#: What happens to every event, ours or a third party's, in the thread that logs it.
_COMMON: list[Processor] = [
    merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]

# On import, so that a logger used before `configure` neither prints unredacted text nor keeps other settings for ever.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_COMMON,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=False,  # tests capture logs, and `configure` may come after the first use
)
logging.getLogger(OURS).addHandler(logging.NullHandler())
