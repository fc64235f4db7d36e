"""params.yaml: typed models of all its keys, strict loading, and who reads which parameter.

Unknown keys are refused, values are checked for type and range, and all errors of the file are listed at once.
"""

from stages.params.backends import OpenAI, Unsloth
from stages.params.data import Columns, Data, Gate, Source, Split
from stages.params.defaults import DEFAULTS
from stages.params.kinds import BACKENDS, Auto, Backend
from stages.params.loading import PARAMS, load, parse_yaml, read_yaml
from stages.params.models import Params
from stages.params.readers import grouped, ignored_by, names, read_by, select
from stages.params.results import Evaluate, Export, Review
from stages.params.training import Adversarial, Checkpoint, Layers, Lora, Schedule

__all__ = [
    "BACKENDS",
    "DEFAULTS",
    "PARAMS",
    "Adversarial",
    "Auto",
    "Backend",
    "Checkpoint",
    "Columns",
    "Data",
    "Evaluate",
    "Export",
    "Gate",
    "Layers",
    "Lora",
    "OpenAI",
    "Params",
    "Review",
    "Schedule",
    "Source",
    "Split",
    "Unsloth",
    "grouped",
    "ignored_by",
    "load",
    "names",
    "parse_yaml",
    "read_by",
    "read_yaml",
    "select",
]
