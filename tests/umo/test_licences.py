"""Licences as the files of bases and LoRAs say them, on the Hub and off it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from umo import licences

CARDS = {
    "---\nlicense: apache-2.0\ntags: [a]\n---\n# A base": "apache-2.0",
    "---\r\nlicense: mit\r\n---\r\n": "mit",
    "---\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\n---\n": "flux-1-dev-non-commercial-license",
    "---\nlicense: other\n---\n": "other",
    "---\ntags: [a]\n---\nlicense: mit": "unknown",
    "license: mit": "unknown",
    "---\n[\n---\n": "unknown",
    "---\nlicense: |\n  two\n  lines\n---\n": r"two\nlines",
}


@pytest.mark.parametrize("card", CARDS)
def test_a_bases_licence_is_that_of_its_card(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licences.of_base(tmp_path).removesuffix(r"\n") == CARDS[card]


def test_without_a_card_the_licences_file_is_named(tmp_path: Path) -> None:
    assert licences.of_base(tmp_path / "nowhere") == licences.of_base(tmp_path) == "unknown"
    (tmp_path / "LICENSE.md").write_text("FLUX.1 [dev] Non-Commercial License")
    assert licences.of_base(tmp_path) == "see LICENSE.md"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licences.of_base(tmp_path) == "mit"


def test_a_loras_licence_is_in_its_metadata_or_its_card(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(1)}
    save_file(weights, tmp_path / "lora.safetensors")
    assert licences.of_lora(tmp_path) == licences.of_lora(tmp_path / "lora.safetensors") == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert licences.of_lora(tmp_path) == licences.of_lora(tmp_path / "lora.safetensors") == "cc-by-nc-4.0"
    save_file(weights, tmp_path / "lora.safetensors", metadata={"modelspec.license": "mit"})
    assert licences.of_lora(tmp_path) == licences.of_lora(tmp_path / "lora.safetensors") == "mit"
    (tmp_path / "lora.safetensors").write_bytes(b"damaged")
    assert licences.of_lora(tmp_path) == "cc-by-nc-4.0"
    base = tmp_path / "base"
    base.mkdir()
    assert (
        licences.line(base, tmp_path / "lora.safetensors") == "licences: base: unknown; lora.safetensors: cc-by-nc-4.0"
    )
