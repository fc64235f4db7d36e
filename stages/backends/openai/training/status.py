"""What a job's status means: OpenAI's own ones, and those of other services, which the API does not list."""

from typing import Any, Literal

from stages.backends.openai.base.replies import field, number

Outcome = Literal["waiting", "succeeded", "unsuccessful"]

SUCCEEDED = "succeeded"
_DOCUMENTED = ("validating_files", "queued", "running", SUCCEEDED, "failed", "cancelled", "paused")
# Other services' words. Where a status is in none of these lists, the job's other fields decide.
_SUCCESSFUL = (SUCCEEDED, "success", "successful", "completed", "complete", "finished", "done")
_UNSUCCESSFUL = (
    "failed", "cancelled", "canceled", "error", "errored", "expired", "deleted", "rejected", "aborted", "stopped",
    "timeout", "timed_out", "terminated",
)  # fmt: skip
_UNFINISHED = ("validating_files", "queued", "running", "paused", "pending", "created", "notrunning", "cancelling")


def of(job: Any) -> str:
    """The status as the service has it; `unknown` if it has none."""
    return field(job, "status", str) or "unknown"


def is_documented(status: str) -> bool:
    """Whether OpenAI's API has the status."""
    return status in _DOCUMENTED


def outcome(job: Any) -> Outcome:
    """Whether to wait for the job, or how it ended.

    A status that nobody documents is an end if the job has an error or an end time.
    """
    status = of(job).lower().replace("-", "_")
    if status in _SUCCESSFUL:
        return "succeeded"
    if status in _UNSUCCESSFUL:
        return "unsuccessful"
    if status in _UNFINISHED:
        return "waiting"
    if error_of(job):
        return "unsuccessful"
    if not number(job, "finished_at"):
        return "waiting"
    return "succeeded" if field(job, "fine_tuned_model", str) else "unsuccessful"


def error_of(job: Any) -> str:
    """What the service says about why the job failed, with code and parameter; empty if it says nothing."""
    error = getattr(job, "error", None)
    if isinstance(error, str):
        return error
    said = field(error, "message", str)
    if not said:
        return ""
    details = [f"{label} {value}" for label, name in (("code", "code"), ("parameter", "param"))
               if (value := field(error, name, str))]  # fmt: skip
    return said.rstrip(" .") + (f" ({', '.join(details)})" if details else "")
