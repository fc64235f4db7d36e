"""YAML that people write and pull requests change: read strictly and with bounds."""

import re
from typing import Any

import yaml

# With references, a few lines have billions of values.
_MOST_VALUES = 100_000


def parse(text: str) -> Any:
    """The content of a YAML text: no key twice, `1e-05` is a number, at most 100,000 keys and values.

    Raises:
        yaml.YAMLError: it is not YAML, or has more.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # PyYAML's own errors on values that only look like a date or a number, such as 2020-13-45.
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a repeated key is refused, and `1e-05` is a number as in YAML 1.2."""

    def get_single_node(self) -> Any:
        """The document as PyYAML composes it, where a reference is the same node again."""
        node = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"it has more than {_MOST_VALUES:,} values", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is repeated", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# `dvc exp run -S lr=1e-5` writes `1e-05`, which YAML 1.1 takes for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$"), list("+-.0123456789")
)


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many keys and values a node has, each reference counted in full."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    found = known[id(node)]
    if found is None:
        raise yaml.composer.ComposerError(None, None, "a value contains itself", node.start_mark)
    return found
