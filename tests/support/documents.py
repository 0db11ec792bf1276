"""The commands and the tables of messages in the documents that users read, and a folder to follow them in."""

import ast
import re
from pathlib import Path

from support.processes import ROOT

DOCUMENTS = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
SHORT = (
    "train.steps=2",
    "model.width=8",
    "model.depths=[1,1]",
    "data.crop=32",
    "data.batch=8",
    "data.workers=0",
    "validate.images=1",
    "train.threads=1",
)
"""Settings behind those of a command, which make its training a matter of seconds."""


def checkout(folder: Path) -> Path:
    """Make a folder that looks like the root of the repository, and takes what commands write."""
    (folder / "shards").mkdir(parents=True)
    for name in ("configs", "launch", "n2n_dist", "shards/build.py", "shards/audit.py", "shards/demo"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def commands(document: str, language: str = "sh") -> list[str]:
    """Return the commands of a document, those that stand on several lines as one; or other blocks of code, whole."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    if language != "sh":
        return blocks
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [command.partition(" #")[0].strip() for line in lines for command in line.split(" && ")]


def messages(document: str) -> list[str]:
    """Return the messages of a document's tables of remedies."""
    tables = re.findall(r"^\| message \| remedy \|\n.*\n((?:\|.*\n)+)", (ROOT / document).read_text(), re.MULTILINE)
    return [message for table in tables for message in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)]


def anchors(document: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", (ROOT / document).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def said() -> str:
    """Return every text that the sources hold, `…` for what is filled in."""
    texts = []
    for folder in ("n2n_dist", "launch", "shards"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    for path in (ROOT / "launch" / "slurm").glob("*.*h"):
        texts.append(re.sub(r"\$(\w+|\{[^}]*\})", "…", path.read_text()))
    return "\n".join(texts)
