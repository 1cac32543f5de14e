"""Tools around checkpoints: what ``s3dcp ls``, ``keep``, ``inspect``, ``verify``, ``diff``, ``cp``, ``export`` and
``import`` do.

Every function takes ``s3://bucket/path`` or a local folder, and checkpoints of this package's writer, of torch's and
of s3torchconnector's. How S3 is reached is what `s3dcp.configure` was told, where the arguments do not say. Nothing
here needs torch, and no object of a checkpoint is unpickled.

>>> [checkpoint.step for checkpoint in list_checkpoints("s3://bucket/run")]  # doctest: +SKIP
[100, 200, 300]
"""

from .comparison import ComparedObject, ComparedTensor, Comparison, Difference, ItemName, diff
from .inspection import Chunk, Index, Inspection, Statistics, StoredObject, Tensor, Total, inspect
from .listing import Checkpoint, list_checkpoints
from .retention import Kept, Retention, keep
from .transfer import Copied, Exported, Imported, copy, export, import_model
from .verification import Fault, Verification, VerifiedBy, verify

__all__ = [
    "Checkpoint",
    "Chunk",
    "ComparedObject",
    "ComparedTensor",
    "Comparison",
    "Copied",
    "Difference",
    "Exported",
    "Fault",
    "Imported",
    "Index",
    "Inspection",
    "ItemName",
    "Kept",
    "Retention",
    "Statistics",
    "StoredObject",
    "Tensor",
    "Total",
    "Verification",
    "VerifiedBy",
    "copy",
    "diff",
    "export",
    "import_model",
    "inspect",
    "keep",
    "list_checkpoints",
    "verify",
]
