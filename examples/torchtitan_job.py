"""torchtitan's debug model on S3: ``python -m torchtitan.train --module torchtitan_job --config llama3_debugmodel``."""

from torchtitan.models.llama3.config_registry import llama3_debugmodel as torchtitans

from s3dcp.torchtitan import on_s3


def llama3_debugmodel():
    return on_s3(torchtitans())
