"""CLIP, SigLIP 2 and DINOv2 on small random weights in the real layout, held against what is written out here."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from umo.errors import BadInput
from umo.evaluation import agreement
from umo.evaluation.agreement import Agreement, load, measure
from umo.evaluation.cases import Case

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
EYES: dict[str, Any] = SIZES | {"image_size": 32, "patch_size": 8}
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# As openai/clip-vit-base-patch32 has it: of the time of feature extractors, sizes as plain numbers.
CLIP_PREPARATION: dict[str, Any] = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    **dict.fromkeys(("do_resize", "do_center_crop", "do_normalize"), True),
    **dict.fromkeys(("size", "crop_size"), 32),
    **dict(zip(("image_mean", "image_std"), OPENAI, strict=True)),
    "resample": 3,
}
NEWER: dict[str, Any] = {
    **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
    "rescale_factor": 0.00392156862745098,
}
DINO_PREPARATION = NEWER | {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    **dict(zip(("image_mean", "image_std"), IMAGENET, strict=True)),
    "resample": 3,
}
SIGLIP_PREPARATION = NEWER | {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 32, "width": 32},
    **dict(zip(("image_mean", "image_std"), HALF, strict=True)),
    "resample": 2,
}
NAFLEX_PREPARATION = NEWER | {
    "image_processor_type": "Siglip2ImageProcessor",
    "patch_size": 8,
    "max_num_patches": 20,
    **dict(zip(("image_mean", "image_std"), HALF, strict=True)),
    "resample": 2,
}


def save(folder: Path, model: Any, preparation: dict[str, Any]) -> Path:
    """As from_pretrained finds it; weights large enough that pictures differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 or "embedding" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.25)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def clip(folder: Path) -> Path:
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: rank for rank, word in enumerate(words)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    text = SIZES | {"vocab_size": len(words), "max_position_embeddings": 77, "eos_token_id": 2, "bos_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config=EYES, projection_dim=16)
    return save(folder, transformers.CLIPModel(config), CLIP_PREPARATION)


def gemma(folder: Path) -> int:
    """SigLIP 2's tokenizer in small: it does not fold case, and as a Gemma pads on the left. Returns its words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, *LETTERS.upper()]
    vocabulary = {word: rank for rank, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    made.save(str(folder / "tokenizer.json"))
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    said = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return len(words)


def siglip(folder: Path) -> Path:
    """SigLIP 2 at a fixed size, as google/siglip2-base-patch16-224: of type siglip."""
    text = SIZES | {"vocab_size": gemma(folder), "max_position_embeddings": 64, "pad_token_id": 0}
    text |= {"eos_token_id": 1, "bos_token_id": 2}
    config = transformers.SiglipConfig(text_config=text, vision_config=EYES)
    return save(folder, transformers.SiglipModel(config), SIGLIP_PREPARATION)


def siglip2(folder: Path) -> Path:
    """SigLIP 2 NaFlex, as google/siglip2-base-patch16-naflex."""
    text = SIZES | {"vocab_size": gemma(folder), "max_position_embeddings": 64, "pad_token_id": 0}
    text |= {"eos_token_id": 1, "bos_token_id": 2}
    config = transformers.Siglip2Config(text_config=text, vision_config=SIZES | {"patch_size": 8, "num_patches": 16})
    return save(folder, transformers.Siglip2Model(config), NAFLEX_PREPARATION)


def dinov2(folder: Path) -> Path:
    return save(folder, transformers.Dinov2Model(transformers.Dinov2Config(**EYES)), DINO_PREPARATION)


def registers(folder: Path) -> Path:
    config = transformers.Dinov2WithRegistersConfig(**EYES, num_register_tokens=2)
    return save(folder, transformers.Dinov2WithRegistersModel(config), DINO_PREPARATION)


def dino(folder: Path) -> Path:
    """The first DINO, as facebook/dino-vits16: without a pooling layer."""
    preparation = SIGLIP_PREPARATION | {"image_processor_type": "ViTImageProcessor", "size": 32}
    return save(folder, transformers.ViTModel(transformers.ViTConfig(**EYES), add_pooling_layer=False), preparation)


MAKERS: dict[str, Callable[[Path], Path]] = {
    maker.__name__: maker for maker in (clip, siglip, siglip2, dinov2, registers, dino)
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {name: maker(root / name) for name, maker in MAKERS.items()}


def picture(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    """Patches of colour, redder on the left."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    coarse[:, :3, 2] //= 4
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def prepared(
    image: np.ndarray,
    edge: int | None,
    normal: tuple[list[float], list[float]],
    kernel: Image.Resampling = Image.Resampling.BICUBIC,
    scale: float = 255,
) -> torch.Tensor:
    """(1, 3, 32, 32): scaled until the shorter side has `edge` px and cut in the middle, or, without, stretched."""
    height, width = image.shape[:2]
    size = (
        (32, 32)
        if edge is None
        else (int(edge * width / min(image.shape[:2])), int(edge * height / min(height, width)))
    )
    scaled = np.asarray(Image.fromarray(image).resize(size, kernel)).astype(np.float32)
    top, left = (scaled.shape[0] - 32) // 2, (scaled.shape[1] - 32) // 2
    values = (scaled[top : top + 32, left : left + 32] / scale - np.array(normal[0])) / np.array(normal[1])
    return torch.from_numpy(values.transpose(2, 0, 1)[None].astype(np.float32))


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm(dim=-1, keepdim=True)).detach().numpy()


