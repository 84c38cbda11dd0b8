"""What a machine does with its daemons; none is real."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from waiting import wait_until

from rig.folders import CHECKOUT
from rig.keeper import Kept
from rig.nodes import Cluster
from rig.plane import Options, Place

#: It ends by itself twice.
DAEMON = 'echo begun; [ "$(wc -l < daemon.log)" -gt 2 ] || exit 1; exec sleep 600'


def test_a_daemon_that_ends_by_itself_starts_again_and_one_that_is_killed_stays_dead(tmp_path: Path) -> None:
    script = CHECKOUT / "rig" / "machine.sh"
    command = ["bash", str(script), "keep_running", "daemon", "bash", "-c", DAEMON]
    log, ended = tmp_path / "daemon.log", tmp_path / "daemon.ended"
    with subprocess.Popen(command, cwd=tmp_path) as keeps:
        try:
            wait_until(lambda: log.exists() and log.read_text() == "begun\n" * 3, "it runs, the third time")
            assert not ended.exists()
        finally:
            os.kill(int((tmp_path / "daemon.pid").read_text()), signal.SIGKILL)
        assert keeps.wait(30) == 0
    assert ended.exists()
    assert log.read_text().count("begun") == 3


def test_a_console_has_what_there_is(tmp_path: Path) -> None:
    cluster = Cluster(Kept(tmp_path), Place(), Options())
    assert cluster.console("n1") == ""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "node-n1.log").write_text("mount: permission denied\n")
    (tmp_path / "nodes" / "n1").mkdir(parents=True)
    (tmp_path / "nodes" / "n1" / "kubelet.log").write_text("long ago\n" * 1000 + "just now\n")
    said = cluster.console("n1")
    assert said.startswith("kubelet.log:\n")
    assert said.endswith("just now\n\nnode-n1.log:\nmount: permission denied\n")
    assert len(said) < 2100
