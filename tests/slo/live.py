"""Live incidents: demos that break on purpose, a Prometheus with their rules, an Alertmanager, and who is called.

Each scenario is a service of its own, so that all of them can go on side by side in one Prometheus.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from rtobs import incident
from rtobs._prometheus import Prometheus
from rtobs.demo.options import Options
from rtobs.demo.processes import Platform
from rtobs.demo.receiver import Receiver
from rtobs.demo.telemetry import Telemetry
from rtobs.incident import Alert, Summary
from rtobs.incident.gather import gather
from rtobs.slo import alertmanager, project
from rtobs.slo.series import Scale
from tests.slo.support import PLAYBOOKS, ROOT
from tests.support.http import Server, listening
from tests.support.prometheus import OwnAlertmanager, OwnPrometheus, free_port

DECLARED = ROOT / "examples" / "slo" / "demo.yaml"
SCRAPE = "1s"


@dataclass(eq=False)
class Scenario:
    """One service: the platforms that it consists of, each with the fault and the channel that it breaks."""

    name: str
    faults: Sequence[tuple[str, str]]
    scale: float
    """How many times faster than in production its windows go by."""
    expected: Sequence[str] = ()
    """Names of the alerts that have to be heard before anybody looks at what happened."""
    alerts: tuple[Alert, ...] = ()
    """What somebody was told of it so far, each alert once."""
    project: project.Project = field(init=False)

    @property
    def paged(self) -> list[str]:
        """Names of the alerts that somebody was paged for."""
        return [alert.name for alert in self.alerts if alert.labels["severity"] == "page"]

    @property
    def heard(self) -> bool:
        """Whether all alerts that are expected were heard of."""
        return set(self.expected) <= {alert.name for alert in self.alerts}

    def declare(self, folder: Path) -> list[Path]:
        """Write the demo's declaration for this service, build its rules; return their files."""
        found = yaml.safe_load(DECLARED.read_text(encoding="utf-8"))
        found |= {"service": self.name, "jobs": [self.name], "playbooks": str(PLAYBOOKS)}
        found |= {"alerting": {"min_bad_events": {"page": 30, "ticket": 10}}}
        del found["tenants"]
        found["slos"] = [slo for slo in found["slos"] if slo["name"] != "api-ack"]  # nothing breaks there
        self.file = folder / f"{self.name}.json"
        self.file.write_text(json.dumps(found), encoding="utf-8")
        self.project = project.load(self.file)
        rules = []
        for name, text in project.build(self.project, self.scale).items():
            if name.startswith("rules/"):
                file = folder / f"{self.name}-{Path(name).name}"
                file.write_text(text, encoding="utf-8")
                rules.append(file)
        return rules


class Live:
    """All scenarios at once; use it as a context manager."""

    def __init__(self, folder: Path, scenarios: Sequence[Scenario], *, healthy: float, rate: float) -> None:
        self.scenarios = list(scenarios)
        self.traces: set[str] = set()
        """Ids of all traces that were exported."""
        self._folder = folder
        self._healthy, self._rate = healthy, rate
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start(self._stack.enter_context)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, enter: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        rules = [file for one in self.scenarios for file in one.declare(self._folder)]
        ports = {one.name: [free_port() for _ in one.faults] for one in self.scenarios}
        self._hook: Server = enter(listening())
        manager = enter(OwnAlertmanager(self._folder / "alertmanager", self._routes()))
        receiver = enter(Receiver(Telemetry(lambda span: self.traces.add(span.trace_id))))
        self.platforms = [
            self._platform(receiver, scenario, fault, port)
            for scenario in self.scenarios
            for fault, port in zip(scenario.faults, ports[scenario.name], strict=True)
        ]
        self.server: OwnPrometheus = enter(
            OwnPrometheus(
                self._folder / "prometheus", interval=SCRAPE, jobs=ports, rules=rules, alertmanager=manager.port
            )
        )
        for platform in self.platforms:
            platform.go()

    def _platform(self, receiver: Receiver, scenario: Scenario, fault: tuple[str, str], port: int) -> Platform:
        options = Options(
            *fault, seconds=3600, rate=self._rate, prometheus=port, after=self._healthy, slo=str(scenario.file)
        )
        config = asdict(options) | {"run": secrets.token_hex(4), "wire_key": secrets.token_hex(32)}
        found = Platform(receiver.endpoint, config, options.ports)
        self._stack.callback(found.close)
        found.start(*options.roles)
        return found

    def _routes(self) -> dict[str, Any]:
        """Return what `rtobs slo build` makes for each service as one configuration that waits for nothing."""
        found = [alertmanager.config(one.project.declaration) for one in self.scenarios]
        config = found[0]
        routes = [route for each in found for route in each["route"]["routes"]]
        for route in routes:
            for inner in route["routes"]:
                inner.update(group_wait="1s", group_interval="1s")
        config["route"].update(routes=routes, group_wait="1s", group_interval="1s", repeat_interval="1h")
        for receiver in config["receivers"]:
            address = self._hook.url(f"/{receiver['name']}")
            receiver["webhook_configs"] = [{"url": address, "send_resolved": True}]
        return config

    def hear(self) -> None:
        """Read what Alertmanager has sent so far."""
        for platform in self.platforms:
            platform.supervise()
        heard: dict[str, dict[Any, Alert]] = {one.name: {} for one in self.scenarios}
        for request in self._hook.received:
            for alert in incident.from_webhook(json.loads(request.body)):
                key = tuple(sorted(alert.labels.items()))
                before = heard[alert.labels["service"]].get(key)
                heard[alert.labels["service"]][key] = alert if before is None or alert.since > before.since else before
        for one in self.scenarios:
            one.alerts = tuple(heard[one.name].values())

    def stop(self) -> None:
        """End the demos, so that everything is exported, and Prometheus has the machine to itself."""
        with ThreadPoolExecutor(len(self.platforms)) as pool:
            list(pool.map(Platform.stop, self.platforms))

    def summary(self, scenario: Scenario, begin: float, end: float) -> Summary:
        """Ask Prometheus what happened to *scenario* and sum it up."""
        declaration = scenario.project.declaration
        asked = Prometheus(f"http://127.0.0.1:{self.server.port}")
        facts = gather(asked, declaration, scenario.alerts, begin, end, scale=Scale(scenario.scale))
        return incident.summarise(facts, declaration, scenario.project.playbooks)
