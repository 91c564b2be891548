"""Wraps the imports of the program as paragraphs: python tests/wrap_imports.py"""

import ast
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def kind_of(name):
    """A key that sorts constants, then classes, then functions, each by name."""
    return not name.isupper(), not name[0].isupper(), name


def wrapped(node):
    """An import of names as lines of up to 100 columns."""
    names = sorted(map(ast.unparse, node.names), key=kind_of)
    line = f"from {node.module} import {', '.join(names)}"
    if len(line) <= 100:
        return line
    return f"from {node.module} import (\n" + textwrap.fill(", ".join(names), 100, initial_indent="    ",
                                                              subsequent_indent="    ") + ")"


def with_wrapped_imports(text):
    """A module's text with its imports at the top wrapped."""
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ImportFrom) and node.end_lineno > node.lineno:
            lines[node.lineno - 1 : node.end_lineno] = [wrapped(node)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path in (ROOT / "mmlfer.py", *(ROOT / "mmlfer_commands").glob("*.py")):
        path.write_text(with_wrapped_imports(path.read_text(encoding="utf-8")), encoding="utf-8")
