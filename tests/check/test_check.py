"""``rtobs check``: what has no SLO, owner or playbook is found, wherever in the code it is; what has is not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest

import rtobs as library
from rtobs import readiness
from rtobs._hop import kinds
from tests.check.support import READY, SLO, write
from tests.incident.support import RTOBS, rtobs
from tests.slo.support import EXAMPLE

SCHEMA = json.loads((Path(readiness.__file__).parent / "check.schema.json").read_text())


def found(data):
    """Return what was seen and where, line only."""
    return [(one["place"].rpartition(":")[2], one["saw"]) for one in data["findings"]]


def test_a_service_whose_every_part_is_promised_is_ready(check):
    """Hops, stages, channels and connectors with SLO, owner and playbook are ready: 0, by the schema."""
    code, data, errors = check()
    assert (code, errors, data["ready"], data["findings"], data["notes"]) == (0, "", True, [], [])
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA)
    things = {(one["kind"], one["name"]): one for one in data["things"]}
    assert set(things) == {
        ("accept", "/orders"), ("publish", "orders"), ("consume", "orders"), ("stage", "normalize"),
        ("channel", "push"), ("channel", "email"), ("job", "crm-sync"),
    }  # fmt: skip
    assert things["stage", "normalize"]["slos"] == ["handled"]
    assert things["stage", "normalize"]["playbooks"] == ["dead-letter-growth", "connector-backlog"]
    assert all(one["owners"] == ["team-shop"] for one in things.values())


@pytest.mark.parametrize(
    ("added", "saw"),
    [
        ("with rtobs.accept('/new'):\n    pass", "saw accept /new, of which no SLO knows: no owner, no playbook"),
        ("with rtobs.consume('new'):\n    pass", "saw consume new, of which no SLO knows"),
        ("with rtobs.publish('new'):\n    pass", "saw publish new, of which no SLO knows"),
        ("with rtobs.publish('orders', channel='sms'):\n    pass", "saw channel sms, of which no SLO knows"),
        ("with rtobs.deliver('sms', 'x'):\n    pass", "saw channel sms, of which no SLO knows"),
        ("rtobs.current().intend('sms')", "saw channel sms, of which no SLO knows"),
        ("@rtobs.job('new', due=T, window=W)\ndef f():\n    pass", "saw connector new, of which no SLO knows"),
        ("with rtobs.stage('new'):\n    pass", "saw stage new, of which no playbook knows"),
        (
            "with rtobs.consume('new'), rtobs.stage('normalize'):\n    pass",
            "saw consume new, of which no SLO knows: no owner, no playbook",
        ),
        (
            "with rtobs.consume('new'):\n    with rtobs.stage('enrich'):\n        pass",
            "saw stage enrich, of which no SLO knows: no owner, no playbook",
        ),
        (
            "for name in names:\n    with rtobs.consume(name + '!'):\n        pass",
            "saw consume with a computed name, of which no SLO knows",
        ),
        ("app.add_middleware(rtobs.integrations.asgi.Middleware)", "saw accept with a computed name, of which no SLO"),
    ],
)
def test_what_nobody_promised_is_found_inside_of_functions(added, saw, check):
    """Each kind of operation is found where it is opened in a function that nobody has called, with what to do."""
    lines = added.replace("\n", "\n    ")
    source = f"{READY}\n\ndef later(app, names, T, W):\n    {lines}\n"
    code, data, _ = check(source)
    told = [one["saw"] for one in data["findings"]]
    assert code == 1
    assert any(one.startswith(saw) for one in told), told
    assert all(one["do"] for one in data["findings"])
    first = READY.count("\n") + 4
    assert any(int(line.partition(",")[0]) >= first for line, one in found(data) if one.startswith(saw))


def test_a_decorator_that_is_made_by_a_loop_is_found(check):
    """Operations made while the module is imported are known by the names they were made with."""
    source = f"""{READY}
def handler():
    pass

for queue in ("orders", "returns"):
    rtobs.consume(queue + "")(handler)
