"""The demo's story, picture and plain lines, from a recording that was made up."""

from __future__ import annotations

import dataclasses
import io
import sys
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from dask_tide.demo import run
from dask_tide.demo.job import Answer
from dask_tide.demo.recorder import Decision, Facts, Fleet, Recording, Sample, Tasks, Worker, stages_after
from dask_tide.demo.screen import LiveScreen, PlainScreen, Screen, screen_for, spark, throughput
from dask_tide.demo.source import Measure, Study
from dask_tide.demo.story import Act, Promise, Report, Story, empty, kept_by_one, one_machine

HELD = "held"


def sample(at_s, *states, starting=0, waiting=0, ready=0, done=0, studied=None, finished=False):
    """One moment; a worker per state, of which ``held`` is an idle one that has the answer."""
    workers = tuple(
        Worker(str(n), "idle" if state == HELD else state, int(state == HELD))
        for n, state in enumerate(states)
    )
    stages = {
        "measure_file": Tasks(0, ready, states.count("busy") if studied is None else 0, done),
        "study_file": Tasks(running=studied or 0),
        "summarise": Tasks(waiting, 0, 0, int(finished)),
    }
    return Sample(at_s, stages, workers, starting, busy_s=at_s)


SAMPLES = [
    Sample(0.0),
    sample(1.0, starting=1, waiting=1, ready=6),
    sample(2.0, "busy", waiting=1, ready=5),
    sample(3.0, "busy", starting=2, waiting=1, ready=4, done=1),
    sample(4.0, "busy", "busy", "busy", waiting=1, ready=1, done=2),
    sample(5.0, "busy", "idle", "leaving", waiting=1, done=6, studied=1),
    sample(6.0, "idle", HELD, done=6, finished=True),
    sample(7.0, HELD, done=6, finished=True),
    sample(8.0, "leaving"),
    Sample(9.0, busy_s=9.0),
]
DECISIONS = [
    Decision(1.0, "launch", "Pool cpu: asked for 1 more unit."),
    Decision(2.0, "hold", "Pool cpu: nothing to do."),
    Decision(5.0, "drain", "Pool cpu: drained two."),
]
STUDY = Study("json/a.py", ("parse", 12), 345, 6.5, 7, 8)


@pytest.fixture
def recording():
    return Recording(list(SAMPLES), list(DECISIONS), spent_s=18.0, starts=3)


@pytest.fixture
def report(recording):
    return Report(
        promises=(Promise("it began with no worker", True), Promise("it ended with no worker", False)),
        recording=recording,
        began=tell(recording),
        submitted_s=0.5,
        finished_s=6.0,
        answer=Answer(1, Measure(files=1234), studies=(STUDY,)),
    )


def tell(recording, screen: Screen | None = None):
    """Tell the story as the demo does; the answer is fetched at 7.5 s."""
    story = Story()
    for count, each in enumerate(recording.samples, 1):
        story.fetched = each.at_s > 7.5
        new = story.tell(each)
        if screen is not None:
            screen.show(
                Recording(recording.samples[:count], recording.decisions[: count // 2]), story.act, new
            )
    return story.began


def test_the_story_has_all_its_acts_in_order(recording):
    assert tell(recording) == {
        Act.NOBODY: 0.0,
        Act.ASKED: 1.0,
        Act.FIRST: 2.0,
        Act.MORE: 4.0,
        Act.TAIL: 5.0,
        Act.FINISHED: 6.0,
        Act.KEPT: 7.0,
        Act.FETCHED: 8.0,
        Act.NOTHING: 9.0,
    }
    assert all(act.headline and act.caption for act in Act)


def test_the_picture_is_a_png_and_an_svg(report, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from dask_tide.demo.picture import draw

    png, svg = draw(report, tmp_path / "new" / "folder" / "demo")
    height, width, _ = imread(png).shape
    assert width > height > 500
    # Something is drawn in the colour of busy workers, #0072B2.
    assert (abs(imread(png)[..., :3] - [0, 0x72 / 255, 0xB2 / 255]).max(axis=2) < 0.01).sum() > 1000
    root = ET.parse(svg).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(each.itertext()).strip() for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"tasks", "workers", "busy", "idle", "starting", "done", "answer kept"} <= texts


def with_machines(recording):
    """The same story where machines come and go; a second job from 8.5 s on."""
    fleets = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 2), (0, 2), (0, 1), (0, 1), (0, 0)]
    samples = [
        dataclasses.replace(each, waiting=each.starting, fleet=Fleet(*fleet))
        for each, fleet in zip(recording.samples, fleets, strict=True)
    ]
    samples.insert(-1, Sample(8.6, fleet=Fleet(0, 1)))
    return dataclasses.replace(recording, samples=samples)


