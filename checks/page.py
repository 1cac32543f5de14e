"""A page that is written from what is true elsewhere: held to it, or written anew."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path


def hold(page: Path, written: Callable[[str], str]) -> int:
    """Tells where a page differs from what `written` makes of its text, and gives 1 if it does.

    ``--write`` writes that instead.
    """
    text = page.read_text()
    true = written(text)
    if "--write" in sys.argv:
        page.write_text(true)
        return 0
    name = f"docs/{page.name}"
    for line in difflib.unified_diff(text.splitlines(), true.splitlines(), name, "what is true", "", "", 0):
        print(line.rstrip())
    return int(true != text)
