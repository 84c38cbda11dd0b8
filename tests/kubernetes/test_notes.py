"""What `helm install` prints for the user to type."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from releases import CHART

from rig import binaries

#: In kubectl's place: of a Secret's key its own name, encoded as a Secret is; what it was asked for is kept.
KUBECTL = """#!/bin/sh
echo "$*" >> calls
case "$*" in *jsonpath*) echo "$*" | sed 's/.*{.data.//; s/}.*//; s/[\\]//g' | tr -d '\n' | base64 ;; esac
"""


def notes(folder: Path, values: dict[str, Any]) -> str:
    """Helm prints them with a cluster only, so they are made a part of what it renders without."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    text = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "_notes.tpl").write_text(f'{{{{- define "notes" }}}}{text}{{{{- end }}}}')
    (chart / "templates" / "notes.yaml").write_text('notes: {{ include "notes" . | b64enc }}')
    (folder / "values.yaml").write_text(yaml.safe_dump({"image": {"repository": "example.org/x"}, **values}))
    command = [str(binaries.ensure("helm")["helm"]), "template", "r", str(chart), "--namespace", "ns"]
    command += ["--values", str(folder / "values.yaml"), "--show-only", "templates/notes.yaml"]
    command += ["--kube-version", "1.35.0"]
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return base64.b64decode(yaml.safe_load(rendered)["notes"]).decode()


@pytest.mark.parametrize("before", [None, 0o644], ids=["the first time", "once more"])
def test_the_key_that_a_laptop_gets_is_for_its_user_alone(tmp_path: Path, before: int | None) -> None:
    """Typed as it is printed, where others may read what a user makes; once more after a rotation."""
    said = notes(tmp_path, {"security": {"tls": {"source": "secret", "secretName": "mine"}}})
    typed = said.partition("From elsewhere:\n")[2].partition("  from distributed")[0]
    assert typed.count("kubectl") == 4
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    key = tmp_path / "tls.key"
    if before is not None:
        key.touch()
        key.chmod(before)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", f"umask 022\n{typed}\nwait"], cwd=tmp_path, env=path, timeout=60, check=True)
    assert {name: (tmp_path / name).read_text() for name in ("ca.crt", "tls.crt", "tls.key")} == {
        name: name for name in ("ca.crt", "tls.crt", "tls.key")
    }
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    asked = (tmp_path / "calls").read_text().splitlines()
    assert sum(call.startswith("-n ns get secret mine ") for call in asked) == 3
