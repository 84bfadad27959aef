"""Stage: a timed step inside a hop; the current span while it runs, a child span and a histogram afterwards.

Must not know how hops are opened or what becomes of the timing.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.trace.propagation import _SPAN_KEY as SPAN_KEY

from rtobs import _conventions as names
from rtobs import _redaction as redaction
from rtobs._hop import engine
from rtobs._hop.context import Context, attach, get_current
from rtobs._hop.runtime import runtime
from rtobs._journey.record import StageRecord

MOST_STAGES = 64
"""Stages of one hop that are kept; further ones are timed in the histogram only."""


def open_stage(name: str) -> StageRecord | None:
    """Start a stage in the current hop and make it the current span; None outside a hop."""
    hop = engine.current()
    if hop is None or hop.ended:
        return None
    context = get_current()
    around: Any = context.get(SPAN_KEY)
    parent = around if isinstance(around, StageRecord) and around.hop is hop else hop
    stage = StageRecord(name, hop, parent.span_hex)
    stage.start_ns = runtime.monotonic_ns()
    stage.wall_ns = hop.wall_ns + stage.start_ns - hop.start_ns
    stages = hop.stages
    if stages is None:
        stages = hop.stages = []
    if len(stages) < MOST_STAGES:
        stages.append(stage)
    if hop.adopted is None:
        enter_stage(stage)
    return stage


def enter_stage(stage: StageRecord) -> None:
    """Make an open stage the current span (again)."""
    previous = get_current()
    stage.previous = previous
    attach(Context({**previous, SPAN_KEY: stage}))


def leave_stage(stage: StageRecord) -> None:
    """Restore the span that was current before."""
    previous = stage.previous
    if previous is not None and get_current().get(SPAN_KEY) is stage:
        attach(previous)
    stage.previous = None


def close_stage(stage: StageRecord, error: BaseException | None) -> None:
    """End a stage; what it measured is recorded with its hop."""
    leave_stage(stage)
    if stage.ended:
        return
    stage.ended = True
    stage.duration_ns = runtime.monotonic_ns() - stage.start_ns
    if error is not None:
        stage.outcome = "failed" if isinstance(error, Exception) else "cancelled"
        stage.error_type = redaction.text(type(error).__qualname__, redaction.NAME_LIMIT)
    stages = stage.hop.stages
    if stages is None or (len(stages) >= MOST_STAGES and stage not in stages):
        labels = {names.Label.STAGE: stage.name, names.Label.OUTCOME: stage.outcome}
        runtime.observe(names.STAGE_DURATION, stage.duration_ns / 1e9, labels)
