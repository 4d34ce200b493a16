"""The blocks of docs/extend.md, each as the file that its first line names, in a folder outside the package."""

from __future__ import annotations

import gc
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcf_lightning import CacheAdapter, Channel
from lcf_lightning.adapter.config import AdapterSettings
from lcf_lightning.adapter.folder import CONFIG_FILE, WEIGHTS_FILE
from lcf_lightning.adapter.parts import Pooler, Summaries
from lcf_lightning.cli import main
from lcf_lightning.errors import AdapterFileError, SettingError
from lcf_lightning.models.geometry import KV, Geometry
from tests.pages import ROOT, named_files

MODULES = ["my_pooler", "my_fuser", "my_source", "my_arm", "my_family"]
SHORT = shlex.split(
    "--trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1 "
    "--trainer.enable_progress_bar false --data.batch_size 4 --data.eval_batch_size 4 --model.max_new_tokens 2"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with the page's files, as a working directory that modules are imported from."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, text in named_files(ROOT / "docs" / "extend.md").items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
        for module in MODULES:
            sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """What a fit of the page's config leaves."""
    main(["fit", "--config", "my_run.yaml", *SHORT])
    return folder / "runs" / "my_run" / "adapter"


def test_a_part_is_one_short_file() -> None:
    for name, text in named_files(ROOT / "docs" / "extend.md").items():
        assert len(text.splitlines()) < 60, name


def test_own_parts_train_from_a_config_and_are_saved_with_their_settings(adapter: Path) -> None:
    settings = json.loads((adapter / CONFIG_FILE).read_text())["settings"]
    assert settings["pooler"] == {"class_path": "my_pooler.LastTokens", "init_args": {"count": 2}}
    assert settings["fuser"] == "my_fuser.Linear"
    assert {name.split(".")[0] for name in load_file(adapter / WEIGHTS_FILE)} == {"fuser", "gates"}
    card = (adapter / "README.md").read_text()
    assert "# linear last tokens adapter" in card
    assert ", modules=['my_pooler', 'my_fuser'])" in card


def test_a_run_with_own_parts_is_continued_and_exported(adapter: Path, folder: Path) -> None:
    main(["fit", "--config", "my_run.yaml", *SHORT, "--trainer.max_steps", "3", "--ckpt_path", "last"])
    assert json.loads((adapter.parent / "summary.json").read_text())["steps"] == 3
    checkpoint = str(adapter.parent / "checkpoints" / "last.ckpt")
    main(["export", "--checkpoint", checkpoint, "--output", "exported", "--modules", "[my_pooler,my_fuser]"])
    exported = CacheAdapter.from_pretrained(folder / "exported")
    assert exported.fingerprint() == CacheAdapter.from_pretrained(adapter).fingerprint()


def test_only_parts_of_the_package_have_short_names(adapter: Path) -> None:
    class Span(Pooler):
        alias, label = "span", "not the paper's"

        def summarise(self, cache: KV, spans: torch.Tensor) -> Summaries:
            raise AssertionError

    try:
        assert AdapterSettings(pooler="span").label == "LCF-X"
        assert AdapterSettings(pooler=f"{__name__}.{Span.__qualname__}").label == "not the paper's"
    finally:
        del Span
        gc.collect()


def test_own_parts_are_loaded_sent_with_and_received(adapter: Path) -> None:
    channel = Channel.from_pretrained(adapter, modules=["my_pooler", "my_fuser"])
    message = channel.send(["owns ada lamp .", "owns ben kite ."])
    assert message.spans == 2
    assert channel.receive(message, "owns ada", ["owns cleo drum ."], max_new_tokens=2).new_tokens > 0
    with pytest.raises(SettingError, match="pooled=true must be false"):
        channel.send(["owns ada lamp ."], pooled=True)


def test_the_pooler_means_the_last_tokens_of_each_span(adapter: Path) -> None:
    pooler = CacheAdapter.from_pretrained(adapter).pooler
    assert pooler is not None
    keys = torch.arange(12.0).reshape(1, 1, 1, 6, 2)
    spans = torch.tensor([[-1, 0, 0, 0, 1, -1]])
    summaries = pooler.summarise(KV(keys, -keys), spans)
    assert summaries.kv.keys.tolist() == [[[[[5.0, 6.0], [8.0, 9.0]]]]]
    assert summaries.kv.values.tolist() == [[[[[-5.0, -6.0], [-8.0, -9.0]]]]]
    assert summaries.present.tolist() == [[True, True]]


def test_params_counts_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["params", "--config", "my_run.yaml", "--json"])
    counts = json.loads(capsys.readouterr().out)
    assert counts["pool"] == 0
    assert counts["total"] > 0


