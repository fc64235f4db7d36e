"""Requests, responses and faults of the service, and its constants."""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

ORGANIZATION = "test-org"
BASE_MODELS = (
    "gpt-3.5-turbo-0125",
    "gpt-4o-mini-2024-07-18",
    "gpt-4o-2024-08-06",
    "gpt-4.1-nano-2025-04-14",
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-2025-04-14",
)
CREATED = 1700000000
ENDED = ("succeeded", "failed", "cancelled")
UNLISTED_STATUS = "thinking"
LEAST_EXAMPLES = 10
KEPT_CHECKPOINTS = 3
VALIDATED_EACH = 10
TOKENS_PER_WORD = 1.3
ROLES = ("system", "user", "assistant", "tool", "function")
RECORD_KEYS = {"messages", "tools", "parallel_tool_calls"}
MESSAGE_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call"}
WINDING_DOWN = (
    "OpenAI is winding down the fine-tuning platform and your organization is no longer able to create new "
    "fine-tuning training jobs."
)
DONE = b"data: [DONE]\n\n"
DEPRECATIONS = "https://platform.openai.com/docs/deprecations"
OPERATIONS = {
    "listModels": "_list_models",
    "retrieveModel": "_model",
    "createFile": "_create_file",
    "listFiles": "_list_files",
    "retrieveFile": "_file",
    "downloadFile": "_content",
    "deleteFile": "_delete_file",
    "createFineTuningJob": "_create_job",
    "listPaginatedFineTuningJobs": "_list_jobs",
    "retrieveFineTuningJob": "_job",
    "cancelFineTuningJob": "_cancel",
    "listFineTuningEvents": "_events",
    "listFineTuningJobCheckpoints": "_checkpoints",
    "createChatCompletion": "_chat",
}


class ServiceError(Exception):
    """An error response."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class FileError(Exception):
    """A file that cannot be trained on; the file's role in the job is added to the code."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Request:
    """A request, raw and parsed."""

    method: str
    path: str
    query_text: str
    headers: Any
    raw: bytes
    query: Json = field(default_factory=dict)
    body: Any = None
    upload: tuple[str, bytes] | None = None


@dataclass
class Answer:
    """A response before it is sent."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """A failure of the next requests that match."""

    method: str
    path_pattern: str
    how: str
    when: str
    times: int
    details: Json
