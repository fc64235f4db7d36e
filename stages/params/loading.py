"""Reading params.yaml: strict YAML, then the typed models."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stages.core import artifacts
from stages.core.cli import UserError
from stages.core.yaml_text import parse as parse_yaml
from stages.params.faults import fault_lines
from stages.params.models import Params

PARAMS = Path("params.yaml")
# Bytes of a file of parameters or rules; the shipped ones have 11,000.
_LIMIT = 2**20


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
    try:
        return parse_yaml(artifacts.content(path, _LIMIT).decode())
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from None
