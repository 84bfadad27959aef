"""Broken declarations: each mistake is told with its file and line, what was seen and what to do, all at once."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from rtobs.errors import ConfigError
from rtobs.slo import SLO, Alerting, Deadline, Declaration, DeclarationError, Latency, Ratio, Step, load, reader, source

GOOD = """\
apiVersion: rtobs/v1
service: notify
owner: team-messaging
tenants: [acme, globex]
slos:
  - name: api-ack
    description: Acknowledged in time.
    objective: 99.9
    playbook: api-latency
    sli: {kind: latency, hop: accept, threshold: 300ms}
  - name: delivery
    description: Delivered in time.
    objective: 99
    playbook: vendor-outage
    group_by: channel
    sli: {kind: deadline, step: promise, threshold: 5s}
  - name: jobs
    description: Run in time.
    objective: 99.5
    playbook: backlog
    sli: {kind: ratio, hop: job, bad: [late, missed]}
"""

PERCENT = "give a percentage above 0 and below 100, such as 99.9"
NAME = "give small letters, digits and single hyphens, such as api-ack"
LINE = "give one line of text"
LABEL = "give the name as it is in telemetry, such as acme"
ACK, DELIVERY, JOBS = 'SLO "api-ack"', 'SLO "delivery"', 'SLO "jobs"'


def mistakes(text, form="YAML", file="slo.yaml"):
    """Return what is wrong with a declaration."""
    with pytest.raises(DeclarationError) as caught:
        reader.declare(source.parse(text, form, file))
    return [str(mistake) for mistake in caught.value.mistakes]


def test_what_the_mistakes_are_made_in_is_right():
    """The declaration that the tests below break is one without mistakes."""
    assert len(reader.declare(source.parse(GOOD, "YAML", "slo.yaml")).slos) == 3


# What stands in GOOD, what stands there instead, and everything that is told.
BROKEN = [
    ("apiVersion: rtobs/v1\n", "apiVersion: rtobs/v2\n", ['slo.yaml:1: apiVersion: saw "rtobs/v2"; give rtobs/v1']),
    ("apiVersion: rtobs/v1\n", "", ["slo.yaml:1: saw no apiVersion; give it rtobs/v1"]),
    ("service: notify\n", "", ["slo.yaml:1: saw no service; give it the name as it is in telemetry, such as acme"]),
    ("service: notify", "service: ' '", [f'slo.yaml:2: service: saw " "; {LABEL}']),
    ("service: notify", "service: [a]", [f"slo.yaml:2: service: saw a list; {LABEL}"]),
    (
        "owner: team-messaging\n", "",
        [f"slo.yaml:{line}: {slo}: saw no owner; name who acts, here or for the whole declaration"
         for line, slo in ((5, ACK), (10, DELIVERY), (16, JOBS))],
    ),
    (
        "service: notify", "service: notify\nowners: me",
        ['slo.yaml:3: owners: saw the key "owners", which means nothing here; did you mean owner?'],
    ),
    (
        "service: notify", "service: notify\nservice: other",
        ['slo.yaml:3: service: saw the key "service" a second time in one table; keep one of them'],
    ),
    (
        "tenants: [acme, globex]", "tenants: acme",
        ['slo.yaml:4: tenants: saw "acme"; give a list of names, such as [acme, beta]'],
    ),
    (
        "tenants: [acme, globex]", "tenants: []",
        ["slo.yaml:4: tenants: saw a list without entries; give a list of names, such as [acme, beta]"],
    ),
    (
        "tenants: [acme, globex]", "tenants:\n  - acme\n  - acme",
        ['slo.yaml:6: tenants[1]: saw "acme" a second time; name each once'],
    ),
    (
        "tenants: [acme, globex]", "tenants: [acme, other]",
        ['slo.yaml:4: tenants[1]: saw "other", which stands for tenants without a name; name a tenant'],
    ),
    (
        "tenants: [acme, globex]", "playbook_url: runbooks.example.com",
        [('slo.yaml:4: playbook_url: saw "runbooks.example.com"; '
         "give the beginning of a web address, such as https://runbooks.example.com")],
    ),
    (
        "tenants: [acme, globex]", "alerting: {min_bad_events: {page: 0}}",
        ["slo.yaml:4: alerting.min_bad_events.page: saw 0; give a whole number from 1 on, such as 10"],
    ),
    (
        "tenants: [acme, globex]", "alerting: {min_bad_events: {ticket: 2.5}}",
        ["slo.yaml:4: alerting.min_bad_events.ticket: saw 2.5; give a whole number from 1 on, such as 10"],
    ),
    (
        "tenants: [acme, globex]", "alerting: {single_tenant: wake}",
        ['slo.yaml:4: alerting.single_tenant: saw "wake"; give page, ticket or dashboard'],
    ),
    (
        "tenants: [acme, globex]", "policy: [{budget_left: 100, action: Dance.}]",
        ["slo.yaml:4: policy[0].budget_left: saw 100; give a percentage from 0 to below 100, such as 50"],
    ),
    (
        "tenants: [acme, globex]",
        "policy:\n  - {budget_left: 50, action: Look.}\n  - {budget_left: 50, action: Stop.}",
        ["slo.yaml:6: policy[1].budget_left: saw 50 a second time; keep one step for each"],
    ),
    (
        "tenants: [acme, globex]", "policy: [{budget_left: 50}]",
        ["slo.yaml:4: policy[0]: saw no action; give it one line of text"],
    ),
    ("name: api-ack", "name: Api Ack", [f'slo.yaml:6: SLO "Api Ack", name: saw "Api Ack"; {NAME}']),
    (
        "name: delivery", "name: api-ack",
        [('slo.yaml:11: SLO "api-ack", name: saw "api-ack" a second time; the first is on line 6; '
         "give each SLO a name of its own")],
    ),
    ("name: api-ack\n    ", "", [f"slo.yaml:6: slos[0]: saw no name; give it {NAME.removeprefix('give ')}"]),
    ("objective: 99.9", "objective: 100", [f"slo.yaml:8: {ACK}, objective: saw 100; {PERCENT}"]),
    ("objective: 99.9", "objective: 0", [f"slo.yaml:8: {ACK}, objective: saw 0; {PERCENT}"]),
    ("objective: 99.9", "objective: 99.9 %", [f'slo.yaml:8: {ACK}, objective: saw "99.9 %"; {PERCENT}']),
    ("objective: 99.9", "objective: yes", [f"slo.yaml:8: {ACK}, objective: saw true; {PERCENT}"]),
    ("objective: 99.9", "objective: .nan", [f"slo.yaml:8: {ACK}, objective: saw NaN; {PERCENT}"]),
    ("description: Acknowledged in time.", "description:", [f"slo.yaml:7: {ACK}, description: saw nothing; {LINE}"]),
    (
        "description: Acknowledged in time.", f"description: {'x' * 201}",
        [f'slo.yaml:7: {ACK}, description: saw "{"x" * 60}…", which has 201 characters of at most 200; {LINE}'],
    ),
    (
        "    playbook: api-latency\n", "",
        [f"slo.yaml:6: {ACK}: saw no playbook; give it the id of a playbook, such as api-latency"],
    ),
    (
        "threshold: 300ms", "threshold: 300",
        [f"slo.yaml:10: {ACK}, sli.threshold: saw 300; give a time of 1ms to 10m with its unit, such as 300ms"],
    ),
    (
        "threshold: 5s", "threshold: 1h",
        [f'slo.yaml:16: {DELIVERY}, sli.threshold: saw "1h"; give a time of 100ms to 15m with its unit, such as 5s'],
    ),
    (
        "hop: accept, ", "",
        [f"slo.yaml:10: {ACK}, sli: saw neither hop nor stage; name one: hop: accept, say, or stage: enrich"],
    ),
    (
        "hop: accept, ", "hop: accept, stage: enrich, ",
        [f"slo.yaml:10: {ACK}, sli: saw both hop and stage; name one: hop: accept, say, or stage: enrich"],
    ),
    ("kind: latency", "kind: speed", [f'slo.yaml:10: {ACK}, sli.kind: saw "speed"; give ratio, latency or deadline']),
    ("kind: latency, ", "", [f"slo.yaml:10: {ACK}, sli: saw no kind; give it ratio, latency or deadline"]),
    (
        "sli: {kind: latency, hop: accept, threshold: 300ms}", "sli: fast",
        [(f'slo.yaml:10: {ACK}, sli: saw "fast"; '
         "give a table with kind, such as kind: latency, hop: accept, threshold: 300ms")],
    ),
    (
        "step: promise", "step: arrived",
        [(f'slo.yaml:16: {DELIVERY}, sli.step: saw "arrived"; '
         "give promise, accepted, delivered, displayed, opened or acted")],
    ),
    (
        "bad: [late, missed]", "bad: [late, dead_lettered]",
        [(f'slo.yaml:21: {JOBS}, sli.bad[1]: saw "dead_lettered", which is no bad end of job; '
         "use late, missed or failed")],
    ),
    (
        "bad: [late, missed]", "bad: [tardy]",
        [(f'slo.yaml:21: {JOBS}, sli.bad[0]: saw "tardy"; '
         "give failed, rejected, dropped, expired, dead_lettered, late or missed")],
    ),
    (
        "group_by: channel", "group_by: connector",
        [
            (f"slo.yaml:15: {DELIVERY}, group_by: saw connector, and an SLO about deadline has none; "
            "use group_by: channel")
        ],
    ),
    (
        "objective: 99.5", "objective: 99.5\n    group_by: channel",
        [f"slo.yaml:20: {JOBS}, group_by: saw channel, and an SLO about job has none; use group_by: connector"],
    ),
    (
        "objective: 99.9", "objective: 99.9\n    group_by: channel",
        [f"slo.yaml:9: {ACK}, group_by: saw channel, and an SLO about accept has none; leave it out"],
    ),
    (
        "objective: 99.5", "objective: 99.5\n    connectors: {crm: 98}",
        [(f"slo.yaml:20: {JOBS}, connectors: saw objectives by connector without group_by: connector; "
         "add group_by: connector, or leave the objectives out")],
    ),
    (
        "group_by: channel", "group_by: channel\n    channels:\n      sms: 101",
        [f"slo.yaml:17: {DELIVERY}, channels.sms: saw 101; {PERCENT}"],
    ),
    (
        "group_by: channel", "group_by: channel\n    where: {channel: [push]}\n    channels: {sms: 98}",
        [(f'slo.yaml:17: {DELIVERY}, channels.sms: saw an objective for "sms", which is not counted; '
         "add it to where.channel, or leave its objective out")],
    ),
    (
        "group_by: channel", "where: {route: [/send]}",
        [(f"slo.yaml:15: {DELIVERY}, where.route: saw route, by which an SLO about deadline cannot be told apart; "
         "use where: channel")],
    ),
    (
        "group_by: channel", "tenants: {other: 98}",
        [
            (f'slo.yaml:15: {DELIVERY}, tenants.other: saw "other", which stands for tenants without a name; '
            "name a tenant")
        ],
    ),
    (
        "group_by: channel", "every: 1h",
        [f"slo.yaml:15: {DELIVERY}, every: saw every for an SLO about deadline; leave it out; it is for hop: job"],
    ),
    (
        "objective: 99.5", "objective: 99.5\n    every: 1s",
        [f'slo.yaml:20: {JOBS}, every: saw "1s"; give a time of 1m to 31d with its unit, such as 1h'],
    ),
    ("objective: 99.5", "objective: 99.5\n    window: 90d",
     [f'slo.yaml:20: {JOBS}, window: saw "90d"; give 7d, 28d or 30d']),
    ("objective: 99.5", "objective: 99.5\n    severity: loud",
     [f'slo.yaml:20: {JOBS}, severity: saw "loud"; give page, ticket or dashboard']),
    ("  - name: jobs", "  - jobs\n  - name: jobs",
     [('slo.yaml:17: slos[2]: saw "jobs"; '
      "give a table with name, objective, description, owner, playbook and sli")]),
    (GOOD[GOOD.index("slos:"):], "slos: []\n",
     ["slo.yaml:5: slos: saw a list without entries; give a list of SLOs, each with name and objective"]),
    (GOOD[GOOD.index("slos:"):], "",
     ["slo.yaml:1: saw no slos; give it a list of SLOs, each with name and objective"]),
    ("objective: 99.9", "objective: 99.99999999999",
     [f"slo.yaml:8: {ACK}, objective: saw 99.99999999999, which is too near to 100; {PERCENT}"]),
    ("objective: 99.9", "objective: 1.0e-9",
     [f"slo.yaml:8: {ACK}, objective: saw 1e-09, which is too near to 0; {PERCENT}"]),
    (
        "tenants: [acme, globex]", f"alerting: {{min_bad_events: {{page: 1{'0' * 400}}}}}",
        [f"slo.yaml:4: alerting.min_bad_events.page: saw 1{'0' * 59}…; give a whole number from 1 on, such as 10"],
    ),
    (
        "tenants: [acme, globex]", "dashboard_url: https://grafana.example.com/?orgId=1",
        [('slo.yaml:4: dashboard_url: saw "https://grafana.example.com/?orgId=1"; '
         "give the beginning of a web address, such as https://grafana.example.com")],
    ),
    (
        "tenants: [acme, globex]", f"tenants: [{'x' * 65}]",
        [(f'slo.yaml:4: tenants[0]: saw "{"x" * 60}…", which has 65 characters of at most 64; '
         "give the name as it is in telemetry, such as acme")],
    ),
    ("service: notify", 'service: "no\\atify"',
     ['slo.yaml:2: service: saw "no\\u0007tify"; give the name as it is in telemetry, such as acme']),
    ("service: notify", 'service: "\\uD800"',
     ['slo.yaml:2: service: saw "\\ud800"; give the name as it is in telemetry, such as acme']),
    ("service: notify", "service: notify\n~: 1",
     [("slo.yaml:1: None: saw the key nothing, which means nothing here; the keys here are apiVersion, service, jobs, "
      "owner, tenants, playbooks, playbook_url, dashboard_url, alerting, policy, slos")]),
    (GOOD, "", ["slo.yaml: saw nothing; give apiVersion, service and slos"]),
    (GOOD, "- 1\n", ["slo.yaml:1: saw a list; give apiVersion, service and slos"]),
    ("service: notify", "service: [", [
        "slo.yaml:4: this is not YAML (expected ',' or ']', but got ':'); correct it there"]),
    ("service: notify", "service: !!python/name:os.system x", [
        ("slo.yaml:2: this is not YAML (could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/name:os.system'); correct it there")]),
    ("service: notify", "service: x\n---\na: 1", [
        "slo.yaml:3: this is not YAML (but found another document); correct it there"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("good", "broken", "told"), BROKEN, ids=[f"{index}-{broken[:30]!r}" for index, (_, broken, _) in enumerate(BROKEN)]
)
def test_a_broken_declaration_is_told(good, broken, told):
    """A mistake is told in these words, and nothing else is."""
    assert good in GOOD
    assert mistakes(GOOD.replace(good, broken, 1)) == told


def test_there_are_more_than_thirty():
    """The table above has the thirty broken declarations that were promised, each with a message of its own."""
    assert len({told for _, _, every in BROKEN for told in every}) > 50


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    """One run is enough to see all that is wrong, from top to bottom."""
    text = GOOD
    for good, broken, _ in (BROKEN[0], BROKEN[11], BROKEN[22], BROKEN[31], BROKEN[38]):
        text = text.replace(good, broken, 1)
    assert mistakes(text) == [BROKEN[index][2][0] for index in (0, 11, 22, 31, 38)]


def test_the_message_of_the_error_lists_them():
    """The error is a ConfigError whose text is the list."""
    with pytest.raises(ConfigError, match=r"The SLO declaration has 1 mistake:\n  slo.yaml:2: saw no apiVersion"):
        reader.declare(source.parse(GOOD.replace("apiVersion: rtobs/v1\n", "\n"), "YAML", "slo.yaml"))


@pytest.mark.parametrize("form", ["TOML", "JSON"])
def test_other_formats_tell_lines_too(form):
    """The same mistake in TOML and JSON is told with the line it is on there."""
    data = yaml.safe_load(GOOD)
    data["slos"][1]["objective"] = 100
    if form == "JSON":
        text = json.dumps(data, indent=2)
        line = next(number for number, one in enumerate(text.splitlines(), 1) if '"objective": 100' in one)
    else:
        tables = "".join(
            "[[slos]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in slo.items() if key != "sli")
            + "[slos.sli]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in slo["sli"].items())
            for slo in data["slos"]
        )  # fmt: skip
        top = "".join(f"{key} = {json.dumps(value)}\n" for key, value in data.items() if key != "slos")
        text = f"# a comment\n{top}{tables}"
        line = text[: text.index("objective = 100")].count("\n") + 1
    assert mistakes(text, form, "slo.x") == [f"slo.x:{line}: {DELIVERY}, objective: saw 100; {PERCENT}"]


@pytest.mark.parametrize(
    ("text", "form", "told"),
    [
        ('{"service": "a",\n"service": "b", "apiVersion": 1', "JSON", "slo.x:2: this is not JSON (Expecting ',' delim"),
        ("a = 1\nb = \n", "TOML", "slo.x: this is not TOML (Invalid value (at line 2, column 5)); correct it there"),
        ("[" * 100_000, "JSON", "slo.x: saw tables inside tables without end; write each value once"),
        ("[" * 5_000 + "]" * 5_000, "YAML", "slo.x: saw tables inside tables without end; write each value once"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdef", "bcdefg", strict=True)
        ), "YAML", "slo.x: saw more than 20000 values; write each value once, without aliases"),
        ("a: \x00", "YAML", "slo.x: this is not YAML (unacceptable character #x0000"),
        ("a: 2026-13-45", "YAML", "slo.x: saw a value that is none (month must be in 1..12); correct it, or put it in"),
        (f"a: {'1' * 5000}", "YAML", "slo.x: saw a value that is none (Exceeds the limit"),
        (f'{{"a": {"1" * 5000}}}', "JSON", "slo.x: saw a value that is none (Exceeds the limit"),
        ("a: &a [*a]", "YAML", "slo.x: saw tables inside tables without end; write each value once"),
    ],
    ids=[
        "json", "toml", "deep-json", "deep-yaml", "many-aliases", "nul", "no-day", "huge-yaml", "huge-json",
        "alias-of-itself",
    ],
)  # fmt: skip
def test_hostile_text_is_told_too(text, form, told):
    """What is no declaration at all, or would never end, is told as everything else."""
    assert mistakes(text, form, "slo.x")[0].startswith(told)


def test_repeated_keys_in_json(tmp_path):
    """A key that a JSON table has twice is a mistake, although Python would take the last."""
    text = GOOD.replace("service: notify", "service: notify")
    data = json.dumps(yaml.safe_load(text)).replace('"service": "notify"', '"service": "a",\n"service": "notify"')
    (tmp_path / "slo.json").write_text(data)
    with pytest.raises(DeclarationError, match=r'slo\.json:2: service: saw the key "service" a second time'):
        load(tmp_path / "slo.json")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("slo.txt", b"", "saw a name that ends in .txt; end it in .yaml, .toml or .json"),
        ("slo", b"", "saw a name that ends in nothing; end it in .yaml, .toml or .json"),
        ("slo.yaml", None, "it cannot be read (No such file or directory); give the path of a declaration"),
        ("slo.yaml", b"\xff", "saw bytes that are not UTF-8; save it as UTF-8"),
    ],
)
def test_files_that_cannot_be_read(name, content, told, tmp_path):
    """A file of another kind, or none, is told by its name."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DeclarationError, match=re.escape(f"{name}: {told}")):
        load(tmp_path / name)


