"""A way into a cluster that does not come about."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from releases import Release


def test_a_forward_that_ends_fails_at_once_and_says_why(tmp_path: Path) -> None:
    script = ["sh", "-c", "echo no such service; exit 3"]
    kubectl = SimpleNamespace(command=lambda *arguments: script, environment=dict)
    cluster: Any = SimpleNamespace(kubectl=kubectl, api=lambda: None)
    release = Release(cluster, "somewhere", "r", tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"service/none ended with 3:\nno such service"):
        release.forward("service/none", 8786)
