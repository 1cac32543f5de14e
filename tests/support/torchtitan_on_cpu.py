"""``torchtitan.train`` without a GPU: stands in for what torchtitan 0.3 asks of one, and changes nothing else.

torchtitan takes CUDA where it finds no accelerator. Its attention has no backward pass on a CPU, and gloo does not know
the reduction that FSDP takes.
"""

from __future__ import annotations

import json
import random
import runpy
import types
from pathlib import Path
from typing import Any

WORDS = [f"word{number}" for number in range(20)]


def assets(folder: Path) -> None:
    """What the debug model asks for in the working directory: a tokenizer, and some text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    place, text = folder / "tests/assets/tokenizer", folder / "tests/assets/c4_test"
    for each in (place, text):
        each.mkdir(parents=True)
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    chance = random.Random(1)
    lines = [json.dumps({"text": " ".join(chance.choices(WORDS, k=120))}) for _ in range(2000)]
    (text / "data.json").write_text("\n".join(lines))


def stand_in() -> None:
    """Put the stand-ins in their places."""
    import torch
    import torch._utils
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    from torch.nn.attention import flex_attention

    torch._utils._get_available_device_type = lambda: "cpu"
    device = types.SimpleNamespace(total_memory=1 << 34, name="CPU")
    answers = {"get_device_name": "CPU", "get_device_properties": device, "memory_stats": {}, "current_device": 0}
    for name in ("reset_peak_memory_stats", "empty_cache"):
        answers[name] = None
    for name, answer in answers.items():
        setattr(torch.cpu, name, lambda *_, answer=answer: answer)

    make = FSDPParamGroup.__init__

    def make_for_gloo(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.force_sum_reduction_for_comms = True

    FSDPParamGroup.__init__ = make_for_gloo

    from torchtitan.models.common import attention

    def dense(q: Any, k: Any, v: Any, *, block_mask: Any, scale: Any, enable_gqa: bool, **_: Any) -> Any:
        mask = flex_attention.create_mask(block_mask.mask_mod, len(q), 1, q.shape[2], k.shape[2], device="cpu")
        function = torch.nn.functional.scaled_dot_product_attention
        return function(q, k, v, mask, scale=scale, enable_gqa=enable_gqa), None

    attention.FlexAttention._compiled_flex_attn = staticmethod(dense)
    attention._compiled_create_block_mask = flex_attention.create_block_mask


if __name__ == "__main__":
    stand_in()
    runpy.run_module("torchtitan.train", run_name="__main__")