def ack(**changes):
    return SLO(
        **{
            "name": "api-ack",
            "objective": 99.9,
            "sli": Latency("300ms", "accept"),
            "description": "In time.",
            "playbook": "api-latency",
            "owner": "me",
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ack(objective=101), f"SLO('api-ack'): objective: saw 101; {PERCENT}"),
        (lambda: ack(name="Api"), f'SLO(\'Api\'): name: saw "Api"; {NAME}'),
        (lambda: ack(name=3), f"SLO(3): name: saw 3; {NAME}"),
        (lambda: ack(owner=""), "SLO('api-ack'): saw no owner; name who acts, here or for the whole declaration"),
        (
            lambda: ack(sli=None),
            ("SLO('api-ack'): sli: saw nothing; "
            "give a table with kind, such as kind: latency, hop: accept, threshold: 300ms"),
        ),
        (
            lambda: ack(sli=Ratio("job", ())),
            "SLO('api-ack'): sli.bad: saw a list without entries; give a list of endings, such as [dead_lettered]",
        ),
        (
            lambda: ack(sli=Deadline("promise", "soon")),
            "SLO('api-ack'): sli.threshold: saw \"soon\"; give a time of 100ms to 15m with its unit, such as 5s",
        ),
        (
            lambda: ack(alerting=Alerting(page=0)),
            "SLO('api-ack'): alerting.min_bad_events.page: saw 0; give a whole number from 1 on, such as 10",
        ),
        (
            lambda: ack(policy=(Step(-1, "Stop."),)),
            "SLO('api-ack'): policy[0].budget_left: saw -1; give a percentage from 0 to below 100, such as 50",
        ),
        (lambda: ack(tenants={"acme": "99"}), f"SLO('api-ack'): tenants.acme: saw \"99\"; {PERCENT}"),
        (lambda: ack(tenants=["acme"]), ("SLO('api-ack'): tenants: saw a list; "
         "give names with percentages, such as acme: 99.5")),
    ],
)  # fmt: skip
def test_objects_are_held_to_the_same(make, told):
    """An SLO made in Python with a mistake is refused in the same words."""
    with pytest.raises(DeclarationError) as caught:
        make()
    assert [str(mistake) for mistake in caught.value.mistakes] == [told]