def test_machines_are_drawn_where_they_come_and_go(report, tmp_path):
    pytest.importorskip("matplotlib")
    from dask_tide.demo.picture import draw

    report = dataclasses.replace(report, recording=with_machines(report.recording))
    _, svg = draw(report, tmp_path / "demo")
    texts = {each.text for each in ET.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}text")}
    assert {"machines", "booting", "empty", "unplaced"} <= texts
    assert report.recording.most_machines == 2
    assert dict(report.rows())["machine-seconds"] == "12 s"


def test_the_story_ends_with_the_last_machine(recording):
    story = Story()
    for each in with_machines(recording).samples:
        story.fetched, story.again = each.at_s > 7.5, each.at_s > 8.5
        story.tell(each)
    assert list(story.began)[-3:] == [Act.FETCHED, Act.AGAIN, Act.NOTHING]
    assert story.began[Act.NOTHING] == 9.0


def test_the_same_report_gives_the_same_svg(report, tmp_path):
    pytest.importorskip("matplotlib")
    from dask_tide.demo.picture import draw

    assert draw(report, tmp_path / "1")[1].read_bytes() == draw(report, tmp_path / "2")[1].read_bytes()


def test_plain_lines_are_one_per_event(recording):
    out = io.StringIO()
    tell(recording, PlainScreen(out))
    assert out.getvalue().splitlines() == [
        "   0.0 s  == nobody computes: there is only a scheduler ==",
        "   1.0 s  == a client submits a job: a worker is asked for ==",
        "   1.0 s  Pool cpu: asked for 1 more unit.",
        "   1.0 s  workers: 0, 1 starting",
        "   2.0 s  == one worker comes ==",
        "   2.0 s  workers: 1",
        "   3.0 s  workers: 1, 2 starting",
        "   4.0 s  == the work is parallel: more come ==",
        "   4.0 s  workers: 3",
        "   5.0 s  == the tail: fewer tasks than workers, so workers go ==",
        "   5.0 s  Pool cpu: drained two.",
        "   5.0 s  measure each file: all 6 done",
        "   6.0 s  == the job is finished: workers go ==",
        "   6.0 s  workers: 2",
        "   6.0 s  sum up: all 1 done",
        "   7.0 s  == the answer is kept by one worker ==",
        "   7.0 s  workers: 1",
        "   8.0 s  == the answer is fetched: the last worker goes ==",
        "   9.0 s  == nothing is left but the scheduler ==",
        "   9.0 s  workers: 0",
    ]


def check_report(text):
    for part in (
        "1,234 files",
        "parse() with 12 paths",
        "18.0 s, 50% of them busy",
        "Pool cpu: drained two.",
        "it began with no worker",
        "Did not come true: it ended with no worker.",
    ):
        assert part in text
    assert "nothing to do" not in text


def test_the_plain_report(report):
    out = io.StringIO()
    PlainScreen(out).report(report)
    check_report(out.getvalue())
    assert not report.ok
    assert dict(report.rows())["time to first worker"] == "1.5 s"


def test_the_live_screen_shows_workers_stages_and_the_act(recording, report):
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    with LiveScreen(console.Console(file=out, force_terminal=True, width=120, height=50)) as screen:
        tell(recording, screen)
    for part in ("the answer is kept by one worker", "measure each file", "1 starting", "drained two", "█"):
        assert part in out.getvalue()
    plain = console.Console(file=(out := io.StringIO()), width=120)
    LiveScreen(plain).report(report)
    check_report(out.getvalue())


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI", "TERM"])
def test_plain_lines_where_a_live_view_is_not_wanted(variable, monkeypatch):
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    class Latin(Terminal):
        encoding = "iso-8859-1"

    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(screen_for(Terminal()), LiveScreen)
    assert isinstance(screen_for(io.StringIO()), PlainScreen)
    # What it draws with is not in every encoding.
    assert isinstance(screen_for(Latin()), PlainScreen)
    monkeypatch.setenv(variable, "dumb")
    assert isinstance(screen_for(Terminal()), PlainScreen)


def test_throughput_is_what_was_done_per_second():
    samples = [sample(at_s, done=done) for at_s, done in [(0.0, 0), (1.0, 4), (2.0, 10), (3.0, 10)]]
    assert throughput(Recording(samples), points=3) == [4.0, 6.0, 0.0]
    assert spark([0, 4, 8]) == " ▄█"
    assert spark([0, 0]) == "  "
    assert throughput(Recording(), points=2) == [0.0, 0.0]


def test_a_forgotten_group_had_been_done():
    before = {"find_sources": Tasks(running=1), "measure_file": Tasks(waiting=3)}
    now = {"measure_file": {"waiting": 0, "ready": 2, "running": 1, "done": 0}, "other": {}}
    assert stages_after(before, now) == {"find_sources": Tasks(done=1), "measure_file": Tasks(0, 2, 1, 0)}