def seen_by(kind: str, folder: Path) -> Callable[[torch.Tensor], np.ndarray]:
    """The network itself: pixel values (1, 3, 32, 32) -> (1, d), layer by layer where it is not one call."""
    if kind == "clip":
        model = transformers.CLIPModel.from_pretrained(folder).eval()

        def projected(pixels: torch.Tensor) -> np.ndarray:
            state = model.vision_model.pre_layrnorm(model.vision_model.embeddings(pixels))
            state = model.vision_model.encoder(inputs_embeds=state).last_hidden_state[:, 0]
            return unit(model.vision_model.post_layernorm(state) @ model.visual_projection.weight.T)

        return projected
    if kind == "siglip":
        eyes = transformers.SiglipModel.from_pretrained(folder).eval().vision_model
        return lambda pixels: unit(eyes(pixels).pooler_output)
    if kind == "dino":
        vit = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
        return lambda pixels: unit(vit(pixels).last_hidden_state[:, 0])
    name = {"dinov2": "Dinov2Model", "registers": "Dinov2WithRegistersModel"}[kind]
    whole = getattr(transformers, name).from_pretrained(folder).eval()

    def first(pixels: torch.Tensor) -> np.ndarray:
        state = whole.encoder(whole.embeddings(pixels))
        return unit(whole.layernorm(getattr(state, "last_hidden_state", state))[:, 0])

    return first


# Of each kind: the shorter side before the cut (None: stretched), mean and deviation, kernel.
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
PREPARED: dict[str, tuple[int | None, tuple[list[float], list[float]], Image.Resampling]] = {
    "clip": (32, OPENAI, BICUBIC),
    "siglip": (None, HALF, BILINEAR),
    "dinov2": (36, IMAGENET, BICUBIC),
    "registers": (36, IMAGENET, BICUBIC),
    "dino": (None, HALF, BILINEAR),
}


@pytest.mark.parametrize("kind", PREPARED)
def test_pictures_are_cut_scaled_and_coloured_as_the_folder_says(folders, kind) -> None:
    found = Agreement(folders[kind]).embed_images([picture(1), picture(2, 64, 40)])
    see, how = seen_by(kind, folders[kind]), PREPARED[kind]
    right = np.concatenate([see(prepared(image, *how)) for image in (picture(1), picture(2, 64, 40))])
    assert found.dtype == np.float32 and found.shape == right.shape
    np.testing.assert_allclose(found, right, atol=1e-5)
    assert float(found[0] @ found[1]) < 0.98, "the two pictures are told apart"
    swapped = np.ascontiguousarray(picture(1)[..., ::-1])
    other = None if how[0] else 32
    for wrong in (
        prepared(swapped, *how),
        prepared(picture(1), *how, scale=1),
        prepared(picture(1), *how, scale=127.5),
        prepared(picture(1), other, *how[1:]),
        prepared(picture(1), how[0], IMAGENET if how[1] is HALF else HALF, how[2]),
    ):
        assert float(found[0] @ see(wrong)[0]) < 0.999


def test_naflex_keeps_the_proportions_in_patches(folders) -> None:
    """Of 50 x 70 px and at most 20 patches of 8 px: 4 x 5 of them, each height by width by colour."""
    found = Agreement(folders["siglip2"]).embed_images([picture(1)])
    eyes = transformers.Siglip2Model.from_pretrained(folders["siglip2"]).eval().vision_model

    def see(image: np.ndarray, rows: int = 4, columns: int = 5) -> np.ndarray:
        scaled = np.asarray(Image.fromarray(image).resize((columns * 8, rows * 8), BILINEAR))
        values = (scaled / 255 - 0.5) / 0.5
        patches = values.reshape(rows, 8, columns, 8, 3).swapaxes(1, 2).reshape(1, rows * columns, 192)
        mask = torch.ones(1, rows * columns, dtype=torch.int32)
        return unit(eyes(torch.from_numpy(patches).float(), mask, torch.tensor([[rows, columns]])).pooler_output)

    np.testing.assert_allclose(found, see(picture(1)), atol=1e-5)
    assert float(found[0] @ see(picture(1), 4, 4)[0]) < 0.999
    assert float(found[0] @ see(np.ascontiguousarray(picture(1)[..., ::-1]))[0]) < 0.999


