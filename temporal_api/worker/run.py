"""Runs a worker: the sample's, or one of your own."""

import asyncio
import logging
from collections.abc import Callable

from temporalio.client import Client
from temporalio.worker import Worker

from temporal_api.metrics import Metrics
from temporal_api.serving import measuring
from temporal_api.settings import Settings
from temporal_api.temporal.access import AccessDeniedError, cause, renewals, wait_for_temporal
from temporal_api.temporal.payloads import data_converter
from temporal_api.tracing import spans_of


async def run_worker(settings: Settings, create: Callable[[Client], Worker]) -> None:
    """Run a worker as soon as Temporal answers. It uses renewed certificates and keys. Raises AccessDeniedError."""
    metrics, spans = Metrics(), spans_of(settings)
    logging.getLogger("temporalio.worker._worker").addFilter(_is_no_refusal)
    options = {
        "data_converter": data_converter(settings),
        "runtime": metrics.runtime(),
        "interceptors": [spans.of_worker] if spans else [],
    }
    async with measuring(settings, metrics):
        worker = create(await wait_for_temporal(settings, **options))

        async def follow() -> None:
            async for _, client in renewals(settings, **options):
                worker.client = client

        following = asyncio.create_task(follow())
        try:
            await worker.run()
        except RuntimeError as error:
            raise (_refusal(error) or error) from None
        finally:
            following.cancel()
            if spans is not None:
                await spans.close()


def _refusal(error: BaseException | None) -> AccessDeniedError | None:
    """The reason, if the worker ended because Temporal refused it."""
    found = cause(RuntimeError(error.__cause__ or error)) if error else None
    return found if isinstance(found, AccessDeniedError) else None


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Leave the SDK's traceback of a refusal out of the log: the command ends with a line that says why."""
    return not (record.exc_info and _refusal(record.exc_info[1]))
