"""What is built: the same to the byte, all of it or nothing, and nothing left over."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from rtobs.slo import SLO, Declaration, DeclarationError, Latency, Ratio, Step, pages, project, rules
from rtobs.slo.output import LIST, write
from rtobs.slo.series import Scale
from tests.slo.support import EXAMPLE, PLAYBOOKS, ROOT, check_rules, needs_promtool

BUILT = EXAMPLE.parent / "built"


def _files(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != LIST
    }


def test_the_example_that_is_shown_is_what_is_built(built):
    """examples/slo/built is what `rtobs slo build` makes of examples/slo/slo.yaml today, to the byte."""
    shown = _files(BUILT)
    assert set(shown) == set(built)
    assert [name for name, text in built.items() if text.encode() != shown[name]] == []


def test_another_process_builds_the_same(tmp_path):
    """A build in a fresh process, with other random hashes, another locale and time zone, is the same to the byte."""
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "rtobs.cli", "slo", "build", str(EXAMPLE), "--out", str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": "Asia/Tokyo"},
            cwd=tmp_path,
            timeout=50,
            check=True,
            capture_output=True,
        )
    assert _files(tmp_path / "1") == _files(tmp_path / "2") == _files(BUILT)


def test_what_is_written_is_what_was_made(tmp_path):
    """Every file is there with its text, and the list of them beside."""
    assert write({"a.txt": "a\n", "b/c.txt": "ü"}, tmp_path / "new" / "folder") == []
    assert _files(tmp_path / "new" / "folder") == {"a.txt": b"a\n", "b/c.txt": "ü".encode()}
    assert json.loads((tmp_path / "new" / "folder" / LIST).read_text()) == ["a.txt", "b/c.txt"]


def test_what_is_not_made_any_more_is_taken_away(tmp_path):
    """Files of the last build that this one does not make are removed; files of others stay."""
    write({"rules/old.yaml": "1", "rules/kept.yaml": "1"}, tmp_path)
    (tmp_path / "rules" / "mine.yaml").write_text("mine")
    assert write({"rules/kept.yaml": "2"}, tmp_path) == ["rules/old.yaml"]
    assert _files(tmp_path) == {"rules/kept.yaml": b"2", "rules/mine.yaml": b"mine"}


@pytest.mark.parametrize("said", ['["../outside.txt", "/etc/hosts", 3]', '{"a": 1}', "no json"])
def test_a_list_of_others_takes_nothing_away(said, tmp_path):
    """A list that names files outside of the folder, or is none, removes nothing."""
    (tmp_path / "outside.txt").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / LIST).write_text(said)
    write({"a.txt": "a"}, folder)
    assert (tmp_path / "outside.txt").read_text() == "mine"


@pytest.mark.parametrize("failing", range(3))
def test_a_disk_that_fails_leaves_everything_as_it_was(failing, tmp_path, monkeypatch):
    """If any file cannot be written, no new one is there, all old ones are, and nothing is left over."""
    write({"a.txt": "old", "b.txt": "old"}, tmp_path / "out")
    before = _files(tmp_path / "out")
    written = 0
    original = type(tmp_path).write_text

    def broken(self, *arguments, **named):
        nonlocal written
        written += 1
        if written > failing:
            raise OSError(28, "No space left on device")
        return original(self, *arguments, **named)

    monkeypatch.setattr(type(tmp_path), "write_text", broken)
    with pytest.raises(OSError, match="No space left"):
        write({"a.txt": "new", "c.txt": "new"}, tmp_path / "out")
    with pytest.raises(OSError, match="No space left"):
        write({f"{number}.txt": "new" for number in range(9)}, tmp_path / "fresh" / "folder")
    assert _files(tmp_path / "out") == before
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [LIST, "a.txt", "b.txt"]
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("in_the_way", ["rules", "rules/slo-b.yaml", LIST])
def test_what_stands_in_the_way_changes_nothing(in_the_way, tmp_path):
    """Where a file, or a folder, stands in the place of what is built, nothing is changed, created or removed."""
    write({"alertmanager.yaml": "old", "rules/slo-a.yaml": "old", "rules/slo-b.yaml": "old"}, tmp_path / "out")
    place = tmp_path / "out" / in_the_way
    if place.is_dir():
        shutil.rmtree(place)
        place.write_text("mine")
    else:
        place.unlink()
        place.mkdir()
    before = sorted(tmp_path.rglob("*")), _files(tmp_path)
    with pytest.raises(OSError, match=r"exists|directory"):
        write({"alertmanager.yaml": "new", "rules/slo-b.yaml": "new", "tests/new.yaml": "new"}, tmp_path / "out")
    assert (sorted(tmp_path.rglob("*")), _files(tmp_path)) == before


@pytest.mark.parametrize("failing", range(9))
def test_a_move_that_fails_is_taken_back(failing, tmp_path, monkeypatch):
    """Wherever the moves into place break off, also by Ctrl-C, the folder is what it was before."""
    write({"a.txt": "old", "b/c.txt": "old", "gone.txt": "old"}, tmp_path / "out")
    before = sorted(tmp_path.rglob("*")), _files(tmp_path)
    original, moved = os.replace, 0

    def broken(*arguments):
        nonlocal moved
        moved += 1
        if moved == failing + 1:
            raise KeyboardInterrupt if failing % 2 else OSError(5, "Input/output error")
        original(*arguments)

    monkeypatch.setattr(os, "replace", broken)
    with contextlib.suppress(OSError, KeyboardInterrupt):
        write({"a.txt": "new", "b/c.txt": "new", "d/new.txt": "new"}, tmp_path / "out")
        assert moved <= failing
        return
    assert (sorted(tmp_path.rglob("*")), _files(tmp_path)) == before


@needs_promtool
def test_a_time_scale_shrinks_windows_and_nothing_else(tmp_path):
    """At 60 times the speed windows, waits and evaluations are a sixtieth; deadlines and names stay as they are."""
    found = project.load(EXAMPLE)
    plain, fast = project.build(found), project.build(found, 60)
    assert {name for name in plain if name not in fast} == {name for name in plain if name.startswith("tests/")}
    names = [name for name in fast if name.startswith("rules/")]
    for name in names:
        slow, quick = (yaml.safe_load(files[name])["groups"][0] for files in (plain, fast))
        assert quick["interval"] == "500ms"
        assert [rule.get("record", rule.get("alert")) for rule in slow["rules"]] == [
            rule.get("record", rule.get("alert")) for rule in quick["rules"]
        ]
        (tmp_path / "quick.yaml").write_text(fast[name])
        assert check_rules(tmp_path, "quick.yaml") == ""
    rules = fast["rules/slo-delivery-5s.yaml"]
    assert "[5s] offset 5s" in rules  # five minutes in five seconds; the deadline is as long as ever
    assert "for: 3s" in rules  # freshness has to be bad for three minutes
    assert "* 0.5 >= 10" in rules  # events are counted by evaluations, which are half a second apart
    assert [text for name, text in fast.items() if name in plain and name not in names] == [
        text for name, text in plain.items() if name in fast and name not in names
    ]


def test_a_playbook_that_does_not_exist_is_a_mistake(tmp_path):
    """An SLO that names no playbook's file is told with its line, and the six that triggers lead to are asked for."""
    (tmp_path / "slo.yaml").write_text(EXAMPLE.read_text().replace("../../docs/playbooks", "books"))
    (tmp_path / "books").mkdir()
    for file in PLAYBOOKS.glob("*.md"):
        (tmp_path / "books" / file.name).write_text(file.read_text())
    assert len(project.load(tmp_path / "slo.yaml").playbooks) == 6
    (tmp_path / "books" / "api-latency.md").unlink()
    with pytest.raises(DeclarationError) as caught:
        project.load(tmp_path / "slo.yaml")
    first, second = map(str, caught.value.mistakes)
    assert (
        f'slo.yaml:20: SLO "api-ack", playbook: saw api-latency, and there is no such file; write {tmp_path}' in first
    )
    assert "saw no playbook api-latency, to which RtobsApiLatencyAboveBaseline lead" in second


