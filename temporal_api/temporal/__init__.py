"""Temporal: the one place that knows gRPC.

client       calls with a deadline, payloads encoded and decoded
access       connecting, and why it fails; certificates and keys renewed
connections  what carries the calls
caller       who asks, told to Temporal in every request
failures     what Temporal's failures mean
payloads     JSON into Temporal and out of it, byte for byte
workers      whether a task queue has workers
workflow     a handle of a workflow: what can be asked of it or done to it
run          the state of one of its runs
starts       start a workflow
updates      send it an update, and find the outcome
history      its history, page by page
events       the events of a history as JSON
feeds        its history as it grows
endings      how it ended, or will end
polls        long polls that are shared
visibility   which workflows there are
"""
