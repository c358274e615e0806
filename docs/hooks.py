"""MkDocs hooks: pages made from the program itself, and pages whose text lives beside their data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMANDS, SETTINGS = "<!-- commands -->", "<!-- settings -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the placeholders of the pages."""
    markdown = re.sub(r"<!-- include (\S+) -->", lambda found: included(found[1]), markdown)
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(command_lines()))
    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, "\n".join(setting_lines()))
    return markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Show the code beside the equations without a click."""
    if page.file.src_uri == "concepts/method.md":
        html = html.replace(
            '<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" open>'
        )
    return html


def included(file: str) -> str:
    """The text of a file of the repository; its links into docs/ become links between pages."""
    return (ROOT / file).read_text(encoding="utf-8").replace("](../docs/", "](")


def command_lines() -> Iterator[str]:
    """One section for each command: its help and a table of its arguments and options."""
    from typer.main import get_command

    from fmcnet.cli.app import app

    pending = [("fmcnet", get_command(app))]
    while pending:
        name, command = pending.pop(0)
        for subcommand in sorted(getattr(command, "commands", {})):
            pending.append((f"{name} {subcommand}", command.commands[subcommand]))
        yield from (f"## {name}", "", help_text(command.help), "")
        yield from ("| argument or option | default | meaning |", "|---|---|---|")
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            record = parameter.help or "" if hasattr(parameter, "help") else ""
            names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "argument":
                names = f"`{(parameter.metavar or parameter.name).upper()}`"
            yield f"| {names} | {default_text(parameter)} | {cell(record)} |"
        yield ""


def help_text(text: str | None) -> str:
    """The help text, with the command lines in it as code."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(
        f"```sh\n{' '.join(p.split())}\n```" if p.startswith("fmcnet ") else cell(p) for p in paragraphs
    )


def default_text(parameter: Any) -> str:
    """The default as code; required parameters say so; nothing for flags and None."""
    if parameter.required:
        return "required"
    if parameter.default in (None, [], ()) or parameter.default is False or callable(parameter.default):
        return ""
    return f"`{parameter.default}`"


def setting_lines() -> Iterator[str]:
    """One table for each section of a configuration."""
    from fmcnet.config import Config

    for section, field in Config.model_fields.items():
        settings = getattr(field.annotation, "model_fields", None)
        if settings is None:
            continue
        yield from (f"## {section}", "", "| setting | default | meaning |", "|---|---|---|")
        for name, setting in settings.items():
            default = setting.get_default(call_default_factory=True)
            shown = json.dumps(default).strip('"')
            yield f"| `{name}` | `{shown}` | {cell(setting.description or '')} |"
        yield ""


def cell(text: str) -> str:
    """Text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
