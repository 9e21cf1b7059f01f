"""Long videos: a real one made of real photographs, and everything that is wrong with strangers' files."""

import gc
import random
import weakref
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipelines.ingest import readers
from pipelines.ingest.readers import film as films
from pipelines.ingest.readers import video
from pipelines.ingest.readers.base import Container, Limits
from pipelines.ingest.readers.video import Candidate, Shot, Video
from umo.images import read_image
from umo.quality import sharpness

FPS = 25
SIZE = (480, 360)  # width, height
# Seconds of each shot; the fourth is shorter than min_shot_seconds. In one second of each shot the camera is in focus.
SHOTS = (2.4, 3.2, 2.0, 0.4, 2.8)
FOCUS = (0.8, 1.2, 0.4, 0.0, 1.6)
LIMITS = Limits(200_000_000, 1000, 100_000_000, 1024)
FRAMES = Video(
    sample_fps=5, frames_per_shot=2, min_spacing=0.4, min_shot_seconds=1, min_cut_ratio=3, min_cut_difference=15
)
TERMS = {"licence": "CC0", "consent": "given"}


@pytest.fixture(scope="session")
def stills(orl, group_photo) -> list[np.ndarray]:
    """A photograph a shot, larger than the frame: two people, each before two walls, and a group of six."""

    def before(wall: tuple[int, int, int], person: int, k: int) -> np.ndarray:
        scene = np.full((420, 560, 3), wall, np.uint8)
        photo = cv2.resize(orl(person, k), (330, 400))
        scene[10:410, 110:440] = photo
        return scene

    return [
        before((150, 60, 40), 1, 1),
        cv2.resize(group_photo, (560, 420), interpolation=cv2.INTER_AREA),
        before((30, 90, 160), 2, 1),
        before((200, 200, 40), 5, 1),
        before((60, 140, 60), 1, 5),
    ]


@pytest.fixture(scope="session")
def film(stills) -> list[np.ndarray]:
    """(360, 480, 3) uint8 a frame: the camera moves in every shot, and is out of focus most of the time."""
    frames = []
    for still, seconds, focus in zip(stills, SHOTS, FOCUS, strict=True):
        for k in range(round(seconds * FPS)):
            x, y = 20 + k // 2, 10 + k // 4
            frame = still[y : y + SIZE[1], x : x + SIZE[0]]
            in_focus = focus <= k / FPS < focus + 1
            frames.append(frame.copy() if in_focus else cv2.GaussianBlur(frame, (0, 0), 3))
    return frames


def write_video(path: Path, frames: list[np.ndarray], rotation: int = 0, **options: str) -> Path:
    """H.264, the most common codec."""
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "18", "threads": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def mp4(film, tmp_path_factory) -> Path:
    """The film; its index comes first, so that what is left of a cut file can be read."""
    return write_video(tmp_path_factory.mktemp("film") / "evening.mp4", film, movflags="faststart")


@pytest.fixture
def videos(ingested, mp4) -> Path:
    """A folder with the film."""
    folder = ingested.folder / "videos"
    folder.mkdir()
    (folder / "evening.mp4").write_bytes(mp4.read_bytes())
    return folder


def source(path: str = "videos", **more: object) -> dict:
    return {"series": {"path": path, "kind": "video", **TERMS, **more}}


def mine(ingested, sources: dict) -> list[dict]:
    """Rows in the order of time."""
    return sorted(ingested(sources, video=FRAMES.model_dump()), key=lambda row: (row["group"], row["time"] or 0))


def members(path: Path, params: Video = FRAMES, limits: Limits = LIMITS) -> list[readers.Member]:
    return list(video.read(Container("video", "series", path.name, path, "ab" * 32), limits, params))


def test_shots_frames_and_people_of_a_real_video(ingested, videos, film, orl, group_photo, opencv_zoo):
    rows = mine(ingested, source())
    assert {row["status"] for row in rows} == {"ok"}
    starts = np.cumsum([0, *SHOTS])
    seen: dict[int, list[float]] = {}
    for row in rows:
        shot = int(np.searchsorted(starts, row["time"] + 1e-6, side="right")) - 1
        seen.setdefault(shot, []).append(row["time"] - starts[shot])
        assert row["clip"] == f"evening.mp4#{shot:04d}"
        assert row["group"] == "series/evening.mp4"
        assert row["path"] == f"evening.mp4#t={row['time']:.3f}"
        original = film[round(row["time"] * FPS)].astype(float)
        assert np.abs(ingested.picture(row) - original).mean() < 4, "another frame than its time says"
    assert set(seen) == {0, 1, 2, 4}, "shots found are shots made, but for the one that is too short"
    for shot, times in seen.items():
        assert len(times) == 2
        assert times[1] - times[0] >= FRAMES.min_spacing
        assert all(FOCUS[shot] <= time < FOCUS[shot] + 1 for time in times), "a frame that is out of focus"
    people = {person: embedding(opencv_zoo, orl(person, 2))[0] for person in (1, 2, 5, 9)}
    for shot, person in {0: 1, 2: 2, 4: 1}.items():
        row = next(row for row in rows if row["clip"].endswith(f"{shot:04d}"))
        cosines = {one: float(embedding(opencv_zoo, ingested.picture(row))[0] @ people[one]) for one in people}
        assert max(cosines, key=cosines.__getitem__) == person
        assert cosines[person] >= opencv_zoo.same_person_cosine
    group = next(row for row in rows if row["clip"].endswith("0001"))
    assert len(embedding(opencv_zoo, ingested.picture(group))) >= 4