"""
    _, data, _ = check(source)
    assert [saw for _, saw in found(data)] == ["saw consume returns, of which no SLO knows: no owner, no playbook"]


def test_everything_is_told_at_once(check):
    """Findings of every kind come together: promises, playbooks and what is required."""
    source = "import rtobs\nwith rtobs.accept('/a'):\n    pass\nwith rtobs.deliver('sms', 'x'):\n    pass\n"
    source += "def f():\n    with rtobs.consume('orders'), rtobs.stage('b'):\n        pass\n"
    required = '[[required]]\nstage = "enrich"\nmissed = "the day before yesterday"\n'
    code, out, _ = check(source, files={"required.toml": required}, form="")
    assert code == 1
    assert out == (
        "shop: 2 hops, 1 stage, 1 channel in 1 file\n"
        "  shop.py:2: saw accept /a, of which no SLO knows: no owner, no playbook; promise it: "
        "sli: {kind: latency, hop: accept, threshold: 300ms}, where: {route: [/a]}\n"
        "  shop.py:4: saw channel sms, of which no SLO knows: no owner, no playbook; promise it: "
        "sli: {kind: deadline, step: promise, threshold: 5s}, where: {channel: [sms]}\n"
        "  shop.py:7: saw stage b, of which no playbook knows; name it in applies_to.stages of the playbook that "
        "helps, or give it an SLO of its own\n"
        "  required.toml:2: saw no stage enrich in the code; open it with rtobs.stage (it was missed in: the day "
        "before yesterday)\n"
        "note: SLO api-ack is about nothing here; where is it counted?\n"
        "note: SLO delivery is about nothing here; where is it counted?\n"
        "note: SLO jobs is about nothing here; where is it counted?\n"
        "not ready: 4 findings\n"
    )


def test_a_stage_may_have_a_promise_of_its_own(check):
    """A stage whose own latency is promised needs no other playbook than that promise's."""
    slo = "  - {name: s, description: d, objective: 99, playbook: api-latency,\n"
    slo += "     sli: {kind: latency, stage: new, threshold: 1s}}\n"
    source = f"{READY}\n\ndef later():\n    with rtobs.stage('new'):\n        pass\n"
    assert check(source)[0] == 1
    assert check(source, files={"slo.yaml": SLO + slo})[0] == 0


def test_a_stage_whose_hop_is_not_known_may_be_in_any(check):
    """Where the source does not show in which hop a stage is, one hop without a promise is enough for a finding."""
    stage = "\n\ndef helper():\n    with rtobs.stage('enrich'):\n        pass\n"
    assert check(READY + stage)[0] == 0
    _, data, _ = check(f"{READY}{stage}\n\n@rtobs.consume('new')\ndef other(message): ...\n")
    assert {one["saw"].split(",")[0] for one in data["findings"]} == {"saw stage enrich", "saw consume new"}


def test_a_stage_without_any_hop_does_nothing(check):
    """Where the code opens no hop a stage cannot be in one, and that is told."""
    _, data, _ = check("import rtobs\n\n\ndef f():\n    with rtobs.stage('normalize'):\n        pass\n")
    assert found(data) == [("5", "saw stage normalize, and no hop that it could be in")]


def test_receipts_need_a_promise_of_their_step(check):
    """A receipt of a step that an SLO with another step does not notice is found."""
    source = f"{READY}\n\ndef later(token):\n    with rtobs.receipt('opened', token):\n        pass\n"
    assert check(source)[0] == 0
    slo = SLO.replace("step: promise", "step: delivered")
    _, data, _ = check(source, files={"slo.yaml": slo})
    assert found(data) == [("34", "saw receipt opened, of which no SLO knows: no owner, no playbook")]


# Where code is --------------------------------------------------------------------------------------------------------

BAD = "import rtobs\n\n\ndef f():\n    with rtobs.accept('/bad'):\n        pass\n"


@pytest.mark.parametrize(
    ("files", "module"),
    [
        ({"pack_a/__init__.py": "", "pack_a/inner/__init__.py": "", "pack_a/inner/deep.py": BAD}, "pack_a"),
        ({"pack_b/__init__.py": "", "pack_b/one.py": "", "pack_b/two.py": BAD}, "pack_b.one"),
        ({"pack_c/__init__.py": "", "pack_c/__main__.py": f"raise SystemExit(3)\n{BAD}"}, "pack_c"),
        ({"beside_d.py": BAD, "start_d.py": "import beside_d\n"}, "start_d"),
        (
            {"pack_e/__init__.py": "", "pack_e/in.txt": "", "pack_e/lib.py": BAD, "use_e.py": "import pack_e.lib\n"},
            "use_e",
        ),
        ({"pack_f/__init__.py": "from rtobs import accept as a\n\n\n@a('/bad')\ndef f(): ...\n"}, "pack_f"),
        ({"pack_g/__init__.py": "import rtobs as r\n\n\ndef f():\n    r.accept(route='/bad')\n"}, "pack_g"),
        ({"h_names.py": "BAD = '/bad'\n", "h.py": BAD.replace("'/bad'", "h_names.BAD") + "\n\nimport h_names\n"}, "h"),
    ],
    ids=["package", "sibling", "main", "import", "imported-package", "alias", "keyword", "constant"],
)
def test_where_code_is_looked_for(files, module, check):
    """The module's package is read whole, and what it imports from beside it; a ``__main__`` is read, not run."""
    code, data, _ = check("", files=files, modules=[module])
    assert code == 1
    assert [saw for _, saw in found(data)] == ["saw accept /bad, of which no SLO knows: no owner, no playbook"]


def test_other_names_are_not_ours(check):
    """Functions of other libraries that are called the same are not operations."""
    source = "import socket\n\n\ndef accept(x): ...\n\n\ndef f(s, queue):\n    accept('/bad')\n    s.accept('/bad')\n"
    code, data, _ = check(source + "    queue.consume('x').publish('y')\n")
    assert (code, data["things"]) == (0, [])


def test_several_modules_are_one_service(check):
    """What one module promises and another keeps is checked together, each file once."""
    files = {"api_i.py": READY, "work_i.py": READY.replace("/orders", "/bad")}
    code, data, _ = check("", files=files, modules=["api_i", "work_i", "api_i"])
    assert code == 1
    assert found(data) == [("9", "saw accept /bad, of which no SLO knows: no owner, no playbook")]
    assert data["files"] == ["api_i.py", "work_i.py"]


