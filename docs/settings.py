"""Write docs/settings.md from the dataclasses of settings and the docstring after each of their fields.

python docs/settings.py
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

from n2n_dist.config import IDENTITY, Config
from n2n_dist.models import MODELS as NETWORKS
from n2n_dist.noise import MODELS as NOISES
from n2n_dist.pairs import PAIRS

CHOICES: dict[str, dict[str, type]] = {
    "noise": NOISES,
    "pairs": PAIRS,
    "model": {name: network.settings_class for name, network in NETWORKS.items()},
}
"""Sections whose settings depend on their name."""
PAGE = Path(__file__).with_suffix(".md")
INTRODUCTION = """\
# Settings

Written by `python docs/settings.py` from the code. Every section is a dataclass beside the code that it configures; the
file is named below its heading. A configuration is a YAML of a few of these over the defaults, and `key=value` on the
command line goes over both; an unknown key, a wrong type or a value out of range is refused before anything is
allocated. `RUN/config.yaml` holds all of them.

**Identity** settings make a run what it is: they must agree when it is continued. All others may change.
The content of `data.shards` must agree too, wherever it is.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(f"written: {PAGE}", file=sys.stderr)


def page() -> str:
    """Return the page, in Markdown."""
    sections = typing.get_type_hints(Config)
    return "\n".join([INTRODUCTION, *(_section(name, cls) for name, cls in sections.items())])


def _section(section: str, cls: type) -> str:
    choices = CHOICES.get(section)
    lines = [f"## {section}", ""]
    if choices:
        lines += [f"`{section}.name` chooses; below each name are the settings that go with it. `{_source(cls)}`", ""]
    else:
        lines += [f"{_summary(cls)} `{_source(cls)}`", ""]
    lines += ["| key | default | identity | meaning |", "|---|---|---|---|"]
    for name, choice in (choices or {"": cls}).items():
        if name:
            lines.append(_row(f"**{section}.name**", f"**{name}**", _identity(f"{section}.name"), _summary(choice)))
        for field, text in _fields(choice):
            if not (choices and field.name == "name"):
                key = f"{section}.{field.name}"
                lines.append(_row(f"`{key}`", f"`{_default(field)}`", _identity(key), text))
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _summary(cls: type) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _fields(cls: type) -> Iterator[tuple[dataclasses.Field, str]]:
    """Yield every field of a dataclass with the docstring after it."""
    texts = {}
    for base in reversed(cls.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in itertools.pairwise(definition.body):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr)):
                continue
            if isinstance(statement.target, ast.Name):
                texts[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    for field in dataclasses.fields(cls):
        yield field, texts[field.name]


def _default(field: dataclasses.Field) -> str:
    """Return a default as YAML writes it."""
    factory = field.default_factory
    value = factory() if factory is not dataclasses.MISSING else field.default
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _identity(key: str) -> str:
    return "yes" if key in IDENTITY or key.split(".")[0] in IDENTITY else ""


def _source(cls: type) -> str:
    return f"{cls.__module__.replace('.', '/')}.py"


if __name__ == "__main__":
    main()