def test_mistakes_of_the_declaration_and_its_playbooks_come_together(tmp_path):
    """One run tells what is wrong in the declaration and in the playbooks."""
    (tmp_path / "slo.yaml").write_text("apiVersion: rtobs/v1\nservice: a\nslos: []\n")
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "one.md").write_text("---\nid: two\n---\n# One\n")
    with pytest.raises(DeclarationError) as caught:
        project.load(tmp_path / "slo.yaml")
    told = "\n".join(map(str, caught.value.mistakes))
    assert "slo.yaml:3: slos: saw a list without entries" in told
    assert "one.md:2: id: saw two in a file named one.md" in told


def test_the_page_for_everybody_says_what_was_promised(built):
    """slos.md has each promise in words, its objective, its budget as time, who owns it, and what the team does."""
    page = built["slos.md"]
    for slo in project.load(EXAMPLE).declaration.slos:
        assert f"| {slo.description} | {slo.objective:g} % | 30 days | team-messaging |" in page
    assert "0.1 % may be bad; that is 43m of total outage in 30 days" in page
    assert "1 % may be bad; that is 7h12m of total outage in 30 days" in page
    assert "**Tenant acme**: 99.5 % is promised" in page
    assert "  - 10 % left: Only fixes are released" in page


def test_the_page_says_when_nobody_is_called():
    """An SLO for the dashboard only says so, and one whose pages are tickets says that."""
    made = {"description": "Fast.", "playbook": "api-latency", "owner": "me"}
    quiet = SLO("quiet", 99, Latency("200ms", "consume"), severity="dashboard", **made)
    soft = SLO("soft", 99, Ratio("accept", ("failed",)), severity="ticket", **made)
    page = pages.promises(Declaration("notify", (quiet, soft)))
    assert page.count("Nobody is called") == 1
    assert page.count("**A ticket is opened** when") == 2
    assert "paged" not in page


