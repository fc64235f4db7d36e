"""The GGUF converter: what is extracted, that it is downloaded once, and how it is run."""

import io
import tarfile
from pathlib import Path

import pytest

from stages.backends.unsloth.export import gguf
from stages.core import files, pypi
from stages.core.cli import UserError
from tests.conftest import set_params, use_base
from tests.support.families import FAMILIES
from tests.support.small import make_family

# Writes its arguments in place of the model.
WRITES = """
import sys
open(sys.argv[sys.argv.index("--outfile") + 1], "w").write(" ".join([sys.argv[1], *sys.argv[4:]]))
"""
FAILS = """
import sys
if "--outfile" in sys.argv:
    open(sys.argv[sys.argv.index("--outfile") + 1], "w").write("half")
print("INFO: reading", file=sys.stderr)
sys.exit("Model SomeArch is not supported")
"""
SILENT = "raise SystemExit(3)"


@pytest.fixture
def converter(project, monkeypatch):
    """converter(script) puts this converter into the package's archive; `asked` lists downloads."""
    asked = []

    def make(script):
        def download(requirement, kind, sha256, folder):
            asked.append((requirement, kind, sha256))
            path = folder / "source.tar.gz"
            top = "llama_cpp_python/vendor/llama.cpp/"
            with tarfile.open(path, "w:gz") as tar:
                for name, content in {
                    f"{top}convert_hf_to_gguf.py": script,
                    f"{top}conversion/llama.py": "arch",
                    f"{top}gguf-py/gguf/sub/writer.py": "writer",
                    f"{top}gguf-py/setup.py": "no",
                    f"{top}convert_other.py": "no",
                    "llama_cpp_python/convert_hf_to_gguf.py": "no",
                }.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content.encode()))
                link = tarfile.TarInfo(f"{top}conversion/link.py")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(link)
            return path

        monkeypatch.setattr(pypi, "download", download)
        return asked

    return make


def test_the_converter_gets_the_model_and_the_number_format(converter, tmp_path):
    converter(WRITES)
    gguf.write(tmp_path / "model", tmp_path / "model.gguf", "q8_0")
    assert (tmp_path / "model.gguf").read_text() == f"{tmp_path / 'model'} --outtype q8_0"


def test_before_training_the_converter_reads_the_base_without_writing(converter, tmp_path):
    converter('import sys\nassert sys.argv[1:] == ["base", "--dry-run"], sys.argv')
    gguf.check(Path("base"))


@pytest.mark.parametrize("form", ["gguf", "ollama"])
def test_a_base_that_cannot_be_exported_is_refused_before_anything_is_trained(converter, small_base, form):
    converter(FAILS)
    set_params(export__formats=["safetensors", form])
    message = "export.formats: .*: Model SomeArch is not supported; remove gguf and ollama, or choose another"
    with pytest.raises(UserError, match=message):
        use_base(small_base)
    set_params(export__formats=["safetensors"])
    use_base(small_base)


def test_a_template_that_no_modelfile_can_say_is_refused_before_anything_is_trained(converter, tmp_path):
    converter("")
    set_params(export__formats=["ollama"])
    with pytest.raises(UserError, match="more than wrap each message"):
        use_base(make_family(tmp_path / "base", FAMILIES["qwen3"]))


def test_it_is_downloaded_once_by_digest_and_only_the_converter_is_extracted(converter, tmp_path, capsys):
    asked = converter(WRITES)
    for _ in range(2):
        gguf.write(tmp_path, tmp_path / "model.gguf", "bf16")
    assert asked == [(gguf._PACKAGE, "source", gguf._SHA256)]
    assert capsys.readouterr().out.count("downloading llama.cpp's converter from the source package of llama-cpp") == 1
    folder = files.state_dir("converter") / gguf._SHA256
    taken = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert taken == {
        "convert_hf_to_gguf.py": WRITES,
        "conversion/llama.py": "arch",
        "gguf-py/gguf/sub/writer.py": "writer",
    }
    assert sorted(path.name for path in folder.parent.iterdir()) == [gguf._SHA256, "lock"]


@pytest.mark.parametrize("script, reason", [(FAILS, "Model SomeArch is not supported"), (SILENT, "no reason given")])
def test_a_converter_failure_reports_its_last_line_and_leaves_no_partial_file(converter, tmp_path, script, reason):
    converter(script)
    (tmp_path / "model.gguf").write_text("from before")
    with pytest.raises(UserError, match=f"converter cannot write this model as GGUF: {reason}; remove gguf"):
        gguf.write(tmp_path, tmp_path / "model.gguf", "bf16")
    assert (tmp_path / "model.gguf").read_text() == "from before"
