"""Type hints of the public API: a user's script passes `mypy --strict`, and so do the public modules themselves."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests/data/user_script.py"
PUBLIC_MODULES = ("minigptv2", "minigptv2.api", "minigptv2.boxes", "minigptv2.sample")
# mypy reports errors of the files that it is given, and of no others. It reads all of this package, and of torch only
# what a Tensor and a dtype are: the rest takes a minute. arg-type in api: the model code names one of its two tokenizer
# classes, which have the same methods.
CONFIG = """
[mypy]
strict = True

[mypy-minigptv2.*,torch,torch._C,torch._tensor,torch.types]
follow_imports = silent

[mypy-torch.*,torchvision.*,transformers.*,timm.*,peft.*,sentencepiece.*,safetensors.*]
follow_imports = skip
ignore_missing_imports = True

[mypy-minigptv2.api]
disable_error_code = arg-type
"""


def check(tmp_path: Path, *given: str) -> str:
    """What mypy prints about these files or modules."""
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini")]
    command += ["--cache-dir", str(tmp_path / "cache"), *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_script_over_the_public_api_passes_mypy_strict(tmp_path):
    """Its lines with `type: ignore` must be errors: strict mode reports an ignore that is not needed."""
    assert SCRIPT.read_text().count("type: ignore") > 8
    assert "Success: no issues found in 1 source file" in check(tmp_path, str(SCRIPT))


@pytest.mark.slow
def test_public_modules_pass_mypy_strict(tmp_path):
    arguments = [part for module in PUBLIC_MODULES for part in ("-m", module)]
    assert f"Success: no issues found in {len(PUBLIC_MODULES)} source files" in check(tmp_path, *arguments)


def test_package_is_marked_as_typed():
    assert files("minigptv2").joinpath("py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()