def test_finding_the_files_with_two_workers_is_not_the_tail():
    story = Story()
    for each in SAMPLES[:2]:
        story.tell(each)
    story.tell(Sample(2.0, {"find_sources": Tasks(done=1)}, (Worker("1", "idle", 1), Worker("2", "idle", 0))))
    assert story.act is Act.MORE


@pytest.mark.parametrize("came_true", [True, False])
def test_the_exit_code_says_whether_the_story_came_true(report, came_true, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report = dataclasses.replace(report, promises=(Promise("it began with no worker", came_true),))
    monkeypatch.setattr(run, "run", lambda factory, **options: report)
    assert run.main(out=tmp_path / "demo") == int(not came_true)
    assert ("Did not come true" in capsys.readouterr().out) is not came_true
    assert {path.name for path in tmp_path.iterdir()} == {"demo.png", "demo.svg"}


def test_without_matplotlib_it_says_what_to_install(report, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "run", lambda factory, **options: report)
    monkeypatch.delitem(sys.modules, "dask_tide.demo.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run.main(out=tmp_path / "demo")
    assert "pip install '.[demo]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_a_message(report, monkeypatch, tmp_path, capsys):
    """The story came true all the same."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run, "run", lambda factory, **options: report)
    (tmp_path / "file").touch()
    assert run.main(out=tmp_path / "file" / "demo") == int(not report.ok)
    assert "No picture: " in capsys.readouterr().out
    assert run.main(out="/") == 2
    assert "out: got '/', expected a file's name without its ending" in capsys.readouterr().err


def test_giving_up_is_a_message_and_exit_code_1(monkeypatch, capsys):
    def give_up(factory, **options):
        raise TimeoutError

    monkeypatch.setattr(run, "run", give_up)
    assert run.main() == 1
    assert "gave up" in capsys.readouterr().out


def test_facts_of_a_controller_count_starting_units_and_tell_each_decision_once():
    facts = Facts(cluster=None)
    launch = {"at_s": 1.0, "action": "launch", "pool": "cpu", "count": 2, "why": "work", "sentence": "Two."}
    drain = {"at_s": 2.0, "action": "drain", "pool": "cpu", "count": 1, "why": "idle"}
    phases = ["requested", "pending", "starting", "running", "draining", "failed"]
    status: dict[str, Any] = {
        "units": [{"name": f"cpu-{phase}", "phase": phase} for phase in phases],
        "decisions": [launch],
        "spent": 7,
        "starts": 3,
    }
    assert facts.starting(status, {"cpu-running"}) == 3
    assert facts.waiting(status, {"cpu-running"}) == 1
    # One worker, or the second of its unit, has come after the controller's last tick.
    assert facts.starting(status, {"cpu-starting", "cpu-pending-1"}) == 1
    assert facts.ending(status, {"cpu-running"}) == 1
    assert facts.ending(status, {"cpu-running", "cpu-draining"}) == 0
    # What was before is no part of it: a release may have been in use.
    recording = Recording()
    assert facts.new_decisions(status | {"decisions": [launch | {"at_s": 0.5}]}, 4.0) == []
    facts.account(status, recording, SAMPLES[0])
    assert (recording.spent_s, recording.starts) == (0.0, 0)
    status |= {"spent": 12, "starts": 5}
    assert facts.new_decisions(status, 5.0) == [Decision(5.0, "launch", "Two.")]
    status["decisions"].append(drain)
    assert facts.new_decisions(status, 6.0) == [Decision(6.0, "drain", "drain 1: idle")]
    facts.account(status, recording, SAMPLES[1])
    assert (recording.spent_s, recording.starts) == (5.0, 2)


def test_what_still_ends_is_not_nothing():
    assert empty(Sample(1.0))
    assert not empty(Sample(1.0, ending=1))
    done = {"summarise": Tasks(done=1)}
    assert kept_by_one(Sample(1.0, done, (Worker("1", "idle", 1),)))
    assert not kept_by_one(Sample(1.0, done, (Worker("1", "idle", 1),), ending=1))
    assert not one_machine(Sample(1.0, fleet=Fleet(booting=1)))


def test_facts_of_another_cluster_come_from_its_plan_and_the_samples():
    class Other:
        plan = frozenset("ab")

    facts, recording = Facts(Other()), Recording()
    assert facts.starting({}, {"0"}) == 1
    assert facts.new_decisions({}, 1.0) == []
    for each in SAMPLES[:5]:
        facts.account({}, recording, each)
        recording.samples.append(each)
    # A sample's units count for the time since the sample before it: 1 + 1 + 3 + 3.
    assert (recording.spent_s, recording.starts) == (8.0, 3)