def test_a_name_cannot_be_declared_in_a_file_and_in_code():
    """An SLO of the file that code declares again is an error, not a silent choice between the two."""
    declared = Declaration("notify", (ack(),), file="slo.yaml")
    with pytest.raises(DeclarationError, match=r"slo.yaml: saw two SLOs named 'api-ack'; give each SLO a name of its"):
        declared.with_slos([ack(objective=99)])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"service": ""}, "Declaration(''): service: saw \"\"; give the name as it is in telemetry, such as acme"),
        (
            {"tenants": ("acme", "other")},
            "Declaration('notify'): tenants[1]: saw \"other\", which stands for tenants without a name; name a tenant",
        ),
        ({"jobs": "api"}, "Declaration('notify'): jobs: saw \"api\"; give a list of names, such as [acme, beta]"),
        ({"slos": ()}, "Declaration('notify'): slos: saw a list; give SLO objects, at least one"),
        ({"slos": ("slo.yaml",)}, "Declaration('notify'): slos: saw a list; give SLO objects, at least one"),
    ],
)
def test_declarations_in_python_are_held_to_the_same(fields, told):
    """What a file could not say of the whole service, Python cannot either."""
    with pytest.raises(DeclarationError) as caught:
        Declaration(**{"service": "notify", "slos": (ack(),), **fields})
    assert [str(mistake) for mistake in caught.value.mistakes] == [told]
