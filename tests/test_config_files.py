"""Configs that extend others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lcf_lightning.cli import main
from tests.test_cli import CONFIGS


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_a_config_that_is_printed_stands_alone(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds what its base says, and runs from another folder."""
    with pytest.raises(SystemExit):
        main([command, "--config", str(CONFIGS / "quickstart_shared_c2c.yaml"), "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", "printed.yaml", "--print_config"])
    again = capsys.readouterr().out
    assert stopped.value.code == 0
    assert again == (tmp_path / "printed.yaml").read_text()
    assert yaml.safe_load(again)["base"] is None
    assert yaml.safe_load(again)["data"]["init_args"]["source"]["class_path"].endswith("Knowledge")


@pytest.mark.parametrize(
    ("settings", "wrong", "meant"),
    [
        ("source: {class_path: BothWays, init_args: {source: {class_path: HotpotQA, init_args: {trian: a}}}}",
         "data.source.source.trian", "data.source.source.train"),
        ("prompts: {spns: word}", "data.prompts.spns", "data.prompts.spans"),
    ],
)  # fmt: skip
def test_a_key_that_is_no_setting_is_named_with_its_whole_path(
    settings: str, wrong: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"data: {{class_path: ContextMismatchDataModule, init_args: {{{settings}}}}}\n"
    (tmp_path / "a.yaml").write_text(f"base: {CONFIGS / 'quickstart.yaml'}\n{data}")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(tmp_path / "a.yaml")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {wrong} is no setting; did you mean {meant}?\n"


@pytest.mark.parametrize(
    ("base", "message"),
    [("b.yaml", "base='b.yaml' must name another config file in "), ("[b.yaml]", "base=['b.yaml'] ")],
)
def test_a_base_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base: str, message: str
) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {base}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "a.yaml"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"[" * 3000, "seed_everything: 1".encode("utf-16"), "# gr\u00fcn".encode("latin-1")]
)
def test_a_config_that_is_no_yaml_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["params", "--config", str(tmp_path / "a.yaml")])
    assert stopped.value.code == 2
    assert f"config={str(tmp_path / 'a.yaml')!r} is not valid YAML: " in capsys.readouterr().err
