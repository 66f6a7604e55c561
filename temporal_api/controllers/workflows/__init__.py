"""Any workflow of the namespace over HTTP, for operators.

addressing   which workflow a request means, and the arguments it sends
start        start a workflow
status       its state and its result
messages     signal, query and update it
lifecycle    cancel, terminate, reset and delete it
listing      list and count workflows
history      its history, in pages and live
"""
