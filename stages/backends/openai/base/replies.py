"""What a service replied: fields that may be missing or of another kind, and lists that may never end."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import openai

from stages.backends.openai.base.client import message, not_offered
from stages.core.cli import notice

T = TypeVar("T")

# Most pages of one list that are read; OpenAI's largest have 100 jobs or events each.
_MOST_PAGES = 1000


def field(of: Any, name: str, kind: type[T]) -> T | None:
    """A field of a reply if it is of the documented kind; None if it is missing, null or another kind."""
    found = of.get(name) if isinstance(of, dict) else getattr(of, name, None)
    return found if isinstance(found, kind) else None


def number(of: Any, name: str) -> float | None:
    """A number of a reply, also one that was sent as text; None if there is none, or it is not finite."""
    found = of.get(name) if isinstance(of, dict) else getattr(of, name, None)
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        value = float(found)
    except ValueError:
        return None
    return value if abs(value) < 1e300 else None


def listed(found: Iterable[T]) -> Iterator[T]:
    """The items of a list, each once, page by page; the list ends at a page that brings nothing new.

    A service that ignores `after` sends its first page for ever.
    """
    seen: set[str] = set()
    pages = found.iter_pages() if hasattr(found, "iter_pages") else [found]
    for count, page in enumerate(pages, 1):
        # A page of the SDK would continue with the next one if it was iterated.
        items = page._get_page_items() if hasattr(page, "_get_page_items") else page
        new = 0
        for item in items:
            name = field(item, "id", str)
            if name is None or name not in seen:
                new += 1
                seen.add(name or "")
                yield item
        if not new or count >= _MOST_PAGES:
            return


class Optional:
    """Parts of the API that a service may lack: asked for until the service says that it has none, which is said once.

    `missing` has the names of those that it lacks.
    """

    def __init__(self) -> None:
        self.missing: set[str] = set()

    def ask(self, name: str, request: Callable[[], T], instead: str) -> T | None:
        """Return the answer to a request, or None if the service lacks this part; `instead` says what happens then.

        Raises:
            openai.OpenAIError: the request failed for another reason.
        """
        if name in self.missing:
            return None
        try:
            return request()
        except openai.APIStatusError as error:
            if not not_offered(error):
                raise
            self.missing.add(name)
            notice(f"openai: the service has no {name} ({error.status_code}: {message(error)}); {instead}")
            return None
