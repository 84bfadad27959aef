"""One run of the demo, from the observer's side: receive telemetry, show it, wait until all is delivered, sum up."""

from __future__ import annotations

import json
import secrets
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live

from rtobs.demo import summary, view
from rtobs.demo.brokers import prefix
from rtobs.demo.options import BrokenRunError
from rtobs.demo.processes import Platform
from rtobs.demo.receiver import Forwarder, Receiver
from rtobs.demo.story import Story

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtobs.demo.options import Options

REFRESH: Final = 0.25
QUIET: Final = 1.5
"""Seconds without any news after which nothing is taken to be on its way any more: several export intervals."""
DRAIN: Final = 60.0
"""Longest wait for deliveries after the last message, seconds."""


def run(options: Options, *, as_json: bool = False) -> int:
    """Run the demo and print what it showed; return the exit code.

    Args:
        options: what to run.
        as_json: print one JSON object at the end, and nothing else.
    """
    token = secrets.token_hex(4)
    story = Story(prefix(token))
    forwarder = Forwarder(options.otlp) if options.otlp else None
    with Receiver(story.telemetry, forwarder) as receiver:
        config = asdict(options) | {"run": token, "wire_key": secrets.token_hex(32)}
        platform = Platform(receiver.endpoint, config, options.ports)
        try:
            _observe(story, platform, options, live=not as_json and sys.stdout.isatty())
            platform.stop()
        except BrokenRunError as broken:
            print(f"rtobs demo: {broken}", file=sys.stderr)
            return 1
        finally:
            platform.close()
    if forwarder is not None and forwarder.problem():
        print(f"rtobs demo: {forwarder.problem()}", file=sys.stderr)
    if as_json:
        print(json.dumps(summary.as_json(story, options, platform.processes)))
    else:
        _print_summary(summary.as_text(story, platform.processes))
    return 0


def _observe(story: Story, platform: Platform, options: Options, *, live: bool) -> None:
    title = f"rtobs demo: {options.fault}" + ("" if options.fault == "none" else f" on {options.target}")
    state = ["starting"]
    screen = Live(get_renderable=lambda: view.render(story, title, state[0]), auto_refresh=False) if live else None

    def refresh(now: str) -> None:
        state[0] = now
        if screen is not None:
            screen.refresh()

    if screen is not None:
        screen.start()
    try:
        _start(platform, options)
        _watch(story, platform, options, refresh)
    except KeyboardInterrupt:
        refresh("stopping")
    finally:
        if screen is not None:
            screen.stop()


def _start(platform: Platform, options: Options) -> None:
    first, *others = options.roles
    platform.start(first)  # it declares the queues that the others read
    platform.start(*others)
    if options.prometheus:
        print("rtobs demo: Prometheus can scrape, while this runs:", file=sys.stderr)
        for one in platform.processes:
            print(f"  {one.metrics}  {one.role}", file=sys.stderr)
    platform.go()


def _watch(story: Story, platform: Platform, options: Options, refresh: Callable[[str], None]) -> None:
    begin = time.monotonic()
    ticked = begin
    sent_at = 0.0
    news, news_at = (0, 0, 0), begin
    while True:
        time.sleep(REFRESH)
        platform.supervise()
        now = time.monotonic()
        if now - ticked >= 1.0:
            ticked = now
            story.tick()
        identity = story.identity()
        latest = story.telemetry.spans_received, story.consumed(), sum(identity.outcomes.values())
        if latest != news:
            news, news_at = latest, now
        if not sent_at:
            refresh(f"{now - begin:.0f} of {options.seconds:g} s")
            if platform.sent_everything():
                sent_at = now
            elif now - begin > options.seconds + DRAIN:
                raise BrokenRunError(
                    f"The API was to send for {options.seconds:g} s and was not done after {now - begin:.0f} s. "
                    "Give a smaller --rate, or check the broker."
                )
            continue
        refresh(f"all sent, {identity.open} deliveries still to come")
        if (identity.open == 0 and now - news_at >= QUIET) or now - sent_at >= DRAIN:
            return


def _print_summary(lines: list[str]) -> None:
    console = Console(highlight=False)
    if console.is_terminal:
        console.print()
    for line in lines:
        bold = line.endswith("?") or line.startswith("A message that")
        # prose is wrapped between words, a timeline is not, and nothing is where a program may read it
        table = line.startswith(("    ", "  +"))
        console.print(line, style="bold" if bold else None, markup=False, soft_wrap=table or not console.is_terminal)
