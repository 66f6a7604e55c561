"""A worker that dies the first time it has charged a payment, before it could say so.

    python crashing_worker.py TEMPORAL_ADDRESS TASK_QUEUE FOLDER

FOLDER is the payment provider: `charges` has a file for each order that was charged, `attempts` a line for each try.
"""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner

from temporal_api.temporal.payloads import DATA_CONVERTER
from temporal_api.worker import StandIns, create_worker, order_processing
from temporal_api.worker.order_processing import Order

FOLDER = Path(sys.argv[3])

# A worker that is lost is noticed after two seconds instead of ten: an attempt takes no longer, and nobody waits for
# the worker that has the workflow in its cache. In the sandbox, the workflow would not see the shorter timeout.
order_processing.ATTEMPT_TIMEOUT = timedelta(seconds=2)
order_processing.Worker = partial(
    order_processing.Worker, max_cached_workflows=0, workflow_runner=UnsandboxedWorkflowRunner()
)


class Provider(StandIns):
    """Charges an order once, by its id, as a payment provider does with an idempotency key."""

    async def pretend(self, step: str, order: Order) -> None:
        """Charge, and the first time die."""
        if step == "charge_payment":
            charge(order.id)


def charge(order_id: str) -> None:
    """Take the money, unless it was taken."""
    with (FOLDER / "attempts").open("a") as attempts:
        attempts.write(f"{order_id}\n")
    (FOLDER / "charges").mkdir(exist_ok=True)
    try:
        (FOLDER / "charges" / order_id).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


async def main() -> None:
    """Work until it is over."""
    client = await Client.connect(sys.argv[1], data_converter=DATA_CONVERTER)
    await create_worker(client, sys.argv[2], Provider()).run()


asyncio.run(main())
