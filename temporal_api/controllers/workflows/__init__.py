"""Any workflow of the namespace over HTTP, for operators."""

from litestar import Router

from temporal_api.controllers.workflows import history, lifecycle, listing, messages, start, status
from temporal_api.controllers.workflows.addressing import TARGET, WORKFLOW

_ONE = Router(
    "/workflows/{workflow_id:str}",
    route_handlers=[
        status.get_workflow,
        status.get_workflow_result,
        history.get_workflow_history,
        history.stream_workflow_events,
        messages.signal_workflow,
        messages.query_workflow,
        messages.get_workflow_metadata,
        messages.update_workflow,
        messages.update_at_old_path,
        messages.get_workflow_update,
        lifecycle.cancel_workflow,
        lifecycle.terminate_workflow,
        lifecycle.pause_workflow,
        lifecycle.unpause_workflow,
        lifecycle.reset_workflow,
        lifecycle.delete_workflow,
    ],
    dependencies={"workflow": WORKFLOW, "target": TARGET},
)
WORKFLOWS = Router(
    "/",
    route_handlers=[start.start_workflow, listing.list_workflows, listing.count_workflows, _ONE],
    tags=["workflows"],
)
