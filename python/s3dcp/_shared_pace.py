"""Ranks tell each other, while they save or load, how fast S3 lets them go.

Each client finds its pace from the SlowDown answers to its own requests. Through one counter in the store of the
process group they find it together, sooner and with less waste: see `s3dcp_pacing::Share`, which says what is added to
it. Without a process group, or where its store fails, each goes on by itself.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any

import torch.distributed as dist

from . import _native
from ._compat import own_connection
from ._ranks import world_size

logger = logging.getLogger(__name__)

# How long leaving waits for a store that does not answer.
PATIENCE_SECONDS = 5.0


class SharedPace:
    """Context manager: while it lasts, a thread shares the pace of `client` for what is below a path.

    Args:
        client: the client whose requests are paced.
        write: True for writes, False for reads.
        bucket: the bucket.
        path_key: key of the checkpoint's path.
        found: requests per second that all ranks found before, which they begin at.

    Attributes:
        found: requests per second that all ranks have found together by the end; None where nothing was held back.
    """

    def __init__(
        self, client: _native.Client, write: bool, bucket: str, path_key: str, found: float | None = None
    ) -> None:
        ranks = world_size()
        self.found: float | None = None
        self._counter = f"s3dcp/pace/{'writes' if write else 'reads'}/{bucket}"
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._share = client.share_pace(write, bucket, path_key, ranks, found)
        if ranks > 1:
            self._thread = threading.Thread(target=self._run, name="s3dcp-pace", daemon=True)

    def __enter__(self) -> SharedPace:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.found = self._share.found()
        if self._thread is not None:
            self._done.set()
            self._thread.join(PATIENCE_SECONDS)

    def _run(self) -> None:
        store: Any = None
        try:
            while not self._done.wait(self._share.period):
                if (change := self._share.change()) is not None:
                    # Of its own: a call that waits for another rank keeps a store busy.
                    store = store or own_connection(dist.distributed_c10d._get_default_store())
                    self._share.agree(store.add(self._counter, change))
            if store is not None and (change := self._share.leave()) is not None:
                remainder = self._share.remainder(store.add(self._counter, change))
                if remainder is not None:
                    store.add(self._counter, remainder)
        except Exception as error:
            logger.debug("ranks cannot share their pace: %s", error)