def test_the_code_is_not_watched_while_it_is_checked(check, monkeypatch):
    """While a module is imported telemetry is off, what it prints does not disturb, and afterwards all is as before."""
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    source = f"import os\nprint('hello', os.environ['OTEL_SDK_DISABLED'])\n{READY}"
    code, data, errors = check(source)
    assert (code, data["ready"]) == (0, True)
    assert errors == "hello true\n"
    assert "OTEL_SDK_DISABLED" not in os.environ
    assert library.accept is kinds.accept
    assert library.accept.__module__ == "rtobs._hop.kinds"


# What is wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "place", "saw"),
    [
        ("import rtobs\n1/0\n", "2", "saw ZeroDivisionError: division by zero"),
        ("import rtobs\nraise SystemExit(5)\n", "2", "saw SystemExit: 5"),
        ("import gone_for_good\n", "1", "saw ModuleNotFoundError: No module named 'gone_for_good'"),
        ("import rtobs\nrtobs.accept(3)\n", "2", "saw rtobs.errors.ConfigError: rtobs.accept: route must be a str"),
        ("def f(:\n", "1", "saw SyntaxError: invalid syntax"),
    ],
)
def test_code_that_cannot_be_imported_is_not_ready(source, place, saw, check):
    """What cannot be imported is a finding with the line that failed."""
    code, data, _ = check(source)
    assert code == 1
    line, told = found(data)[0]
    assert told.startswith(saw)
    assert line == place
    jsonschema.validate(data, SCHEMA)


def test_what_cannot_be_imported_is_read_all_the_same(check):
    """What the source of a module says is checked although importing it fails, and the module sees no arguments."""
    source = f"import sys\nassert len(sys.argv) == 1\n{BAD}\n\n1/0\n"
    code, data, _ = check(source)
    assert code == 1
    assert [saw for _, saw in found(data)] == [
        "saw ZeroDivisionError: division by zero",
        "saw accept /bad, of which no SLO knows: no owner, no playbook",
    ]


def test_a_broken_declaration_is_a_finding(check):
    """Mistakes in the declaration are findings, an SLO without owner too, beside what else can be checked."""
    required = '[[required]]\nstage = "enrich"\nmissed = "yesterday"\n'
    broken = SLO.replace("owner: team-shop\n", "").replace("99.9", "100")
    code, data, _ = check(files={"slo.yaml": broken, "required.toml": required})
    assert code == 1
    told = [one["saw"] for one in data["findings"]]
    assert sum("saw no owner" in one for one in told) == 4
    assert "saw 100" in told
    assert "saw no stage enrich in the code" in told
    assert {one["about"] for one in data["findings"]} == {"declaration", "required"}


def test_a_playbook_that_is_not_there_is_a_finding(check):
    """An SLO whose playbook does not exist is not ready."""
    _, data, _ = check(files={"slo.yaml": SLO.replace("playbook: dead-letter-growth", "playbook: nobody-wrote-it")})
    assert "saw nobody-wrote-it, and there is no such file" in [one["saw"] for one in data["findings"]]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere_at_all"], "there is no module nowhere_at_all; give one that python -m nowhere_at_all would find"),
        (["nowhere.at.all"], "there is no module nowhere.at.all"),
        (["./app.py"], "there is no module ./app.py"),
        (["json", "--values", "channel"], "--values 'channel' says nothing; give a label with a number, of route,"),
        (["json", "--values", "colour=3"], "--values 'colour=3' says nothing"),
        (["json", "--rate", "-1"], "--rate -1 is out of range; give 0 to 100000."),
        (["json", "--head", "2"], "--head 2 is out of range; give 0 to 1."),
        (["json", "--interval", "nan"], "--interval nan is out of range"),
        (["json", "--prometheus", "nowhere"], "'nowhere' is no address"),
    ],
)
def test_wrong_arguments(arguments, why, tmp_path):
    """A wrong argument ends the check with 2 and says what to give."""
    write(tmp_path, {})
    code, out, errors = rtobs("check", *arguments, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert why in errors
    assert errors.startswith("rtobs check: ")


def test_the_command_finds_modules_where_python_would(tmp_path):
    """The real command finds a module in the folder it is called in, as ``python -m`` does."""
    write(tmp_path, {"shop.py": READY})
    done = subprocess.run(
        [RTOBS, "check", "shop"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "shop: 3 hops, 1 stage, 2 channels, 1 connector in 1 file\nready\n"


@pytest.mark.parametrize("declaration", [EXAMPLE, EXAMPLE.with_name("demo.yaml")], ids=["slo.yaml", "demo.yaml"])
def test_the_demo_is_ready(declaration, tmp_path):
    """Each hop and stage of the demo, those that its faults add included, has an SLO and a playbook."""
    code, out, _ = rtobs("check", "rtobs.demo.roles", "--slo", declaration, "--json", cwd=tmp_path)
    assert (code, json.loads(out)["findings"]) == (0, [])
