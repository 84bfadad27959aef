"""The command ``rtobs``.

Exit codes: 0 it ran; 1 the run broke; 2 an argument is wrong or an extra is missing.
"""

# No `from __future__ import annotations` here: typer evaluates the annotations, and they name what `build` imports.

import importlib.util
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    import typer

INSTALL = 'pip install "rtobs[tools]"'


def main() -> None:
    """Run the command line; the entry point of the ``rtobs`` script."""
    for extra in ("typer", "rich"):
        if importlib.util.find_spec(extra) is None:
            print(f"rtobs: the command line needs {extra}, which is not installed. Run: {INSTALL}", file=sys.stderr)
            sys.exit(2)
    build()(prog_name="rtobs")


def build() -> "typer.Typer":
    """Return the application; the extras must be there."""
    import typer

    from rtobs import _check_command, _doctor_command, _incident_command, _slo_command, _story_command
    from rtobs.demo.options import CHANNELS, FAULTS, Options, UsageError

    defaults = Options()
    app = typer.Typer(
        help="Makes every message explain itself.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number; give one such as 20.") from None

    def whole_number(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a whole number; give one such as 1.") from None

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"rtobs {metadata.version('rtobs')}")
            raise typer.Exit

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
        ] = False,
    ) -> None:
        """Makes every message explain itself: where it is, how long each step took, whether it arrived, why not."""

    @app.command()
    def demo(
        fault: Annotated[str, typer.Option(help=f"What goes wrong: {', '.join(FAULTS)}.")] = defaults.fault,
        target: Annotated[str, typer.Option(help=f"Where: {', '.join(CHANNELS)}.")] = defaults.target,
        seconds: Annotated[float, typer.Option(parser=number, help="How long messages are sent.")] = defaults.seconds,
        rate: Annotated[float, typer.Option(parser=number, help="Messages a second.")] = defaults.rate,
        seed: Annotated[
            int, typer.Option(parser=whole_number, help="Makes the same messages and the same luck again.")
        ] = defaults.seed,
        broker: Annotated[
            str,
            typer.Option(help="memory (one process), or amqp://…, redis://… or nats://… (one process per role)."),
        ] = defaults.broker,
        otlp: Annotated[str, typer.Option(help="OTLP/HTTP endpoint that gets a copy of everything.")] = defaults.otlp,
        prometheus: Annotated[
            int,
            typer.Option(
                parser=whole_number,
                metavar="PORT",
                show_default=False,
                help="Let Prometheus scrape the processes while they run: the first at PORT, the next at PORT + 1, …",
            ),
        ] = defaults.prometheus,
        fault_after: Annotated[
            float, typer.Option(parser=number, help="Seconds for which all is well before the fault begins.")
        ] = defaults.after,
        slo: Annotated[
            str,
            typer.Option(metavar="FILE", show_default=False, help="Declaration of SLOs that the platform counts."),
        ] = defaults.slo,
        sample: Annotated[
            float,
            typer.Option(parser=number, help="Share of healthy journeys exported; failed ones all are."),
        ] = defaults.sample,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, nothing else.")] = False,
    ) -> None:
        """Run a small notification platform, break one connector, and watch what its telemetry tells."""
        from rtobs.demo.brokers import check_client
        from rtobs.demo.ports import check_ports
        from rtobs.demo.run import run

        try:
            options = Options(fault, target, seconds, rate, seed, broker, otlp, prometheus, fault_after, slo, sample)
            check_client(broker)
            check_ports(options)
        except UsageError as wrong:
            print(f"rtobs demo: {wrong}", file=sys.stderr)
            raise typer.Exit(2) from None
        raise typer.Exit(run(options, as_json=json))

    app.add_typer(_slo_command.commands(), name="slo")
    _story_command.register(app)
    _incident_command.register(app)
    _check_command.register(app)
    _doctor_command.register(app)
    return app


if __name__ == "__main__":
    main()
