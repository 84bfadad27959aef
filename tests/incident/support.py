"""What the tests of incidents share: a service's history in a real Prometheus, exemplars, and the command."""

from __future__ import annotations

import contextlib
import functools
import http.server
import sys
import threading
from pathlib import Path

from typer.testing import CliRunner

from rtobs import cli
from tests.slo.support import promtool

RTOBS = Path(sys.executable).with_name("rtobs")
STEP = 30
TENANTS = ("acme", "globex", "initech")


@functools.cache
def _app():
    return cli.build()


def rtobs(*arguments, cwd, given=""):
    """Run ``rtobs`` as its script does, in this process; return exit code, output and errors."""
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(_app(), list(map(str, arguments)), input=given, catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def expired_token(began, end):
    """Yield the series of two hours in which from *began* on the provider of push refuses our token."""
    moments = range(int(end) - 7200, int(end) + 1, STEP)

    def counter(rate, rate_after):
        total, found = 0.0, []
        for at in moments:
            total += STEP * (rate if at < began else rate_after)
            found.append((at, total))
        return found

    def gauge(before, after, since=began):
        return [(at, before if at < since else after) for at in moments]

    worker = 'job="notify-worker"'
    for result, category, before, after in (("ok", "", 10, 0.2), ("failed", "auth", 0.01, 9.8)):
        labels = f'{worker},channel="push",provider="fcm",result="{result}",error_category="{category}"'
        yield f"rtobs_delivery_attempts_total{{{labels}}}", counter(before, after)
        for bound in ("0.25", "+Inf"):
            yield f'rtobs_delivery_duration_seconds_bucket{{{labels},le="{bound}"}}', counter(before, after)
    yield f'rtobs_delivery_attempts_total{{{worker},channel="email",provider="ses",result="ok"}}', counter(10, 10)
    for outcome, before, after in (("ok", 10, 10), ("rejected", 0, 0)):
        labels = f'{worker},destination="deliver.push",outcome="{outcome}"'
        yield f"rtobs_message_settled_total{{{labels}}}", counter(before, after)
    changed = began - 60
    yield f'target_info{{{worker},service_version="1.4"}}', [one for one in gauge(1, 1) if one[0] < changed]
    yield f'target_info{{{worker},service_version="1.5"}}', [one for one in gauge(1, 1) if one[0] >= changed]
    slo = 'slo="delivery-5s",service="notify"'
    days = range(int(end) - 4 * 86_400, int(end) + 1, STEP)  # so much of the window is known
    yield f"slo:sli_total:rate5m{{{slo}}}", [(at, 20) for at in days]
    yield f"slo:sli_bad:rate5m{{{slo}}}", gauge(0, 9.8)
    yield f"slo:current_burn_rate:ratio{{{slo}}}", gauge(0, 49)
    yield f"slo:tenants_active:count{{{slo}}}", gauge(3, 3)
    yield f"slo:tenants_affected:count{{{slo}}}", gauge(0, 3)
    yield f"slo:window_coverage:ratio{{{slo}}}", gauge(0.133, 0.133)
    yield f"slo:period_error_budget_remaining:ratio{{{slo}}}", gauge(1, 0.74)
    for number, tenant in enumerate(TENANTS):
        yield f'tenant:sli_bad:rate5m{{{slo},tenant="{tenant}"}}', gauge(0, 9.8 / (number + 2))
    yield f'channel:sli_bad:rate5m{{{slo},channel="push"}}', gauge(0, 9.8)
    for name, labels, after in (
        ("RtobsSLOBurn", f'{slo},severity="page",playbook="downstream-vendor-outage",blast_radius="multi_tenant"', 180),
        ("RtobsSLOBurnSlow", f'{slo},severity="ticket",playbook="downstream-vendor-outage"', 240),
        ("RtobsAuthFailures", 'service="notify",severity="ticket",playbook="api-auth-failures",provider="fcm"', 120),
    ):
        firing = [(at, 1) for at in moments if at >= began + after]
        yield f'ALERTS{{alertname="{name}",alertstate="firing",{labels}}}', firing


def fill(folder, series):
    """Write *series* where a Prometheus that is started in *folder* finds them."""
    families = {}
    for name, points in series:
        families.setdefault(name.partition("{")[0], []).extend(f"{name} {value} {at}" for at, value in points)
    lines = [line for found in families.values() for line in found]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.txt").write_text("\n".join([*lines, "# EOF", ""]))
    long = "--max-block-duration=240h"  # one block is read faster than one every two hours
    content, said = promtool("tsdb", "create-blocks-from", "openmetrics", "history.txt", "data", long, cwd=folder)
    assert content, said


@contextlib.contextmanager
def exporter(text):
    """Serve *text* as OpenMetrics on a free port; give the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
