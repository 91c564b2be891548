"""Prints mmlfer_commands/HELP.md, the help of every command: python tests/help_page.py > mmlfer_commands/HELP.md"""

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mmlfer  # noqa: E402


def help_of(command, name, parent=None):
    """Yield (name, help text) of a command and of its formats."""
    context = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100,
                            show_default=True)
    yield context.command_path, command.get_help(context)
    for sub in getattr(command, "commands", {}):
        yield from help_of(command.commands[sub], sub, context)


def page():
    """The page's text: a heading and the help of each command."""
    program = click.Context(mmlfer.main, info_name="mmlfer", max_content_width=100, terminal_width=100)
    parts = ["# Help of every command\n\n`python tests/help_page.py > mmlfer_commands/HELP.md` writes this page.",
             f"```\n{mmlfer.main.get_help(program)}\n```"]
    for name in mmlfer.COMMANDS:
        for path, text in help_of(mmlfer.main.get_command(program, name), name, program):
            parts.append(f"## {path}\n\n```\n{text}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
