"""What the rig's programs refuse before anything is started."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from rig import __main__ as rig
from rig import demo, demo_aws


@pytest.mark.parametrize(
    ("program", "given", "words"),
    [
        (demo, "--nodes 0", "argument --nodes: got '0', expected a whole number, 1 or more"),
        (demo, "--maximum 1", "argument --maximum: got '1', expected a whole number, 2 or more"),
        (demo, "--size huge", "argument --size: invalid choice: 'huge'"),
        (demo_aws, "--maximum 2", "argument --maximum: got '2', expected a whole number, 3 or more"),
        (demo_aws, "--boot-s -1", "argument --boot-s: got '-1', expected seconds, 0 or more"),
        (demo_aws, "--boot-s nan", "argument --boot-s: got 'nan', expected seconds, 0 or more"),
        (rig, "up --boot-s soon", "argument --boot-s: got 'soon', expected seconds, 0 or more"),
        (rig, "up --nodes -1", "argument --nodes: got '-1', expected a whole number, 0 or more"),
        (rig, "node-up n4 --cpus 0", "argument --cpus: got '0', expected a whole number, 1 or more"),
        (rig, "node-up n4 --memory-gib 0", "argument --memory-gib: got '0', expected GiB, more than 0"),
        (rig, "node-up n4 --label =x", "argument --label: got '=x', expected KEY=VALUE"),
        (rig, "interrupt i-0 --notice-s inf", "argument --notice-s: got 'inf', expected seconds, 0 or more"),
        (rig, "boots --delay-s -5", "argument --delay-s: got '-5', expected seconds, 0 or more"),
    ],
)
def test_wrong_arguments(
    program: ModuleType,
    given: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [program.__name__, *given.split()])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