def test_words_of_others_stay_text():
    """What an owner writes breaks no table, and is no template of Prometheus': alerts show it as it was written."""
    said = "It's 99 % | of <b>all</b> {{ $labels.x }}"
    odd = SLO("odd", 99, Ratio("accept", ("failed",)), said, "api-latency", "team | {{ me", policy=(Step(0, "a | b"),))
    declaration = Declaration("a {{ b", (odd,))
    rows = [line for line in pages.promises(declaration).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert "<b>" not in pages.promises(declaration)
    group = rules.group(declaration, odd, Scale())
    alert = next(rule for rule in group["rules"] if rule.get("alert") == "RtobsSLOBurn")
    assert alert["annotations"]["description"] == said.replace("{{", '{{"{{"}}')
    assert (alert["labels"]["owner"], alert["labels"]["service"]) == ('team | {{"{{"}} me', 'a {{"{{"}} b')
    assert group["rules"][0]["labels"]["service"] == "a {{ b"  # those of recorded series are no templates


def test_every_alert_leads_to_a_playbook_and_a_dashboard(built):
    """Each alert has an owner, a severity, a playbook that exists, and a link to a dashboard that is built."""
    boards = {json.loads(text)["uid"] for name, text in built.items() if name.startswith("dashboards/")}
    alerts = [
        rule
        for name, text in built.items()
        if name.startswith("rules/")
        for rule in yaml.safe_load(text)["groups"][0]["rules"]
        if "alert" in rule
    ]
    assert len(alerts) == 25
    for rule in alerts:
        labels, annotations = rule["labels"], rule["annotations"]
        assert (PLAYBOOKS / f"{labels['playbook']}.md").is_file()
        assert annotations["runbook_url"] == f"https://runbooks.example.com/notify/{labels['playbook']}.md"
        assert annotations["dashboard_url"].removeprefix("https://grafana.example.com/d/").partition("?")[0] in boards
        assert labels["severity"] in {"page", "ticket"}
        assert labels["owner"] == "team-messaging"
        assert not any("{{" in value for value in labels.values())  # a label that changes makes a new alert each time


def test_docs_show_a_declaration_that_is_one(tmp_path):
    """The declaration on docs/slo.md is read without a mistake, and the mistakes it shows are those that are told."""
    page = (ROOT / "docs" / "slo.md").read_text()
    shown = page[page.index("```yaml\n") + 8 :].partition("```")[0]
    (tmp_path / "slo.yaml").write_text(shown)
    assert [slo.name for slo in project.reader.load(tmp_path / "slo.yaml").slos] == ["api-ack", "delivery-5s"]
    broken = shown.replace("objective: 99.9", "objective: 100").replace("threshold: 300ms", "threshold: 300")
    with pytest.raises(DeclarationError) as caught:
        project.reader.declare(project.source.parse(broken, "YAML", "slo.yaml"))
    assert str(caught.value) in page
