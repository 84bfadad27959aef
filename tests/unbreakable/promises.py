"""The rows of the reliability table: what is promised, what is not, and which tests hold it."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One promise."""

    title: str
    promise: str
    limits: str
    tests: tuple[str, ...]
    """``file::function``, below ``tests/``."""


def _all(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}::test_{name}" for name in names)


_RELIABILITY = "_export/test_reliability.py"
_EXITS, _SERVERS, _STREAMS = (f"unbreakable/test_{name}.py" for name in ("exits", "servers", "streams"))
_HOSTILE, _TRUST = "unbreakable/test_hostile.py", "unbreakable/test_trust.py"

ROWS: dict[str, Row] = {
    "R1": Row(
        "The same application",
        "An application sees the same with and without rtobs: results, exceptions, calls, on every leaf.",
        "Time passes: a hop costs what [benchmarks](benchmarks.md) says.",
        _all("unbreakable/test_same_app.py", "an_application_sees_the_same_with_and_without_rtobs",
             "a_program_sees_the_same_with_and_without_its_client_wrapped", "ten_thousand_messages_through_each_broker",
             "ten_thousand_messages_through_each_program"),
    ),
    "R2": Row(
        "Faults of rtobs",
        "Whatever fails inside rtobs while a message is handled, the host does not notice; it is counted, and the next "
        "message is whole.",
        "`configure(strict=True)` raises on purpose. KeyboardInterrupt, SystemExit and cancellation are never kept "
        "back.",
        _all("unbreakable/test_faults.py", "every_call_on_the_message_path_may_fail",
             "every_call_may_fail_in_every_program"),
    ),
    "R3": Row(
        "Hostile objects",
        "No object that is handed to rtobs makes it raise, whatever its methods do.",
        "Objects are told by their type and not rendered.",
        _all(_HOSTILE, "r3_whatever_is_said_on_a_hop", "r3_whatever_another_library_says",
             "r3_whatever_is_handled_and_delivered", "r3_exceptions_of_the_host_go_on_unchanged"),
    ),
    "R6": Row(
        "A steady load arrives whole",
        "At 70 % of the rate that it can export without a drop, nothing is dropped or sent twice for a minute; that "
        "rate is at least 2.5 times the SDK's.",
        "Rates are compared by processor time. Our side makes full hops, a publish and a consume with headers, metrics "
        "and promises; the SDK's makes bare spans.",
        _all(_RELIABILITY, "r6_a_steady_load_is_exported_whole"),
    ),
    "R7": Row(
        "Nothing is lost unexplained",
        "Emitted = exported + dropped with a reason + queued, by the collector's own count, in 22 states of a "
        "collector and 9 moments of a process.",
        "What was sent and not answered before the end of the process is counted as dropped (`unanswered`), although "
        "it may have arrived. A collector that takes a request and dies before its answer gets it twice.",
        _all(_RELIABILITY, "r7_nothing_is_lost_unexplained", "r7_nothing_is_lost_unexplained_in_any_cell"),
    ),
    "R8": Row(
        "Outages",
        "While the collector is away memory grows by 32 MiB at most, our calls stay below a millisecond (p99), there "
        "is one log line a minute and cause, and it is found again.",
        "The queue holds 4,096 hops and 16 MiB. What is newer than that and healthy is dropped and counted; metrics "
        "keep their totals. Finding it again takes up to 30 seconds.",
        _all(_RELIABILITY, "r8_an_outage_costs_neither_memory_nor_time_and_ends", "r8_an_outage_of_a_minute"),
    ),
    "R9": Row(
        "Shutdown keeps its time",
        "`shutdown(timeout)` returns within its timeout and half a second, with a full queue and whatever the "
        "collector does.",
        "Looking up a name cannot be interrupted; shutdown does not wait for it.",
        _all(_RELIABILITY, "r9_shutdown_keeps_its_time_in_every_state_with_a_full_queue",
             "r9_shutdown_keeps_a_long_time_too"),
    ),
    "R10": Row(
        "Ends of processes",
        "Ends that leave time lose no finished hop, and exit codes, output and signals are what they were without "
        "rtobs; uvicorn and gunicorn included, by the recipes of [life cycle](life-cycle.md).",
        "`os._exit`, `exec` and SIGKILL lose what waits: as a rule what was finished in the last five seconds, 4,096 "
        "hops at most. uvicorn needs `rtobs.shutdown` at the end of the lifespan; SIGTERM without a handler needs "
        "`configure(sigterm=True)`. A handler of the host's that interrupts rtobs itself and calls `shutdown` gets "
        "False at once, and the end of the interpreter does it; `os._exit` in such a handler loses what waits.",
        _all(_EXITS, "r10_an_end_that_is_no_accident_loses_nothing", "r10_sigterm_does_what_it_did_before",
             "r10_signals_are_left_alone_unless_asked", "r10_shutdown_is_the_same_from_everywhere",
             "r10_a_signal_handler_may_shut_down_in_the_middle_of_a_hop",
             "r10_a_dead_collector_delays_the_end_by_no_more_than_the_timeout",
             "r10_what_no_library_can_save_is_bounded")
        + _all(_SERVERS, "r10_uvicorn_loses_nothing_when_it_is_stopped",
               "r10_uvicorn_loses_nothing_when_it_is_recycled",
               "r10_gunicorn_loses_nothing_when_it_is_reloaded_and_stopped", "r10_gunicorn_ends_as_it_would_have",
               "r10_gunicorn_loses_nothing_when_workers_are_recycled",
               "r10_gunicorn_sends_what_the_parent_measured_once",
               "r10_a_worker_that_hangs_loses_nothing_it_had_finished",
               "r10_a_worker_that_does_not_stop_loses_nothing_it_had_finished",
               "r10_a_pool_by_the_recipe_loses_nothing", "r10_a_program_by_the_recipe_loses_nothing"),
    ),
    "R11": Row(
        "Forks",
        "A process may fork while threads measure and locks are held: no child hangs, nothing is sent twice.",
        "Hops that were open around the fork are the parent's.",
        _all(_RELIABILITY, "r11_forks_neither_hang_nor_send_twice", "r11_a_thousand_forks"),
    ),
    "R12": Row(
        "Cancellation",
        "Cancelled at any await, abandoned or failing in a group, each hop ends once, as cancelled, and the "
        "cancellation goes on.",
        "An async generator that is dropped ends when Python closes it.",
        _all("unbreakable/test_cancellation.py", "a_program_may_be_cancelled_wherever_it_waits",
             "a_callback_may_be_cancelled_wherever_it_waits", "an_abandoned_generator_ends_its_delivery_once",
             "a_failing_task_group_ends_every_delivery_once"),
    ),
    "R13": Row(
        "Threads",
        "Counts are exact and no histogram is torn while many threads measure and somebody collects.",
        "With the interpreter lock; builds without it were not tried.",
        _all("unbreakable/test_threads.py", "sixty_four_threads_count_exactly_while_telemetry_is_collected",
             "sixty_four_threads_with_ten_thousand_messages_each"),
    ),
    "R15": Row(
        "Memory",
        "Journeys cost no memory after they have ended, and those that never end are capped at 10,000 and counted.",
        "Measured after a warm-up.",
        _all("unbreakable/test_memory.py", "two_hundred_thousand_journeys_cost_no_memory",
             "a_million_journeys_cost_no_memory"),
    ),
    "R16": Row(
        "Hostile headers",
        "No header makes rtobs raise, and ten megabytes cost no more than twice what a hundred kilobytes cost.",
        "What is wrong is counted and not shown.",
        _all(_HOSTILE, "r16_hostile_headers_through_every_carrier",
             "r16_the_corpus_through_every_carrier", "r16_ten_megabytes_cost_what_a_hundred_kilobytes_cost"),
    ),
    "R17": Row(
        "Headers go round",
        "What is injected is what is extracted, and headers of others are left byte for byte.",
        "The ledger keeps 12 hops and 512 bytes; what does not fit is counted.",
        _all(_TRUST, "r17_a_journey_goes_on_through_every_carrier", "r17_on_the_wire"),
    ),
    "R18": Row(
        "Poison",
        "Spans that cannot be encoded or that a collector refuses cost themselves only.",
        "One request takes several tries to take apart.",
        _all("_export/test_sending.py", "r18_poison_costs_itself_only", "r18_poison_in_log_events_costs_itself_only"),
    ),
    "R19": Row(
        "Trust",
        "A stranger's headers decide nothing: no sampling, no trace id, no tenant, no keep flag.",
        "Where a neighbour's instrumentation continues the trace at the edge, its span is the hop's.",
        _all(_TRUST, "r19_strangers_do_not_decide_what_is_sampled", "a_stranger_is_linked_and_not_believed"),
    ),
    "R20": Row(
        "Secrets",
        "No secret, body or recipient is in any signal by default.",
        "What looks like no known kind of secret and has no telling name cannot be known as one.",
        _all("unbreakable/test_secrets.py", "r20_no_secret_leaves_a_process",
             "r20_the_projects_own_pages_stay_readable", "r20_the_demos_log_fields_stay_readable"),
    ),
    "R21": Row(
        "Third parties",
        "No header or baggage of ours leaves to a host that is not allowed to get it.",
        "What a neighbour's instrumentation sends by itself is the neighbour's.",
        _all("unbreakable/test_third_parties.py", "r21_a_third_party_gets_nothing_of_ours",
             "r21_a_neighbours_instrumentation_gives_nothing_of_ours_away",
             "r21_a_host_that_is_named_gets_the_journey", "r21_a_redirect_to_a_stranger_takes_nothing_along",
             "r21_our_baggage_that_a_neighbour_has_read_goes_no_further",
             "r21_a_provider_gets_a_token_and_nothing_else"),
    ),
    "R22": Row(
        "Tenants",
        "No value of one tenant is in the telemetry of another, with exceptions and cancellations among thousands of "
        "tasks.",
        "Threads that were not given the context have none.",
        _all("unbreakable/test_tenants.py", "a_thousand_tasks_of_fifty_tenants_keep_apart"),
    ),
    "R23": Row(
        "Log injection",
        "One record is one line of valid JSON, whatever stands in whichever field; what was replaced is marked.",
        "Control, bidi and surrogate characters become U+FFFD, long values end in an ellipsis. A host's own fields in "
        "its own log lines are the host's.",
        _all(_STREAMS, "r23_one_record_is_one_line", "r23_records_arrive_over_otlp",
             "r23_what_is_added_to_the_hosts_own_lines_breaks_none", "r23_any_event_is_one_line_of_ascii"),
    ),
    "R24": Row(
        "Streams that fail",
        "A full disk, a reader that is gone, a closed stdout or stderr and any locale cost log events, which are "
        "counted, and nothing else: no exception, no other exit code.",
        "A reader that is slow makes the writer wait, as `print` would. Of a disk that fills up, the last line may be "
        "cut. A handler of the host's logger that cannot write loses its line uncounted, as logging does.",
        _all(_STREAMS, "r24_a_full_disk_costs_events_and_nothing_else", "r24_a_disk_that_fills_up_keeps_what_it_took",
             "r24_a_reader_that_is_gone_costs_events_and_nothing_else", "r24_a_reader_that_goes_away_meanwhile",
             "r24_a_closed_stdout_costs_events_and_nothing_else", "r24_no_locale_stops_a_line",
             "r24_a_closed_stderr_stops_nobody", "r24_lines_of_several_processes_do_not_mix"),
    ),
}  # fmt: skip
"""By the number in the table; numbers that are missing belong to promises held elsewhere."""