def embedding(model, picture: np.ndarray) -> np.ndarray:
    """A row a face."""
    return model.embed([picture], model.detect([picture]))


def test_the_choice_of_frames_is_the_greedy_one_over_the_whole_shot():
    """Against a list of everything, though only a few frames are kept on the way."""
    rng = random.Random(7)
    for _ in range(200):
        params = FRAMES.model_copy(update={"frames_per_shot": rng.randint(1, 4), "min_spacing": 1.0})
        start = rng.uniform(0, 9)
        times = sorted(start + rng.uniform(0, 20) for _ in range(rng.randint(1, 60)))
        every = [Candidate(k, time, k, rng.random(), np.zeros(0)) for k, time in enumerate(times)]
        shot = Shot(0, start, params)
        for one in every:
            shot.offer(one)
            assert len(shot._best) <= 3 * params.frames_per_shot - 2
        slots: dict[int, Candidate] = {}
        for one in sorted(every, key=lambda one: one.sharpness):
            slots[int(one.time - start)] = one
        chosen: list[Candidate] = []
        for one in sorted(slots.values(), key=lambda one: -one.sharpness):
            if len(chosen) < params.frames_per_shot and all(abs(one.time - other.time) >= 1 for other in chosen):
                chosen.append(one)
        assert shot.frames() == sorted(chosen, key=lambda one: one.time)


def test_few_frames_are_held_at_a_time(mp4, monkeypatch):
    """Of a shot of hours as of one of seconds: every frame is a candidate here."""
    alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    counts = []
    real = films.Film.picture

    def picture(self, frame):
        found = real(self, frame)
        alive[len(counts)] = found
        gc.collect(0)
        counts.append(len(alive))
        return found

    monkeypatch.setattr(films.Film, "picture", picture)
    members(mp4, FRAMES.model_copy(update={"sample_fps": 25.0, "min_cut_difference": 255.0}))
    assert len(counts) == round(sum(SHOTS) * FPS)
    # Chosen so far, the best of the present slot, those that wait for a cut, the new one.
    assert max(counts) <= 4 + 1 + 3 + 1


def test_the_same_video_gives_the_same_ids_and_bytes(mp4, tmp_path):
    copy = tmp_path / "elsewhere.mp4"
    copy.write_bytes(mp4.read_bytes())
    first, second = members(mp4), members(copy)
    assert [(one.image_id, one.data, one.time) for one in first] == [(o.image_id, o.data, o.time) for o in second]
    assert len({one.image_id[:16] for one in first}) == len(first), "face ids are made of the first half"


