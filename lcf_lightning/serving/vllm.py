"""`LCFConnector`: a vLLM engine goes on from prompts that a receiver has read and messages have edited.

Made for the connector interface of vLLM 0.32 (``KVConnectorBase_V1``, which its makers call experimental).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import FullAttentionSpec

from lcf_lightning.errors import MessageError, SettingError
from lcf_lightning.serving.prefilled import PARAMETER, Prefilled

logger = init_logger("vllm.lcf_lightning")  # vLLM shows what stands below its own name


@dataclass
class Load:
    """One request's load.

    Attributes:
        request: The engine's id of the request.
        ids: The prompt that the request came with.
        digest: The file that it names.
        blocks: Where the engine keeps its tokens, from the first on.
        start: How many of them the engine has already.
        stop: Up to which token they are loaded.
    """

    request: str
    ids: list[int]
    digest: Any
    blocks: list[int]
    start: int
    stop: int


@dataclass
class Loads(KVConnectorMetadata):  # type: ignore[misc] # vLLM is not installed where types are checked
    """What the scheduler asks the workers to load before a step."""

    loads: list[Load] = field(default_factory=list)


class LCFConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Gives a request the keys and values of a `Prefilled` file; other requests are served as ever.

    A request names its file in ``kv_transfer_params``, as `Prefilled.save` says. A file that is missing or damaged, or
    of another prompt or model, fails its request, with a sentence in the engine's log; the engine goes on.

    Settings (``kv_connector_extra_config``): ``folder``, where the files are.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._folder = self._kv_transfer_config.get_from_extra_config("folder", None)
        if not self._folder:
            raise SettingError("LCFConnector needs kv_connector_extra_config={'folder': …}, where prompts are saved.")
        parallel = vllm_config.parallel_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise SettingError("LCFConnector serves a model on one device: parallel sizes must be 1.")
        groups = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
        whole = [type(each) is FullAttentionSpec and each.sliding_window is None for each in groups]
        if whole != [True] or groups[0].attention_chunk_size is not None:
            raise SettingError("LCFConnector serves models whose layers all see the whole text.")
        if self._kv_transfer_config.kv_load_failure_policy != "fail":
            raise SettingError("kv_load_failure_policy must be 'fail': else a message that is refused is left out.")
        self._block_size = int(groups[0].block_size)
        self._secret = secrets.token_hex(16)
        self._asked: dict[str, Load] = {}
        self._refused: set[int] = set()

    # The scheduler's side.

    def on_new_request(self, request: Any) -> None:
        """Keeps its tokens apart in the engine's prefix cache, and has them loaded whatever it asks for.

        Two messages' tokens may have the same ids: without a salt the cache would take one's for the other's, and
        the message would silently be ignored. With this one only requests of the same file and prompt share them, which
        others cannot fill beforehand: nobody knows the secret.
        """
        if PARAMETER in (request.kv_transfer_params or {}):
            digest = request.kv_transfer_params[PARAMETER]
            prompt = hashlib.sha256(repr(request.prompt_token_ids).encode()).hexdigest()
            request.cache_salt = f"{self._secret} {digest} {prompt} {request.cache_salt or ''}"
            request.block_hashes.clear()
            request.update_block_hashes()
            request.skip_reading_prefix_cache = False  # else vLLM would read the prompt itself, without the message
            if request.sampling_params is not None:
                request.sampling_params.prompt_logprobs = None  # of tokens that are loaded there are none

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """All prompt tokens but the last, less those that the engine has; none where no message is meant."""
        if PARAMETER not in (request.kv_transfer_params or {}):
            return 0, False
        return max(0, request.num_prompt_tokens - 1 - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Notes where the engine wants a request's tokens."""
        if num_external_tokens:
            end = request.num_prompt_tokens - 1
            self._asked[request.request_id] = Load(
                request.request_id, list(request.prompt_token_ids or ()), request.kv_transfer_params[PARAMETER],
                list(blocks.get_block_ids()[0]), end - num_external_tokens, end,
            )  # fmt: skip

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """What has been noted since the last step."""
        loads, self._asked = Loads(list(self._asked.values())), {}
        return loads

    # The worker's side.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Writes the tokens of every request of this step into the engine's blocks, or says which have none."""
        layers = {
            extract_layer_index(name): layer
            for name, layer in forward_context.no_compile_layers.items()
            if getattr(layer, "kv_cache", None) is not None
        }
        for load in self._get_connector_metadata().loads:
            slots = self._slots(load)
            try:
                self._write(_prefilled(self._folder, load), layers, load, slots)
            except MessageError as error:
                logger.error("request %s is refused: %s", load.request, error)
                self._refused |= set((slots // self._block_size).tolist())

    def _slots(self, load: Load) -> torch.Tensor:
        """``[stop - start]``, int64: each token's place in the engine's blocks."""
        places = torch.arange(load.start, load.stop)
        return torch.tensor(load.blocks)[places // self._block_size] * self._block_size + places % self._block_size

    def _write(self, prefilled: Prefilled, layers: dict[int, Any], load: Load, slots: torch.Tensor) -> None:
        """Raises a MessageError if the prompt was read by another kind of model."""
        count, _, *heads = prefilled.keys.shape
        served = {(layer.num_kv_heads, layer.head_size) for layer in layers.values()}
        if sorted(layers) != list(range(count)) or served != {tuple(heads)}:
            raise MessageError(
                f"this prompt was read by {count} layers of KV heads and head size {tuple(heads)}; the engine's model "
                f"has {len(layers)} of {served}."
            )
        for index, layer in layers.items():
            where = layer.kv_cache
            key, value = (
                side[index, load.start : load.stop].to(where.device, layer.dtype)
                for side in (prefilled.keys, prefilled.values)
            )
            layer.impl.do_kv_cache_update(layer, key, value, where, slots.to(where.device))

    def get_block_ids_with_load_errors(self) -> set[int]:
        """The blocks of the requests that were refused."""
        refused, self._refused = self._refused, set()
        return refused

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: all was written before the step."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: this connector only loads."""

    def wait_for_save(self) -> None:
        """Nothing, as before."""


def _prefilled(folder: str, load: Load) -> Prefilled:
    """The file of a request, if it belongs to its prompt.

    Raises:
        MessageError: If it does not, or cannot be read.
    """
    prefilled = Prefilled.load(folder, load.digest)
    if prefilled.ids.tolist() != load.ids:
        raise MessageError("the request's prompt is not the one that was prefilled.")
    return prefilled
