"""Up to the hub and down again, through a hub that is a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.card import CARD_FILE
from lcf_lightning.adapter.folder import CONFIG_FILE, OLDER, WEIGHTS_FILE
from lcf_lightning.adapter.hub import is_hub_id
from lcf_lightning.cli import main
from lcf_lightning.errors import AdapterFileError

Build = Callable[..., CacheAdapter]


class FolderHub:
    """What `HfApi` and `snapshot_download` do, on a local folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, False

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.private = private

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    def download(self, repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        if revision not in (None, "main") or not (self.root / repo_id).is_dir():
            raise OSError(f"404: {repo_id} at {revision}\nmore")
        assert allow_patterns == [CONFIG_FILE, WEIGHTS_FILE, *OLDER]
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    fake = FolderHub(tmp_path / "hub")
    monkeypatch.setattr("lcf_lightning.adapter.hub.HfApi", lambda: fake)
    monkeypatch.setattr("lcf_lightning.adapter.hub.snapshot_download", fake.download)
    return fake


def test_push_and_fetch_give_the_same_adapter(hub: FolderHub, adapter: Build) -> None:
    module = adapter(layers=(1, 3))
    assert module.push_to_hub("ada/adapter", private=True) == "https://hub/ada/adapter/commit/1"
    assert hub.private
    assert {path.name for path in (hub.root / "ada/adapter").iterdir()} == {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE}
    assert 'from_pretrained("ada/adapter")' in (hub.root / "ada/adapter" / CARD_FILE).read_text()
    restored = CacheAdapter.from_pretrained("ada/adapter", revision="main")
    assert restored.config == module.config
    for name, tensor in module.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor)


def test_what_the_hub_has_not_is_named(hub: FolderHub, adapter: Build) -> None:
    with pytest.raises(AdapterFileError, match="adapter='ada/none' is no folder here, and cannot be fetched .*: 404"):
        CacheAdapter.from_pretrained("ada/none")
    adapter().push_to_hub("ada/adapter")
    with pytest.raises(AdapterFileError, match="404: ada/adapter at v9$"):
        CacheAdapter.from_pretrained("ada/adapter", revision="v9")
    (hub.root / "ada/adapter" / WEIGHTS_FILE).write_bytes(b"junk")
    with pytest.raises(AdapterFileError, match="is damaged or no safetensors file"):
        CacheAdapter.from_pretrained("ada/adapter")


def test_why_the_hub_refuses_is_said_on_its_second_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        said = "404 Client Error.\n\nRepository Not Found for url: https://hub/runs/none.\nPlease make sure"
        raise RepositoryNotFoundError(said, response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr("lcf_lightning.adapter.hub.snapshot_download", refuse)
    with pytest.raises(AdapterFileError) as caught:
        CacheAdapter.from_pretrained("runs/none")
    assert str(caught.value) == (
        "adapter='runs/none' is no folder here, and cannot be fetched from the hub: 404 Client Error. "
        "Repository Not Found for url: https://hub/runs/none."
    )


def test_a_folder_that_exists_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("runs/adapter")
    (tmp_path / "runs" / "adapter").mkdir(parents=True)
    assert not is_hub_id("runs/adapter")
    assert not any(map(is_hub_id, ("adapter", "a/b/c", "/a/b", "./a/b", "a b/c")))


@pytest.mark.parametrize("command", [["evaluate"], ["prune", "--keep", "1"]])
def test_commands_take_a_revision_of_an_adapter_on_the_hub(
    hub: FolderHub, adapter: Build, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter().push_to_hub("ada/adapter")
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    run = ["--config", str(config), "--trainer.default_root_dir", str(tmp_path), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *run, "--adapter", "ada/adapter", "--revision", "v9"])
    assert stopped.value.code == 2
    assert "cannot be fetched from the hub: 404: ada/adapter at v9" in capsys.readouterr().err
