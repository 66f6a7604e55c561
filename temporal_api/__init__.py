"""temporal_api: the HTTP front door of Temporal.

The modules, in the order a request meets them:

    observe       outermost: request id, access log, HTTP metrics, gzip, HEAD
    record        what one request's log line and metrics are made of
    logs          the formats of the log
    metrics       the metrics of HTTP, the process and the Temporal SDK, and GET /metrics
    app           the table of contents: every route, and what stands before it
    auth          token -> user; closes everything under /api/v1
    requests      JSON in, decoded once, strictly; JSON out
    services      what handlers reach: one typed bundle
    controllers   orders, workflows, health, pages, codec
    owned         what every business resource shares
    idempotency   Idempotency-Key without a store
    money         prices, digit for digit
    temporal      the one place that knows gRPC
    encryption    payloads sealed before Temporal sees them
    waiting       Prefer: wait, ETag, server-sent events
    sealing       page tokens, sealed so that they open only their own listing
    errors        what can go wrong: one class per failure
    problems      how failures are told to the caller
    checks        what the health endpoints ask
    openapi       the contract document

Beside them: settings (read once, refused when unsafe), cli (`temporal-api`), serving (uvicorn that drains), worker (the
sample Temporal worker), dev (`temporal-api dev`; finds or builds a Temporal dev server, and runs it).
"""

from importlib.metadata import version

__version__ = version("temporal-api")
