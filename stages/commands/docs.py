"""docs: write the documentation that the code itself holds.

    python -m stages.commands.docs

It writes docs/metrics.md from the registry of metrics, docs/verdict.md from the table of verdicts, and docs/params.md,
docs/params.schema.json and the comments of params.yaml from the typed parameters. The values in params.yaml stay as
they are.
"""

from pathlib import Path

from stages import params
from stages.commands import metrics_page, verdict_page
from stages.core import files
from stages.core.cli import notice, run
from stages.params import documentation


def main() -> None:
    for path, text in documents().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)
            notice(f"wrote {path}")


def documents() -> dict[Path, str]:
    """What each file must hold."""
    params.load()
    return {
        Path(metrics_page.PAGE): metrics_page.page(),
        Path(verdict_page.PAGE): verdict_page.page(),
        Path(documentation.PAGE): documentation.page(params.read_yaml(params.PARAMS)),
        Path(documentation.SCHEMA): documentation.json_schema(),
        params.PARAMS: documentation.commented(params.PARAMS.read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    run(main)