def test_a_video_that_is_there_twice_is_decoded_once(ingested, videos):
    (videos / "again.mp4").write_bytes((videos / "evening.mp4").read_bytes())
    rows = mine(ingested, source())
    copies = [row for row in rows if row["status"] == "duplicate"]
    assert [row["path"] for row in copies] == ["evening.mp4"]
    assert "series/again.mp4" in copies[0]["error"]
    assert {row["group"] for row in rows if row["status"] == "ok"} == {"series/again.mp4"}


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_video_is_turned_upright(turn, stills, tmp_path):
    """The camera lay on its side: the file says by how much to turn what it holds."""
    upright = stills[0][:360, :480]
    lying = np.rot90(upright, -turn // 90)
    path = write_video(tmp_path / "turned.mp4", [lying] * 30, rotation=turn)
    with av.open(str(path)) as file:
        assert abs(next(file.decode(video=0)).rotation) == abs(turn)
    picture = cv2.imdecode(np.frombuffer(members(path)[0].data, np.uint8), 1)[..., ::-1]
    assert picture.shape == upright.shape
    assert np.abs(picture.astype(float) - upright).mean() < 4


def test_frames_are_scaled_down_to_max_side(mp4):
    found = members(mp4, limits=LIMITS._replace(max_side=240))
    assert read_image(found[0].data).shape == (180, 240, 3)


def test_how_videos_are_read_redoes_no_photograph(ingested, videos):
    (ingested.folder / "photos").mkdir()
    cv2.imwrite(str(ingested.folder / "photos/a.png"), np.full((64, 64, 3), 80, np.uint8))
    sources = source() | {"album": {"path": "photos", **TERMS}}
    mine(ingested, sources)
    before = ingested.work()
    ingested(sources, video=FRAMES.model_dump() | {"frames_per_shot": 1})
    assert len(ingested.work() - before) == 1


def test_a_truncated_video_keeps_what_could_be_read(ingested, videos):
    data = (videos / "evening.mp4").read_bytes()
    whole = mine(ingested, source())
    (videos / "evening.mp4").write_bytes(data[: len(data) * 6 // 10])
    rows = mine(ingested, source())
    errors = [row for row in rows if row["status"] == "error"]
    assert [row["path"] for row in errors] == ["evening.mp4"]
    assert "cut short: it ends after" in errors[0]["error"]
    assert "of 10.8 s: copy it again from its origin" in errors[0]["error"]
    kept = [row for row in rows if row["status"] == "ok"]
    assert kept
    assert {row["path"] for row in kept if row["clip"].endswith("0000")} == {
        row["path"] for row in whole if row["clip"].endswith("0000")
    }


@pytest.mark.parametrize("place", [0.3, 0.6])
def test_damage_in_the_middle_costs_its_frames_alone(place, mp4, film, tmp_path):
    data = bytearray(mp4.read_bytes())
    for k in range(round(len(data) * place), round(len(data) * (place + 0.03))):
        data[k] ^= 0x5A
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    found = members(damaged)
    assert "packets are damaged" in found[-1].error
    assert len(found) > 4
    for one in found[:-1]:
        picture = cv2.imdecode(np.frombuffer(one.data, np.uint8), 1)[..., ::-1].astype(float)
        assert np.abs(picture - film[round(one.time * FPS)]).mean() < 4, "a smeared frame"


def junk(path: Path, mp4: Path) -> None:
    path.write_bytes(b"no video at all" * 100)


def empty(path: Path, mp4: Path) -> None:
    path.write_bytes(b"")


def without_index(path: Path, mp4: Path) -> None:
    path.write_bytes(mp4.read_bytes()[:300])


def playlist(path: Path, mp4: Path) -> None:
    """A text that, taken for a video, would open another file of this machine."""
    (path.parent / "private.mov").write_bytes(mp4.read_bytes())
    path.write_text("ffconcat version 1.0\nfile private.mov\n")


def sound_alone(path: Path, mp4: Path) -> None:
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        file.mux(stream.encode(sound))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (junk, "not readable as a video"),
        (empty, "not readable as a video"),
        (without_index, "not readable as a video|no frame could be decoded"),
        (playlist, "not readable as a video"),
        (sound_alone, "no picture stream"),
    ],
)
def test_what_is_no_video_is_one_row_and_the_rest_goes_on(make, reason, ingested, videos, mp4):
    make(videos / "bad.mkv", mp4)
    rows = mine(ingested, source(include="*.m[pk]*"))
    bad = [row for row in rows if row["path"].startswith("bad.mkv")]
    assert [(row["path"], row["status"], row["key"]) for row in bad] == [("bad.mkv", "error", None)]
    assert any(part in bad[0]["error"] for part in reason.split("|"))
    assert sum(row["status"] == "ok" for row in rows) == 8


def test_a_video_larger_than_the_limit_is_refused(mp4):
    found = members(mp4, limits=LIMITS._replace(max_pixels=100_000))
    assert [one.path for one in found] == ["evening.mp4"]
    assert "480x360 px is over the limit of 100000" in found[0].error


def test_a_forgotten_frame_does_not_come_back(ingested, videos):
    rows = mine(ingested, source())
    before = ingested.work()
    (ingested.folder / "datasets/tombstones.csv").write_text(
        f"image_id,phash,embedder,embedding\n{rows[0]['image_id']},,,\n"
    )
    again = {row["image_id"]: row for row in mine(ingested, source())}
    assert again[rows[0]["image_id"]]["status"] == "error"
    assert again[rows[0]["image_id"]]["error"].startswith("forgotten: ")
    assert all(again[row["image_id"]] | {"offset": row["offset"]} == row for row in rows[1:])
    assert len(ingested.work() - before) == 1


def test_sharpness_orders_focus(film):
    """What the tests above rest on."""
    assert min(sharpness(film[k]) for k in range(20, 45)) > 2 * max(sharpness(film[k]) for k in range(20))
