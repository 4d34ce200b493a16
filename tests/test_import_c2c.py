"""``import-c2c``: an imported fuser edits as Cache-to-Cache's projectors do, written out plainly here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lcf_lightning import CacheAdapter, Channel, ModelSpec
from lcf_lightning.adapter import hub
from lcf_lightning.adapter.subset import keep_layers
from lcf_lightning.cli import main
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.geometry import Geometry
from lcf_lightning.models.loading import geometry_of, load_frozen

CONFIGS = Path(__file__).parents[1] / "configs"
HIDDEN = 10
Spec = Callable[[str], ModelSpec]


def weights(sharer: Geometry, receiver: Geometry, seed: int) -> dict[str, Tensor]:
    """A projector's state dict, by the names and shapes of C2C's code."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = sharer.width + receiver.width, receiver.width

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> dict[str, Tensor]:
        made = {f"{name}.weight": torch.randn(rows, columns, generator=generator) / columns**0.5}
        return made | ({f"{name}.bias": torch.randn(rows, generator=generator) / 2} if bias else {})

    state = {"gate_temperature": torch.tensor(0.5)}
    for place, side in enumerate(("key", "value")):
        state |= linear(f"{side}_in", HIDDEN, inputs)
        for block in ("mlp1", "scalar_mlp2", "proj_mlp2"):
            state[f"{side}_{block}.blocks.0.norm.weight"] = 1 + torch.randn(HIDDEN, generator=generator) / 4
            for name in ("w1", "w2"):
                state |= linear(f"{side}_{block}.blocks.0.{name}", HIDDEN, HIDDEN, bias=False)
        state |= linear(f"{side}_scalar_head", receiver.kv_heads, HIDDEN)
        state |= linear(f"{side}_proj_out", outputs, HIDDEN)
        state[f"{side}_gate_logit"] = torch.tensor(-0.5 if (seed + place) % 3 == 0 else 0.5)  # some are closed
    return state


def block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    hidden = F.gelu((x * scale * state[f"{name}.norm.weight"]) @ state[f"{name}.w1.weight"].T)
    return x + hidden @ state[f"{name}.w2.weight"].T


def edited(state: dict[str, Tensor], side: str, source: Tensor, target: Tensor) -> Tensor:
    """C2C's projector in evaluation: ``[batch, heads, tokens, size]`` of the sharer and the receiver to the new one."""
    batch, heads, tokens, size = target.shape
    joint = torch.cat([part.transpose(1, 2).flatten(2) for part in (source, target)], dim=-1)
    z = block(state, f"{side}_mlp1.blocks.0", joint @ state[f"{side}_in.weight"].T + state[f"{side}_in.bias"])
    update = block(state, f"{side}_proj_mlp2.blocks.0", z) @ state[f"{side}_proj_out.weight"].T
    update = (update + state[f"{side}_proj_out.bias"]).view(batch, tokens, heads, size).transpose(1, 2)
    scalar = block(state, f"{side}_scalar_mlp2.blocks.0", z) @ state[f"{side}_scalar_head.weight"].T
    weight = torch.sigmoid(scalar + state[f"{side}_scalar_head.bias"]).transpose(1, 2)[..., None]
    return target + float(state[f"{side}_gate_logit"] > 0) * weight * update


def write(folder: Path, sharer: ModelSpec, receiver: ModelSpec, **changes: Any) -> list[dict[str, Tensor]]:
    """A pair's folder as C2C writes it, last layers on last; returns each receiver layer's state dict."""
    final = folder / "final"
    final.mkdir(parents=True)
    theirs, own = geometry_of(sharer), geometry_of(receiver)
    model = {"base_model": receiver.path, "teacher_model": sharer.path, "is_do_alignment": False}
    (folder / "config.json").write_text(json.dumps({"model": model | changes.get("model", {})}))
    shared = min(theirs.layers, own.layers)
    layers = {str(own.layers - shared + n): [[theirs.layers - shared + n, n]] for n in range(shared)}
    (final / "projector_config.json").write_text(json.dumps(changes.get("layers", {"0": {"1": layers}})))
    arguments = {
        "source_dim": theirs.head_dim, "target_dim": own.head_dim, "source_num_heads": theirs.kv_heads,
        "target_num_heads": own.kv_heads, "hidden_dim": HIDDEN, "intermediate_dim": HIDDEN, "num_layers": 3,
    }  # fmt: skip
    states = []
    for n in range(shared):
        state = weights(theirs, own, n + 1)
        kind = {"class": changes.get("class", "C2CProjector"), "init_args": arguments | changes.get("init_args", {})}
        (final / f"projector_{n}.json").write_text(json.dumps(kind))
        torch.save(state | changes.get("state", {}), final / f"projector_{n}.pt")
        states.append(state)
    return states


