"""The command ``rtobs doctor``: runs an application and says what is wrong with how it uses rtobs.

Exit codes: 0 nothing to do; 1 something to do, each is told with its fix; 2 an argument is wrong, or the application
cannot be started. The application's own exit code is told.
"""

# No `from __future__ import annotations` here: typer evaluates the annotations, and they name what `register` imports.

import json
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    import typer


def register(app: "typer.Typer") -> None:
    """Add the command to *app*; typer must be there."""
    import typer

    @app.command("doctor", context_settings={"ignore_unknown_options": True})
    def doctor(
        command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="Such as: -- python app.py")],
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object; what the application prints goes to stderr.")
        ] = False,
    ) -> None:
        """Run an application, and say which of its clients are not seen, and what to change."""
        from rtobs.doctor.run import run

        try:
            report = run(command, quiet=as_json)
        except OSError as error:
            typer.echo(f"rtobs doctor: {command[0]} cannot be started: {error.strerror}", err=True)
            raise typer.Exit(2) from None
        typer.echo(json.dumps(report.data()) if as_json else "\n".join(report.lines()))
        raise typer.Exit(1 if report.findings else 0)
