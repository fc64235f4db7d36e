"""How services other than OpenAI's differ from it, by their documents; a strict answer is bent after it was checked."""

from dataclasses import dataclass, field
from typing import Any

from tests.support.openai_server.exchange import ServiceError

LISTS = ("listFiles", "listPaginatedFineTuningJobs", "listFineTuningEvents", "listFineTuningJobCheckpoints")


@dataclass(frozen=True)
class Profile:
    """What a service lacks and changes.

    `absent` are operations of OpenAI's description; `errors` is the form of its errors: openai, fastapi, text or html.
    `statuses` renames jobs' statuses, `fields` sets fields of jobs, and `events` and `checkpoints` their items' fields.
    A new file is read after `file_reads` requests for it. `deployments` are the only names for chat, each for `base` or
    `tuned`.
    """

    absent: frozenset[str] = frozenset()
    errors: str = "openai"
    query: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    extra_hyperparameters: tuple[str, ...] = ()
    statuses: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    checkpoint_metrics: dict[str, Any] | None = None
    metrics_of_events: dict[str, Any] | None = None
    follows_after: bool = True
    lists_nothing: tuple[str, ...] = ()
    bare_lists: bool = False
    file_reads: int = 0
    deployments: dict[str, str] = field(default_factory=dict)

    def take(self, request: Any) -> None:
        """Take what the contract does not know out of a request for a job, and refuse what the service refuses."""
        body = request.body
        for name in self.required:
            if name not in body:
                raise ServiceError(400, f"The request body lacks {name}.", name)
        for name in self.refused:
            if name in body:
                raise ServiceError(422, f"Extra inputs are not permitted: {name}", name)
        for name in self.extra:
            body.pop(name, None)
        for name in self.extra_hyperparameters:
            (body.get("hyperparameters") or {}).pop(name, None)

    def bend(self, name: str, value: Any, reads: int) -> Any:
        """The service's own form of a strict answer; `reads` counts earlier requests for a file."""
        if name in LISTS:
            items = [] if name in self.lists_nothing else [self._item(name, item) for item in value["data"]]
            return items if self.bare_lists else value | {"data": items, "has_more": value["has_more"] and bool(items)}
        if name == "listModels":
            return value["data"] if self.bare_lists else value
        return self._item(name, value, reads)

    def _item(self, name: str, value: Any, reads: int = 1000) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("object") == "fine_tuning.job":
            return value | {"status": self.statuses.get(value["status"], value["status"])} | self.fields
        if value.get("object") == "file" and reads < self.file_reads:
            return value | {"status": "pending" if not reads else "running"}
        if value.get("object") == "fine_tuning.job.checkpoint" and self.checkpoint_metrics is not None:
            return value | {"metrics": self.checkpoint_metrics}
        if value.get("object") == "fine_tuning.job.event" and self.metrics_of_events is not None:
            return value | ({"data": self.metrics_of_events} if value["type"] == "metrics" else {})
        return value


OPENAI = Profile()
# Azure OpenAI in Microsoft Foundry, v1 API: create wants trainingType, a new file is pending, and so is a job; there
# may be no result files, and chat goes to deployments.
AZURE = Profile(
    query=("api-version",),
    extra=("trainingType",),
    required=("trainingType",),
    statuses={"validating_files": "pending"},
    fields={"result_files": None, "organization_id": None},
    file_reads=2,
    deployments={"house-base": "base", "house-tuned": "tuned"},
)
# Nebius Token Factory: hyperparameters at the top level, among them its own; chat goes by other names than jobs do.
NEBIUS = Profile(
    refused=("method",),
    extra_hyperparameters=("lora", "lora_r", "packing"),
    fields={"metadata": None, "method": None},
    deployments={"meta-llama/base-fast": "base", "meta-llama/base-LoRa:desk": "tuned"},
)
# Nothing but files and jobs, to be created and retrieved, and chat, as FastAPI answers.
MINIMAL = Profile(
    absent=frozenset(
        (
            "listModels", "retrieveModel", "listFiles", "downloadFile", "deleteFile", "listPaginatedFineTuningJobs",
            "listFineTuningEvents", "listFineTuningJobCheckpoints",
        )
    ),
    errors="fastapi",
    fields=dict.fromkeys(("metadata", "result_files", "hyperparameters", "method", "trained_tokens", "finished_at",
                          "organization_id", "integrations")),
)  # fmt: skip
PROFILES = {"openai": OPENAI, "azure": AZURE, "nebius": NEBIUS, "minimal": MINIMAL}
