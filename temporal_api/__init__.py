"""temporal_api: the HTTP front door of Temporal.

The modules, in the order a request meets them:

    connections   how many there may be, how long each may wait for its caller, how they end
    protocol      HTTP/1.1 on one of them: what a caller may send, and how long that may take
    observe       outermost of the application: request id, access log, metrics, gzip
    app           the table of contents: every route, and what stands before it
    auth          token -> user; closes everything under /api/v1
    requests      JSON in, decoded once, strictly; JSON out
    controllers   the resources: orders, workflows, health, docs, codec
    idempotency   Idempotency-Key without a store
    money         prices, digit for digit
    temporal      the one place that knows gRPC
    encryption    payloads sealed before Temporal sees them
    waiting       Prefer: wait, ETag, server-sent events
    page_tokens   sealed, so that they open only their own listing
    errors        what can go wrong and how it is told

Beside them: settings (read once, refused when unsafe), cli (`temporal-api`), worker (the sample Temporal worker),
devserver (finds or builds a Temporal dev server).
"""

from importlib.metadata import version

__version__ = version("temporal-api")
