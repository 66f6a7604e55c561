"""Resources that have an owner: what they all share. Ids, memo, status, idempotency, list, status events, cancel.

A resource is a run of one workflow type, and Temporal keeps all there is of it:

    memo temporal_api.order         who owns it, when it was created, and what never changes of it
    memo temporal_api.status        its status: written at the start, and by the workflow at every change
    memo temporal_api.idempotency   the fingerprint of the request, when it came with an Idempotency-Key

So an answer is right with no worker running, and after the end. A workflow that continues as new passes its memo and
search attributes on. `controllers/orders.py` is the model to follow: it declares a `Resource`, and extends
`ResourceController` with the one handler that is its own.
"""

from temporal_api.owned.controller import ResourceController
from temporal_api.owned.resource import EXAMPLE_ID, Resource

__all__ = ["EXAMPLE_ID", "Resource", "ResourceController"]
