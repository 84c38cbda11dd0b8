"""What a machine does with its daemons; none is real."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from waiting import wait_until

from rig.folders import CHECKOUT

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
