"""Temporal: the one place that knows gRPC.

client       calls with a deadline, payloads encoded and decoded, whether a task queue has workers
access       connecting, and why it fails; renewed certificates and keys
connections  the gRPC connections
caller       the caller's identity and trace, in every request
failures     Temporal's failures as Problems
payloads     JSON into Temporal and out of it, byte for byte
workflow     a handle of a workflow: describe, signal, query, cancel, ...
run          the state of one of its runs
starts       start a workflow
updates      send it an update, and find the outcome
history      its history, page by page
events       the events of a history as JSON
feeds        its history as it grows
endings      how it ended; waiting for its end
polls        long polls that are shared
visibility   list and count workflows
"""