def test_clip_reads_text_to_its_end_mark_and_projects(folders) -> None:
    """Pooled where the highest id stands, as published: with eos_token_id 2."""
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    start, end = 52, 53

    def read(*words: str) -> np.ndarray:
        letters = [LETTERS.index(char) + (26 if last else 0) for word in words for char, last in spelled(word)]
        state = model.text_model(input_ids=torch.tensor([[start, *letters, end]])).last_hidden_state[:, -1]
        return unit(model.text_projection(state))

    given = Agreement(folders["clip"])
    found = given.embed_texts(["Two people", "a portrait of somebody"])
    np.testing.assert_allclose(found[:1], read("two", "people"), atol=1e-5)
    np.testing.assert_allclose(found[1:], read("a", "portrait", "of", "somebody"), atol=1e-5)
    assert float(found[0] @ found[1]) < 0.98
    assert given.longest == 77
    assert [given.is_cut("a " * count) for count in (75, 76)] == [False, True]
    np.testing.assert_allclose(given.embed_texts(["a " * 200]), read(*"a" * 75), atol=1e-5)


def spelled(word: str) -> list[tuple[str, bool]]:
    return [(char, rank == len(word) - 1) for rank, char in enumerate(word)]


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_reads_lower_case_padded_on_the_right_to_64(folders, kind) -> None:
    """The last position is read, and the padding is not masked: without it, or on the left, it is another vector."""
    name = {"siglip": "SiglipModel", "siglip2": "Siglip2Model"}[kind]
    model = getattr(transformers, name).from_pretrained(folders[kind]).eval()
    letters = [6 + LETTERS.index(char) if char != " " else 5 for char in "two people"]

    def read(ids: list[int]) -> np.ndarray:
        state = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[:, -1]
        return unit(model.text_model.head(state))

    given = Agreement(folders[kind])
    found = given.embed_texts(["TWO PEOPLE", "a portrait"])
    padding = [0] * (64 - len(letters) - 1)
    np.testing.assert_allclose(found[:1], read([*letters, 1, *padding]), atol=1e-5)
    upper = [token + 26 if token > 5 else token for token in letters]
    for wrong in ([*letters, 1], [*padding, *letters, 1], [*upper, 1, *padding]):
        assert float(found[0] @ read(wrong)[0]) < 0.999
    assert given.longest == 64
    assert [given.is_cut("a" * count) for count in (63, 64)] == [False, True]


