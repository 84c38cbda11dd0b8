"""``python -m deploy.aws.check``: prints what is wrong, and ends with 1 if anything is."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from deploy.aws.check.everything import PARTS, Check, run
from deploy.aws.check.tree import CHECKOUT, Tree


def _checkov() -> Path | None:
    own = CHECKOUT / ".venv-checkov" / "bin" / "checkov"
    found = own if own.exists() else shutil.which("checkov")
    return Path(found) if found else None


def main() -> int:
    """Check the files of this checkout."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.aws.check", description="Check deploy/aws, without AWS."
    )
    schemas = os.environ.get("AWS_SCHEMAS") or CHECKOUT.parent / "shared" / "aws"
    parser.add_argument(
        "--schemas", type=Path, default=Path(schemas), help="folder of kOps's schemas (AWS_SCHEMAS)"
    )
    parser.add_argument(
        "--checkov",
        type=Path,
        default=_checkov(),
        help="the program checkov, for security rules; by default .venv-checkov's, else that in PATH",
    )
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="also write the rendered files there")
    parser.add_argument(
        "--inputs",
        type=Path,
        action="append",
        default=[],
        help="your inputs of the kOps template, as for --values",
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be said several times")
    arguments = parser.parse_args()
    check = Check(
        Tree(inputs=tuple(arguments.inputs)), arguments.schemas, arguments.checkov, arguments.render
    )
    report = run(check, arguments.only or PARTS)
    for note in report.notes:
        print(f"note: {note}")
    for part in report.left_out:
        print(f"LEFT OUT: {part}")
    for problem in sorted(report.problems):
        print(problem, file=sys.stderr)
    count = len(report.problems)
    print(f"deploy/aws: {count or 'no'} problem{'' if count == 1 else 's'}", end="")
    print(", but not all was checked" if report.left_out else "")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
