"""The dashboards as Grafana reads them, built with Grafana's own foundation SDK.

Knows Grafana's models; must not know SLOs.
"""

from __future__ import annotations

import json
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphThresholdsStyleMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)  # fmt: skip
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from rtobs.slo import links
from rtobs.slo.model import Declaration
from rtobs.slo.panels import Board, Panel

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_ROW: Final = 24
"""How wide Grafana's grid is."""
_STAT_HEIGHT, _HEIGHT = 5, 9
_PER_ROW: Final = 2


def to_json(declaration: Declaration, board: Board) -> str:
    """Return *board* as a file that Grafana imports; the same board gives the same text."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(links.uid(declaration, board.uid))
        .tags(["rtobs", declaration.service])
        .description(f"Made from the SLO declaration of {declaration.service} by rtobs slo build.")
        .readonly()
        .refresh("1m")
        .time("now-6h", "now")
        .variables(_variables(declaration, board))
        .links([_others()])
    )
    for panel in _placed(declaration, board):
        built = built.with_panel(panel)
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _others() -> dashboard.DashboardLink:
    to_all = dashboard.DashboardLink("Other questions").type(DashboardLinkType.DASHBOARDS).tags(["rtobs"])
    return to_all.as_dropdown(True).include_vars(True).keep_time(True)  # noqa: FBT003  the SDK's signatures


def _variables(declaration: Declaration, board: Board) -> list[Any]:
    found: list[Any] = [
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        dashboard.ConstantVariable("service").value(declaration.service),
    ]
    for name, query in board.variables:
        variable = dashboard.QueryVariable(name).datasource(_SOURCE).query(query)
        variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).all_value(".*")
        found.append(variable.multi(True).include_all(True))  # noqa: FBT003  as above
    return found


def _placed(declaration: Declaration, board: Board) -> list[Any]:
    """Return the panels in their places: what answers the question on top, the rest two in a row below."""
    first = [panel for panel in board.panels if panel.kind != "lines"][:3]
    rest = [panel for panel in board.panels if panel not in first]
    placed: list[Any] = []
    height = _HEIGHT if any(panel.kind == "table" for panel in first) else _STAT_HEIGHT
    for index, panel in enumerate(first):
        width = _ROW // len(first)
        placed.append(_panel(declaration, panel).grid_pos(GridPos(h=height, w=width, x=index * width, y=0)))
    for index, panel in enumerate(rest):
        row, column = divmod(index, _PER_ROW)
        place = GridPos(
            h=_HEIGHT, w=_ROW // _PER_ROW, x=column * (_ROW // _PER_ROW), y=bool(first) * height + row * _HEIGHT
        )
        placed.append(_panel(declaration, panel).grid_pos(place))
    return [panel.id(number) for number, panel in enumerate(placed, 1)]


def _panel(declaration: Declaration, panel: Panel) -> Any:
    kinds: dict[str, Any] = {"stat": stat.Panel, "table": table.Panel, "lines": timeseries.Panel}
    made = kinds[panel.kind]()
    made = made.title(panel.title).description(f"What to do next: {panel.next}").unit(panel.unit).datasource(_SOURCE)
    for index, query in enumerate(panel.queries):
        asked = prometheus.Dataquery().expr(query.expression).ref_id("ABCDEFGH"[index]).exemplar(query.exemplars)
        asked = asked.legend_format(query.legend or "__auto")
        if panel.kind == "table":
            asked = asked.format(PromQueryFormat.TABLE)
        made = made.with_target(asked.range() if panel.kind == "lines" else asked.instant())
    made = made.thresholds(_thresholds(panel.promise, less_is_bad=panel.less_is_bad))
    if panel.kind == "lines":
        made = made.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE))
    to_playbook = dashboard.DashboardLink(f"Playbook: {panel.playbook}").type(DashboardLinkType.LINK)
    return made.links([to_playbook.url(links.playbook(declaration, panel.playbook)).target_blank(True)])  # noqa: FBT003  as above


def _thresholds(promise: float, *, less_is_bad: bool) -> dashboard.ThresholdsConfig:
    below, above = ("red", "green") if less_is_bad else ("green", "red")
    steps = [Threshold(value=None, color=below), Threshold(value=promise, color=above)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