def test_files_of_older_times_and_in_parts_are_read(folders, tmp_path) -> None:
    """pytorch_model.bin, weights alone; the places that older CLIPs keep; shards."""
    want = Agreement(folders["clip"]).embed_images([picture(1)])
    weights = load_file(folders["clip"] / "model.safetensors")
    old = shutil.copytree(folders["clip"], tmp_path / "old")
    (old / "model.safetensors").unlink()
    places = {f"{side}_model.embeddings.position_ids": torch.arange(9)[None] for side in ("text", "vision")}
    torch.save(weights | places, old / "pytorch_model.bin")
    parts = shutil.copytree(folders["clip"], tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    transformers.CLIPModel.from_pretrained(folders["clip"]).save_pretrained(parts, max_shard_size="40KB")
    assert len(Agreement(parts).files) > 2
    for folder in (old, parts):
        np.testing.assert_allclose(Agreement(folder).embed_images([picture(1)]), want, atol=1e-6)


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()

    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return work


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(), 2))


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def another_size(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    said["vision_config"]["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(said))


NORM = "vision_model.post_layernorm.weight"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without("config.json"), r"--agreement .*: no folder of transformers \(config\.json is not there\)"),
        (written("config.json", "{"), r"config\.json: not JSON"),
        (written("config.json", "[]"), r"config\.json: model_type None is not read; give a folder of clip, siglip"),
        (written("config.json", '{"model_type": "bert"}'), r"config\.json: model_type 'bert' is not read"),
        (written("config.json", '{"model_type": ["clip"]}'), r"config\.json: model_type \['clip'\] is not read"),
        (without("preprocessor_config.json"), r"preprocessor_config\.json is missing"),
        (written("preprocessor_config.json", "{"), r"preprocessor_config\.json: not JSON"),
        (written("preprocessor_config.json", "{}"), r"cannot be loaded"),
        (without("tokenizer_config.json"), r"tokenizer_config\.json is missing"),
        (written("tokenizer_config.json", "[]"), r"tokenizer_config\.json: says nothing of a tokenizer"),
        (without("tokenizer.json"), r"its tokenizer has \d words, its network 54"),
        (written("tokenizer.json", '{"version":'), r"cannot be loaded"),
        (written("tokenizer_config.json", '{"tokenizer_class": "SiglipTokenizer"}'), r"needs sentencepiece"),
        (without("model.safetensors"), r"model\.safetensors is missing"),
        (cut_short, r"cannot be loaded"),
        (pickled, r"cannot be loaded \(.*[Ww]eights.only"),
        (changed(lambda weights: weights.pop(NORM)), rf"1 weights are missing \({NORM}, "),
        (changed(lambda weights: weights.update(more=torch.ones(1))), r"1 weights are of another model \(more, "),
        (changed(lambda weights: weights[NORM].fill_(torch.inf)), rf"the weight {NORM} is not finite"),
        (another_size, r"cannot be loaded \(.*(size|shape)"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(folders, tmp_path, monkeypatch, capfd, spoil, reason) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    spoil(folder)
    with pytest.raises(BadInput, match=reason) as refused:
        Agreement(folder)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "harmed").exists()
    assert capfd.readouterr() == ("", "")


def test_code_in_a_folder_is_not_run(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    (folder / "own.py").write_text("import pathlib\npathlib.Path('harmed').touch()\nclass Own: ...\n")
    for name, part in (
        ("config", "Model"),
        ("preprocessor_config", "ImageProcessor"),
        ("tokenizer_config", "Tokenizer"),
    ):
        file = folder / f"{name}.json"
        own: Any = [None, "own.Own"] if part == "Tokenizer" else "own.Own"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {f"Auto{part}": own}}))
    found = Agreement(folder).embed_texts(["a"])
    np.testing.assert_array_equal(found, Agreement(folders["clip"]).embed_texts(["a"]))
    assert not (tmp_path / "harmed").exists()


def test_names_and_devices_that_cannot_be(folders, tmp_path) -> None:
    with pytest.raises(
        BadInput, match=r"openai/clip-vit-base-patch32: no folder of transformers .*; nothing is downlo"
    ):
        load(["openai/clip-vit-base-patch32"])
    shutil.copytree(folders["clip"], tmp_path / "clip")
    with pytest.raises(BadInput, match="two models are named 'clip'"):
        load([str(folders["clip"]), str(tmp_path / "clip")])
    with pytest.raises(BadInput, match="device cuda:99: not to be had here"):
        Agreement(folders["clip"], "cuda:99")


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[list[Case], Path]:
    """Three cases: two people of whom one has two photographs; no prompt; a reference that is no picture."""
    for seed, name in enumerate(("ann", "ann2", "bob", "one", "two", "three")):
        Image.fromarray(picture(seed)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((16, 2_000, 3), np.uint8)).save(tmp_path / "long.png")
    both = (("ann.png", "ann2.png"), ("bob.png",))
    cases = [
        Case("a", "Two people " * 40, both, ("one.png", "two.png", "text.png"), None, ("ann", "bob")),
        Case("b", " ", (("bob.png",),), ("three.png", "long.png"), None, None),
        Case("c", "a portrait", (("text.png",),), ("one.png",), None, None),
    ]
    return cases, tmp_path


