"""A base by its name on the Hub, asked of a stand-in: no test has a network."""

from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from umo.customizers.hub import local_folder
from umo.errors import BadInput

ANSWER = httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co"))
FILES = [
    "model_index.json",
    "README.md",
    "LICENSE.md",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "flux1-dev.safetensors",
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """What the Hub was asked for; it answers with a folder of what was asked for among FILES."""
    asked = []

    def snapshot(name: str, revision: str | None, allow_patterns: list, ignore_patterns: list) -> str:
        asked.append((name, revision))
        found = filter_repo_objects(FILES, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in found:
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / file).touch()
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_name_is_fetched_without_what_is_not_drawn_with(hub: list, tmp_path: Path) -> None:
    assert local_folder("org/FLUX.2-klein-4B") == tmp_path / "cache"
    assert local_folder(Path("org/name@v1.0")) == tmp_path / "cache"
    assert hub == [("org/FLUX.2-klein-4B", None), ("org/name", "v1.0")]
    found = {str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert found == set(FILES[:5])


@pytest.mark.parametrize(
    "name", ["here/base", "here/none", "/no/where", "one", "a/b/c", "models/tiny-uno", "../a/b", "org/two words"]
)
def test_a_path_is_a_path(hub: list, tmp_path: Path, name: str) -> None:
    (tmp_path / "here/base").mkdir(parents=True)
    assert local_folder(name) == Path(name) and not hub


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GatedRepoError("x", response=ANSWER), "those who agreed: accept its terms at https://huggingface.co/org/name"),
        (RepositoryNotFoundError("x", response=ANSWER), "neither a folder here nor a model on the Hub: check the name"),
        (RevisionNotFoundError("x", response=ANSWER), "org/name has no revision v2: choose another"),
        (LocalEntryNotFoundError("no\nnetwork"), r"no folder here, and the Hub cannot be asked for it \(no network\)"),
        (OfflineModeIsEnabled("offline"), r"cannot be asked for it \(offline\): give a base's folder"),
        (httpx2.ProxyError("proxy"), r"cannot be asked for it \(proxy\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(BadInput, match=f"^org/name@v2: .*{said}") as refused:
        local_folder("org/name@v2")
    assert "\n" not in str(refused.value)
