"""A local stand-in for OpenAI's fine-tuning service that is as strict as the service is.

Requests and responses are validated against OpenAI's published description (see `stages.endpoint.contract`), and
violations are recorded in `violations`. It trains nothing: a job advances each time it is retrieved, its losses follow
a curve, and a "fine-tuned" model answers with the training response whose question is most similar.
"""

from tests.support.openai_server.service import OpenAIServer

__all__ = ["OpenAIServer"]
