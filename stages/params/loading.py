"""Reading params.yaml: strict YAML, then the typed models."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stages.core.cli import UserError
from stages.params.faults import fault_lines
from stages.params.models import Params

PARAMS = Path("params.yaml")


def load(path: Path = PARAMS) -> Params:
    """Read and check the parameters.

    Raises:
        UserError: the file is missing, not YAML, or wrong; all its errors are listed, one a line.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing here; run from the project's top folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it must be a readable file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values, such as `lr: 0.001`")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = fault_lines(error)
        count = f"{len(lines)} error{'s' if len(lines) > 1 else ''}"
        raise UserError("\n".join([f"{path} has {count}; fix it, or the -S that set it", *lines])) from None


def read_yaml(path: Path) -> Any:
    """A YAML file's content, read as params.yaml is: no key twice, `1e-05` is a number.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read.
    """
    return parse_yaml(path.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """Text in YAML, read as params.yaml is.

    Raises:
        yaml.YAMLError: it is not YAML.
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