def test_a_person_counts_once_and_what_cannot_be_used_is_said(folders, drawn, tmp_path) -> None:
    cases, root = drawn
    given = load([str(folders["clip"]), str(folders["dinov2"])])
    clip_found, dino_found = measure(cases, root, given, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/agreement.parquet").to_pylist()
    assert [row["model"] for row in rows] == ["clip"] * 6 + ["dinov2"] * 6
    first, second, gone, lone, narrow, bare = rows[:6]
    vectors = dict(
        zip(("ann", "ann2", "bob", "one", "two"), given[0].embed_images([picture(k) for k in range(5)]), strict=True)
    )
    prompt = given[0].embed_texts([cases[0].prompt])[0]
    for row, name in ((first, "one"), (second, "two")):
        ann = (vectors[name] @ vectors["ann"] + vectors[name] @ vectors["ann2"]) / 2
        assert row["image_cosine"] == pytest.approx((ann + vectors[name] @ vectors["bob"]) / 2, abs=1e-5)
        assert row["text_cosine"] == pytest.approx(vectors[name] @ prompt, abs=1e-5)
    assert gone["text_cosine"] is gone["image_cosine"] is None and gone["error"].startswith("not an image")
    assert lone["text_cosine"] is None and lone["image_cosine"] is not None and lone["error"] is None
    assert narrow["error"] == "2000x16 px is over 100 times as long as it is wide: crop it"
    assert bare["image_cosine"] is None and bare["text_cosine"] is not None and bare["error"] is None
    assert clip_found["image"]["n"] == clip_found["text"]["n"] == 2
    means = np.mean([first["image_cosine"], second["image_cosine"]]), lone["image_cosine"]
    assert clip_found["image"]["mean"] == pytest.approx(np.mean(means), abs=1e-6), "a case counts once"
    assert clip_found["by_n"]["2"]["image"]["mean"] == pytest.approx(means[0], abs=1e-6)
    assert clip_found["cut"] == 1
    said = {(one["case_id"], one["path"], one["error"][:12]) for one in clip_found["skipped"]}
    assert said == {("a", "text.png", "not an image"), ("b", "long.png", "2000x16 px i"), ("b", None, "no prompt")} | {
        ("c", "text.png", "not an image")
    }
    assert dino_found["text"] is None and dino_found["cut"] == 0 and dino_found["image"]["n"] == 2
    assert {row["text_cosine"] for row in rows[6:]} == {None}
    assert (clip_found["vector"], dino_found["vector"]) == ("projected", "CLS")
    assert set(clip_found["files"]) == {"model.safetensors", "preprocessor_config.json"}


def test_a_picture_is_looked_at_once_and_a_killed_run_goes_on(folders, drawn, tmp_path, monkeypatch) -> None:
    cases, root = drawn
    monkeypatch.setattr(agreement, "PICTURES_AT_ONCE", 2)
    given = Agreement(folders["dinov2"])
    looked: list[int] = []
    honest = given.embed_images

    def embed(images: list[np.ndarray]) -> np.ndarray:
        looked.append(len(images))
        if len(looked) == 2:
            raise KeyboardInterrupt
        return honest(images)

    monkeypatch.setattr(given, "embed_images", embed)
    with pytest.raises(KeyboardInterrupt):
        measure(cases, root, [given], tmp_path / "out")
    found = measure(cases, root, [given], tmp_path / "out")
    assert sum(looked) == 6 + looked[1], "six pictures, of which the second part had to be looked at again"
    monkeypatch.undo()
    assert found == measure(cases, root, [Agreement(folders["dinov2"])], tmp_path / "anew")


def test_from_the_command_line(folders, drawn, tmp_path, umo, named_bands, bands) -> None:
    """One judge and two models: what a judge writes is as without, and the new key stands beside it."""
    for name, colour in {"red": (255, 0, 0), "drawn": (250, 10, 0)}.items():
        Image.fromarray(bands(colour)).save(tmp_path / f"{name}.png")
    case = {"case_id": "a", "prompt": "a portrait", "references": ["red.png"], "images": ["drawn.png"]}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case))
    common = ("evaluate", str(tmp_path / "cases.jsonl"), "--judge", "bands", "--workers", "1", "--out")
    code, _, err = umo(*common, str(tmp_path / "none"), "--agreement", str(tmp_path / "nowhere"))
    assert code == 2 and err.count("\n") == 1 and "nowhere: no folder of transformers" in err
    assert not (tmp_path / "none").exists()
    both = f"{folders['clip']},{folders['dinov2']}"
    code, out, err = umo(*common, str(tmp_path / "with"), "--agreement", both)
    assert code == 0, err
    assert "agreement by clip (clip)" in out and "with the references" in out
    assert "dinov2: reads no text, so its agreement with the prompts is left out" in err
    said = json.loads((tmp_path / "with/metrics.json").read_text())
    found = {one["name"]: one for one in said.pop("agreement_models")}
    network = Agreement(folders["clip"])
    one, other = network.embed_images([bands((255, 0, 0)), bands((250, 10, 0))])
    assert found["clip"]["image"]["mean"] == pytest.approx(one @ other, abs=1e-5)
    assert found["clip"]["text"]["mean"] == pytest.approx(network.embed_texts(["a portrait"])[0] @ other, abs=1e-5)
    assert not (tmp_path / "with/.partial").exists()
    assert umo(*common, str(tmp_path / "without"))[0] == 0
    assert said == json.loads((tmp_path / "without/metrics.json").read_text())
    assert umo(*common, str(tmp_path / "with"))[0] == 0
    assert not (tmp_path / "with/agreement.parquet").exists(), "what is no longer asked for does not stay"
