"""``python -m upstream <suite> <clone>``: the tests of another project, in a copy, with our classes."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from upstream import SUITES


def main() -> int:
    """The worst exit status of the suite's variants."""
    parser = argparse.ArgumentParser(prog="upstream", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("clone", type=Path)
    options, of_pytest = parser.parse_known_args()
    suite = SUITES[options.suite]
    source = options.clone / suite.folder
    if not source.is_dir():
        parser.error(f"{options.clone} has no {suite.folder}")
    status = 0
    for variant in suite.variants:
        print(f"{options.suite}: {variant or suite.folder}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(source, Path(folder, "tests"))
            command = [sys.executable, "-m", "pytest", "-q", "-ra", "--disable-warnings", "-p", "no:cacheprovider"]
            command += ["-p", "upstream.plugin", "--rootdir", str(copy), "--hypothesis-profile", "ci"]
            command += ["--suite", options.suite, "--variant", variant, *suite.paths, *of_pytest]
            done = subprocess.run(command, cwd=copy, env={**os.environ, "S3DCP_FSSPEC": "1"}, check=False)
        status = max(status, done.returncode)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
