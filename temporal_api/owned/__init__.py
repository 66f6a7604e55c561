"""What all business resources share: owner, ids, memo, status, idempotency, list, status events, cancel.

A resource is a run of one workflow type. Temporal holds all its data:

    memo temporal_api.order         its owner, when it was created, and the data that never changes
    memo temporal_api.status        its status, written at the start and by the workflow at every change
    memo temporal_api.idempotency   the fingerprint of a request that had an Idempotency-Key

So answers are right without a running worker and after the workflow has ended. A workflow that continues as new must
pass its memo and search attributes on. `controllers/orders.py` is the model to follow: it declares a `Resource` and
extends `ResourceController` with the handler that creates an order.
"""

from temporal_api.owned.controller import ResourceController
from temporal_api.owned.resource import EXAMPLE_ID, Resource

__all__ = ["EXAMPLE_ID", "Resource", "ResourceController"]
