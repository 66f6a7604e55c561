"""temporal_api: a REST API over Temporal.

The modules, in the order a request meets them:

    clients       their connections: how many there may be, and how they end
    protocol      HTTP/1.1 on one connection: what a caller may send, and how long that may take
    observe       outermost: request id, access log, HTTP metrics, headers of every answer, gzip, HEAD
    prefix        the path below which a proxy serves the service
    cors          what pages of other origins may do
    record        what is known of a request: logged, counted, told to Temporal; its deadline
    tracing       the trace that a request is part of
    spans         its own spans, for an OpenTelemetry collector, if there is one
    logs          the formats of the log
    metrics       the metrics, and GET /metrics
    app           the table of contents: every route, and what stands before it
    auth          token -> user; closes everything under /api/v1
    requests      JSON in, decoded once, strictly; JSON out
    mistakes      every mistake of a request that has one
    bounds        counts the entries of a large body before they are made
    services      what handlers reach: one typed bundle
    owned         what every business resource shares
    controllers   the resources: orders, workflows, health, pages, codec
    idempotency   Idempotency-Key without a store
    money         prices, digit for digit
    temporal      the one place that knows gRPC
    encryption    payloads, encrypted before Temporal gets them
    memory        requests under way, and bytes of bodies and answers, counted over the process
    waiting       Prefer: wait, server-sent events
    preconditions ETag, If-None-Match, If-Match
    sealing       page tokens that open only their own listing
    checks        the answers of /health
    errors        one class for each failure
    problems      how failures are answered
    openapi       the contract document

Beside them: settings (read once, refused when unsafe), cli (`temporal-api`), serving (uvicorn that drains), worker (the
sample Temporal worker), deploy (what `temporal-api print` prints), dev (`temporal-api dev`, which finds or builds a
Temporal dev server and runs it).
"""

from importlib.metadata import version

__version__ = version("temporal-api")