def test_bad_settings_of_an_own_part_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (("{count: 0}", "count=0 must be at least 1"), ("{size: 1}", "it takes count")):
        pooler = f"{{class_path: my_pooler.LastTokens, init_args: {arguments}}}"
        (folder / "bad.yaml").write_text(f"base: my_run.yaml\nmodel:\n  adapter:\n    pooler: {pooler}\n")
        with pytest.raises(SystemExit) as ended:
            main(["params", "--config", "bad.yaml"])
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err


def test_a_misspelt_part_of_a_module_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["params", "--config", "my_run.yaml", "--model.adapter.fuser", "my_fuser.Linar"])
    assert capsys.readouterr().err.endswith("module my_fuser has no Fuser Linar; did you mean my_fuser.Linear?\n")
    (folder / "half.py").write_text(
        "from lcf_lightning.adapter.parts import Fuser\n\n\nclass Half(Fuser): ...\n\n\nclass Other: ...\n"
        "from lcf_lightning.adapter.fusers.lcf import LCFFuser\n"
    )
    for name, why in (
        ("Half", "Half: it lacks "),
        ("Other", "Other: it is no subclass of Fuser.\n"),
        ("LCFFuser", "LCFFuser; did you mean lcf_lightning.adapter.fusers"),
    ):
        with pytest.raises(SystemExit):
            main(["params", "--config", "my_run.yaml", "--modules", "half", "--model.adapter.fuser", f"half.{name}"])
        assert f"module half has no Fuser {why}" in capsys.readouterr().err


def test_an_adapter_never_imports_what_it_names(adapter: Path, folder: Path, tmp_path: Path) -> None:
    """A folder from elsewhere may name anything; only what the caller has imported is used."""
    (folder / "foreign.py").write_text("raise SystemExit('imported')")
    config = json.loads((adapter / CONFIG_FILE).read_text())
    for name in ("foreign.Pooler", "elsewhere.deeper.Pooler"):
        config["settings"]["pooler"] = {"class_path": name, "init_args": {}}
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            (tmp_path / file).write_bytes((adapter / file).read_bytes())
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
        with pytest.raises(AdapterFileError, match=f"pooler='{name}' must be .* whose module has been imported"):
            Channel.from_pretrained(tmp_path)
    assert "foreign" not in sys.modules
    config["settings"]["pooler"] = "os.system"  # imported, and no pooler
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(AdapterFileError, match=r"module os has no Pooler system\."):
        Channel.from_pretrained(tmp_path)


def test_an_own_arm_is_answered_and_reported(adapter: Path, folder: Path) -> None:
    few = ["--trainer.enable_progress_bar", "false", "--data.eval_batch_size", "4", "--model.max_new_tokens", "2"]
    arms = "[own_context,message,my_arm.Halved]"
    main(["evaluate", "--config", "my_run.yaml", "--arms", arms, "--limit", "4", "--repeats", "1", *few])
    output = folder / "runs" / "my_run" / "evaluation"
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows].count("halved") == 4
    report, page = json.loads((output / "report.json").read_text()), (output / "report.md").read_text()
    assert report["arms"]["halved"]["n"] == 4
    assert report["audit"]["comparisons"]["gain_over_halved"]["second"] == "halved"
    assert "halved" in report["audit"]["listening"]
    assert "| halved |" in page
    assert "*Halved*: the message's keys and values divided by two." in page
    assert "halved" not in report["latency"]["arms"]  # it costs what the message costs
    assert all((output / name).stat().st_size for name in ("arms.png", "frontier.png"))


def test_an_arm_that_cannot_be_imported_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--config", "my_run.yaml", "--arms", "[message,nowhere.Arm]"])
    assert "arms: arm 'nowhere.Arm' cannot be imported: No module named 'nowhere'" in capsys.readouterr().err


def test_a_family_is_known_once_its_file_is_imported(folder: Path) -> None:
    from lcf_lightning.models.families.family import _FAMILIES

    __import__("my_family")
    try:
        family = _FAMILIES["cohere"]()
        assert family.rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-2.0, 1.0, -4.0, 3.0]
        config = type("Config", (), {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32})
        assert family.geometry(config) == Geometry(layers=2, kv_heads=4, head_dim=8)
    finally:
        del _FAMILIES["cohere"]
