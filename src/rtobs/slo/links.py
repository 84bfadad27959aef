"""Where an alert sends people: the playbook, and the dashboard with its filters set."""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import urlencode

from rtobs.slo.model import Declaration
from rtobs.slo.promql import literal

DELAYED: Final = "rtobs-delayed"
CONNECTORS: Final = "rtobs-connectors"
TENANTS: Final = "rtobs-tenants"
PROMISES: Final = "rtobs-promises"
"""What identifiers of dashboards begin with."""
_LONGEST: Final = 40


def playbook(declaration: Declaration, name: str) -> str:
    """Return where the playbook *name* is found: its address, or its path from the declaration's file."""
    return f"{declaration.playbook_url or declaration.playbooks.rstrip('/')}/{name}.md"


def uid(declaration: Declaration, board: str) -> str:
    """Return the identifier of a dashboard, as it stands in Grafana's addresses: no two services share one."""
    plain = f"{board}-{re.sub(r'[^A-Za-z0-9-]+', '-', declaration.service)}"
    if plain == f"{board}-{declaration.service}" and len(plain) <= _LONGEST:
        return plain
    mark = hashlib.blake2b(declaration.service.encode(), digest_size=4).hexdigest()
    return f"{plain[: _LONGEST - len(mark) - 1].rstrip('-')}-{mark}"


def dashboard(declaration: Declaration, board: str, **variables: str) -> str:
    """Return the address of a dashboard with its *variables* set; empty where Grafana's is not declared."""
    if not declaration.dashboard_url:
        return ""
    chosen = urlencode({"var-service": declaration.service, **{f"var-{key}": one for key, one in variables.items()}})
    return f"{declaration.dashboard_url}/d/{uid(declaration, board)}?{chosen}"


def found_at(declaration: Declaration, name: str, board: str, **variables: str) -> dict[str, str]:
    """Return the annotations that link to a playbook and, if Grafana's address is declared, to a dashboard."""
    found = {"runbook_url": playbook(declaration, name), "dashboard_url": dashboard(declaration, board, **variables)}
    return {key: literal(address) for key, address in found.items() if address}
