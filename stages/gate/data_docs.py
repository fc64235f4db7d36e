"""Great Expectations' own page on a result, as a file that needs no other."""

import re
from typing import Any

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Its links lead to a whole site. What that would show of the suite is on our page; an icon there is none.
_LINKS = (
    (re.compile(r'<link rel="shortcut icon"[^>]*>'), ""),
    (re.compile(r'(href=")(?:\.\./)+expectations/[^"]*'), r"\g<1>{page}#rules"),
    (re.compile(r'(href=")(?:\.\./)+index\.html'), r"\g<1>{page}"),
    (re.compile(r'\b(?:href|src)="\.\./[^"]*"'), ""),
)


def render(result: Any, page: str) -> str:
    """The page as HTML, equal bytes for equal results; its styles come from the network.

    `page` is the name of the file beside it, to which it links in place of the site's index and of the suite.
    """
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    result.meta.pop("batch_markers", None)
    text = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    text = re.sub(r"\?d=\d{8}T[\d.]+Z", "", text)
    for number, identifier in enumerate(dict.fromkeys(_UUID.findall(text))):
        text = text.replace(identifier, str(number))
    for link, new in _LINKS:
        text = link.sub(new.format(page=page), text)
    return text