def imported(source: Path, output: Path, *options: str) -> CacheAdapter:
    main(["import-c2c", str(source), "--output", str(output), "--dtype", "float32", *options])
    return CacheAdapter.from_pretrained(output)


@pytest.mark.parametrize(("sharer", "receiver"), [("llama", "qwen3"), ("qwen3", "llama")])
@torch.no_grad()
def test_it_answers_as_the_projectors_do(sharer: str, receiver: str, spec: Spec, tmp_path: Path) -> None:
    """Shallow on deep and deep on shallow; greedy answers, and keys and values of every layer."""
    states = write(tmp_path / "pair", spec(sharer), spec(receiver), model={"is_do_alignment": True})
    adapter = imported(tmp_path / "pair", tmp_path / "adapter")
    theirs, own = load_frozen(spec(sharer)), load_frozen(spec(receiver))
    ids = torch.randint(2, 290, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    said, read = prefill(theirs.model, ids, mask), prefill(own.model, ids, mask)
    link = Channel(theirs, own, adapter).link
    fused = link.fuse(read, link.pool(said, torch.arange(9).expand(2, -1)))
    first, behind = own.geometry.layers - len(states), theirs.geometry.layers - len(states)
    for layer in range(own.geometry.layers):
        for side, mine, before, source in (
            ("key", fused.keys, read.keys, said.keys),
            ("value", fused.values, read.values, said.values),
        ):
            expected = before[layer]
            if layer >= first:
                expected = edited(states[layer - first], side, source[layer - first + behind], before[layer])
            torch.testing.assert_close(mine[layer], expected, atol=1e-5, rtol=1e-5)
    assert any(not torch.equal(*pair) for pair in zip(fused.keys, read.keys, strict=True))


@torch.no_grad()
def test_the_sharer_reads_the_tokens_of_the_receiver(spec: Spec, tmp_path: Path) -> None:
    write(tmp_path / "pair", spec("qwen3"), spec("llama"))
    channel = Channel(
        load_frozen(spec("qwen3")), load_frozen(spec("llama")), imported(tmp_path / "pair", tmp_path / "a")
    )
    assert channel.prompts.sharer_reads == "receiver_tokens"
    text = "The sharer has moved. 🧪"
    message = channel.send(["It is far."], text)
    turns = [{"role": "user", "content": f"It is far.\n\n{text}"}]
    ids, own = (
        channel.writer.tokenizer(role).apply_chat_template(turns, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        for role in ("receiver", "sharer")
    )
    assert own != ids
    tokens = torch.tensor([ids])
    said = prefill(channel.link.sharer.model, tokens, torch.ones_like(tokens, dtype=torch.bool))
    layers = channel.adapter.config.sharer_layers
    torch.testing.assert_close(message.keys[:, 0], said.read(layers).keys[:, 0, :, :-1])


def test_it_is_audited_by_one_command(tmp_path: Path) -> None:
    write(tmp_path / "pair", ModelSpec("tiny-expert"), ModelSpec("tiny-receiver"))
    imported(tmp_path / "pair", tmp_path / "adapter")
    run = ["--config", str(CONFIGS / "quickstart_shared_c2c.yaml"), "--data.prompts.sharer_reads", "receiver_tokens",
           "--trainer.enable_progress_bar", "false", "--adapter", str(tmp_path / "adapter")]  # fmt: skip
    arms = ["--arms", "[sharer_alone,message,mismatched]"]
    main(["evaluate", *run, *arms, "--limit", "8", "--repeats", "0", "--output", str(tmp_path / "evaluation")])
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["audit"]["comparisons"]["content_attributable_gain"]["n"] == 8
    assert report["arms"]["sharer_alone"]["exact_match"]["value"] > 0.9  # who reads its own tokens knows the answers


def test_bfloat16_stays_and_a_pair_is_named(spec: Spec, tmp_path: Path) -> None:
    write(tmp_path / "pair", spec("llama"), spec("qwen3"))
    for file in (tmp_path / "pair" / "final").glob("*.pt"):
        torch.save({name: tensor.bfloat16() for name, tensor in torch.load(file).items()}, file)
    adapter = imported(tmp_path, tmp_path / "adapter", "--pair", "pair")
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.bfloat16}
    assert adapter.config.receiver_layers == (1, 2, 3)
    assert keep_layers(adapter, [1, 3]).config.sharer_layers == (0, 2)


def test_a_pair_is_fetched_from_the_hub(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but its own files."""
    name, asked = "qwen3_0.6b+qwen2.5_0.5b_Fuser", []
    write(tmp_path / "hub" / name, spec("llama"), spec("qwen3"))

    def fetched(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path / "hub")

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    main(
        ["import-c2c", "nics-efc/C2C_Fuser", "--pair", name, "--revision", "v1", "--output", str(tmp_path / "adapter")]
    )
    assert asked == [("nics-efc/C2C_Fuser", "v1", [f"{name}/config.json", f"{name}/final/projector_*"])]
    assert CacheAdapter.from_pretrained(tmp_path / "adapter").config.sharer.dtype == "bfloat16"


LLAMA_TO_QWEN3 = {"1": [[0, 0]], "2": [[1, 1]], "3": [[2, 2]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_args": {"intermediate_dim": 30}}, "intermediate_dim=30 must be 10, as in our C2C fuser."),
        ({"init_args": {"dropout": "much"}}, "dropout='much' must be a number as 0.1 is."),
        ({"init_args": {"num_layers": 4}}, "num_layers=4 must be 3, as in our C2C fuser."),
        ({"class": "AllInOneProjector"}, "class='AllInOneProjector' must be 'C2CProjector', with init_args."),
        ({"init_args": {"source_dim": 16}}, "source_num_heads and source_dim of the projectors are (2, 16); sharer"),
        ({"layers": {"0": {"1": LLAMA_TO_QWEN3 | {"1": [[2, 0]]}}}}, "is none of the layer maps last_aligned, prop"),
        ({"layers": {"0": {"1": {"1": [[0, 0], [1, 1]]}}}}, "must give each layer of one receiver one layer of one"),
        ({"layers": {"0": {"1": LLAMA_TO_QWEN3, "2": {}}}}, "must give each layer of one receiver one layer of one"),
        ({"state": {"key_in.weight": torch.zeros(3, 3)}}, "are no C2C fuser"),
        (
            {"state": {"key_extra.weight": torch.zeros(3)}},
            "a projector holds 'key_extra.weight', which no C2CProjector",
        ),
        ({"state": {"key_in.weight": "os.system"}}, "must hold the weights of a projector by name."),
        ({"model": {"teacher_model": ["a", "b"]}}, "must name one base_model and one teacher_model."),
    ],
)
def test_what_is_no_such_fuser_is_refused(
    changes: dict[str, Any], message: str, spec: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "pair", spec("llama"), spec("qwen3"), **changes)
    with pytest.raises(SystemExit, match="2"):
        imported(tmp_path / "pair", tmp_path / "adapter")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()


def test_what_a_file_would_run_is_not_run(spec: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    write(tmp_path / "pair", spec("llama"), spec("qwen3"))
    torch.save({"key_in.weight": Trap()}, tmp_path / "pair" / "final" / "projector_0.pt")
    with pytest.raises(SystemExit, match="2"):
        imported(tmp_path / "pair", tmp_path / "adapter")
    assert "cannot be read as weights" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nics-efc/C2C_Fuser", "pair=None must be a folder of nics-efc/C2C_Fuser"),
        (".", "holds no config.json of C2C; name one of its pairs with --pair: pair."),
        ("nowhere", "holds no config.json of C2C."),
    ],
)
def test_a_source_that_is_no_pair_is_refused(
    source: str, message: str, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pair", spec("llama"), spec("qwen3"))
    with pytest.raises(SystemExit, match="2"):
        main(["import-c2c", source, "--output", "adapter"])
    assert message in capsys.readouterr().err
