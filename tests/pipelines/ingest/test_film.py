"""Which stream is the film, when its frames are shown, and what colours a viewer sees."""

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from pipelines.ingest.readers import colour, video
from pipelines.ingest.readers.base import Container, Limits, Member, Video
from pipelines.ingest.readers.film import Clock, Film
from umo.images import read_image

FPS = 10
SECONDS = 1.6  # a shot
WALLS = ((150, 60, 40), (40, 90, 160), (200, 200, 40), (60, 140, 60))
LIMITS = Limits(200_000_000, 1000, 100_000_000, 1024)
FRAMES = Video(
    sample_fps=5, frames_per_shot=2, min_spacing=0.4, min_shot_seconds=1, min_cut_ratio=3, min_cut_difference=15
)


@pytest.fixture(scope="module")
def shot(orl) -> Callable[[int], list[np.ndarray]]:
    """shot(n) -> frames (208, 240, 3) uint8 of person n + 1 before a wall of their own; the camera moves."""

    def frames(n: int) -> list[np.ndarray]:
        still = np.full((208, 240, 3), WALLS[n], np.uint8)
        still[20:204, 50:200] = np.asarray(Image.fromarray(orl(n + 1, 1)).resize((150, 184)))
        return [np.roll(still, k, axis=1) for k in range(round(SECONDS * FPS))]

    return frames


def write(
    path: Path,
    *films: list[np.ndarray],
    codec: str = "libx264",
    form: str | None = None,
    sound: float = 0,
    first: int = 0,
    numbers: dict[str, str] | None = None,
    dispositions: tuple[Disposition, ...] = (),
    pix_fmt: str = "yuv420p",
    matrix: tuple[int, ...] | None = None,
    **options: str,
) -> Path:
    """Each film is a stream; one of a single frame is a JPEG, as thumbnails are."""
    with av.open(str(path), "w", format=form, options=numbers or {}) as file:
        streams = []
        for n, frames in enumerate(films):
            still = len(frames) == 1
            stream = file.add_stream("mjpeg" if still else codec, rate=FPS, options={} if still else options)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if still else pix_fmt
            if dispositions:
                stream.disposition = dispositions[n]
            if matrix:
                stream.set_display_matrix(matrix)
            streams.append(stream)
        if sound:
            tone = file.add_stream("libopus" if form == "webm" else "aac", rate=48_000, layout="mono")
        for stream, frames in zip(streams, films, strict=True):
            for k, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
                frame.pts = first + k
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        if sound:
            noise = np.random.default_rng(0).normal(0, 300, (1, round(sound * 48_000))).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.rate = 48_000
            file.mux(tone.encode(frame))
            file.mux(tone.encode(None))
    return path


def members(path: Path) -> list[Member]:
    return list(video.read(Container("video", "series", path.name, path, "ab" * 32), LIMITS, FRAMES))


def error(path: Path, *images: np.ndarray) -> float:
    """The largest mean difference between what was taken and the picture that was filmed."""
    return max(np.abs(read_image(one.data).astype(float) - images[0]).mean() for one in members(path))


def shows(found: list[Member], film: list[np.ndarray]) -> bool:
    """Whether each is the film's frame at its time, and no two have the same id, or time."""
    times = [one.time for one in found]
    pictures = [np.abs(read_image(one.data).astype(float) - film[round(one.time * FPS)]).mean() for one in found]
    return max(pictures) < 5 and times == sorted(set(times)) and len({one.image_id for one in found}) == len(found)


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        ("mpegts", "libx264", {"preset": "veryfast"}),  # with frames that are shown before others
        ("mpegts", "mpeg2video", {"sound": 1.6, "b": "4000000"}),
        ("mpeg", "mpeg2video", {"b": "4000000"}),
        ("matroska", "libx264", {"preset": "ultrafast"}),
        ("avi", "mpeg4", {"b": "4000000"}),
    ],
)
def test_joined_recordings_show_all_their_shots(form, codec, options, shot, tmp_path):
    """As recorders join parts: the timestamps begin anew."""
    parts = [[*shot(0), *shot(1)], [*shot(2), *shot(3)]]
    files = [write(tmp_path / f"{n}.part", part, codec=codec, form=form, **options) for n, part in enumerate(parts)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    found = members(joined)
    assert [one.error for one in found] == [None] * 8
    assert [one.clip[-4:] for one in found] == ["0000"] * 2 + ["0001"] * 2 + ["0002"] * 2 + ["0003"] * 2
    assert shows(found, parts[0] + parts[1])
    alone = members(files[0])
    assert [(one.image_id, one.data, one.time) for one in found[:3]] == [
        (one.image_id, one.data, one.time) for one in alone[:3]
    ], "what is before the joint is as it was"


@pytest.mark.parametrize("form", ["mp4", "flv", "asf"])
def test_a_second_video_in_the_same_file_is_told(form, shot, tmp_path):
    """Of these forms the library reads the first alone."""
    codec = "wmv2" if form == "asf" else "libx264"
    part = write(tmp_path / "part", shot(0), codec=codec, form=form)
    (tmp_path / "joined").write_bytes(part.read_bytes() * 2)
    assert all(one.error is None for one in members(part))
    assert members(tmp_path / "joined")[-1].error.startswith("another video follows in the same file and was not read")


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ({"mpegts_start_pid": "512"}, "it holds 2 films, and only stream 0 was read: make each a file of its own"),
        (
            {"mpegts_start_pid": "512", "mpegts_pmt_start_pid": "5000"},
            "a stream that begins in the middle was not read: if it is a film, make it a file of its own",
        ),
    ],
)
def test_a_film_that_goes_on_under_other_numbers_is_told(numbers, fault, shot, tmp_path):
    """As where two transmitters' recordings are joined."""
    path = write(tmp_path / "a.ts", [*shot(0), *shot(1)], form="mpegts")
    whole = members(path)
    other = write(tmp_path / "b.ts", shot(2), form="mpegts", numbers=numbers)
    path.write_bytes(path.read_bytes() + other.read_bytes())
    *found, told = members(path)
    assert found == whole
    assert told.error == fault


SECOND = 1000  # ticks


@pytest.mark.parametrize(
    ("stamps", "ticks"),
    [
        ([40, 140, 240], [40, 140, 240]),
        ([None, None, None], [40, 140, 240]),
        ([5000, 5100, 40, 140, 240], [5000, 5100, 5200, 5300, 5400]),  # begins anew
        ([5000, None, 5200, 40, None, 240], [5000, 5100, 5200, 5300, 5400, 5500]),
        ([0, 100, 100, 200], [0, 100, 101, 200]),  # a copy
        ([0, 300, 200, 100, 400], [0, 300, 301, 302, 400]),  # in the order of decoding
        ([7] * 20, [*range(7, 24), 123, 223, 323]),  # they stand still
        ([0, 100, 9000, 9100], [0, 100, 9000, 9100]),  # the camera was off
    ],
)
def test_timestamps_ascend(stamps, ticks):
    clock = Clock(40, Fraction(1, SECOND), 0.1)
    assert [clock.tick(stamp) for stamp in stamps] == ticks


def test_no_frame_is_lost_where_the_file_numbers_them_as_they_were_coded(shot, tmp_path):
    """AVI has one number a packet, and H.264 shows them in another order."""
    frames = [*shot(0), *shot(1)]
    path = write(tmp_path / "a.avi", frames, preset="veryfast", bf="3")
    times = [time for time, _ in Film(path, LIMITS).frames()]
    assert len(times) == len(frames)
    assert times == sorted(set(times))


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def add_cover(path: Path, cover: bytes) -> None:
    """As taggers do: the cover stands before the film, which stays where it is, for the index comes after it."""
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    length = struct.unpack(">I", data[at : at + 4])[0]
    head = 8 + struct.unpack(">I", data[at + 8 : at + 12])[0]  # of the index: its own box, and the first in it
    art = box(b"covr", box(b"data", struct.pack(">II", 13, 0) + cover))
    hdlr = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tags = box(b"udta", box(b"meta", bytes(4) + hdlr + box(b"ilst", art)))
    moov = box(b"moov", data[at + 8 : at + head] + tags + data[at + head : at + length])
    path.write_bytes(data[:at] + moov + data[at + length :])


def test_cover_art_is_not_the_film(shot, tmp_path):
    path = write(tmp_path / "a.mp4", shot(0))
    plain = members(path)
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), "navy").save(buffer, "JPEG")
    add_cover(path, buffer.getvalue())
    with av.open(str(path)) as file:
        assert file.streams.video[0].disposition == Disposition.attached_pic
    assert members(path) == plain


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_a_thumbnail_is_not_the_film(form, shot, tmp_path):
    """Though it is the first, and the one to be shown."""
    film = shot(1)
    dispositions = Disposition.default, Disposition(0)
    found = members(write(tmp_path / "a.film", [shot(0)[0]], film, form=form, dispositions=dispositions))
    assert [one.error for one in found] == [None, None]
    assert shows(found, film)


def test_sound_with_a_cover_is_no_film(shot, tmp_path):
    path = write(tmp_path / "a.mp4", [shot(0)[0]], sound=2, dispositions=(Disposition.attached_pic,))
    assert [one.error for one in members(path)] == [
        "no film in it, only a still, as cover art is: take it out of the source"
    ]


def test_of_several_films_the_one_that_players_show_is_read_and_the_others_are_told(shot, tmp_path):
    dispositions = Disposition(0), Disposition.default
    found = members(write(tmp_path / "a.mkv", shot(0), shot(1), dispositions=dispositions))
    assert found[-1].error == "it holds 2 films, and only stream 1 was read: make each a file of its own"
    assert shows(found[:-1], shot(1))


@pytest.mark.parametrize(("form", "codec"), [("matroska", "libx264"), ("webm", "libvpx"), ("flv", "libx264")])
def test_sound_that_is_longer_than_the_picture_is_no_damage(form, codec, shot, tmp_path):
    fast = {"deadline": "realtime", "cpu-used": "8", "b": "1000000"} if codec == "libvpx" else {"preset": "ultrafast"}
    whole = write(tmp_path / "whole", shot(0), codec=codec, form=form, sound=3.2, **fast)
    found = members(whole)
    assert [one.error for one in found] == [None, None]
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: len(data) // 2])
    assert "cut short: it ends after" in members(cut)[-1].error


def test_a_picture_that_begins_after_the_sound_is_no_damage(shot, tmp_path):
    path = write(tmp_path / "a.mkv", shot(0), sound=2, first=30)
    assert [(one.error, round(one.time, 2) < SECONDS) for one in members(path)] == [(None, True)] * 2


def test_a_film_that_begins_late_by_its_own_clock_is_no_damage(shot, tmp_path):
    whole = write(tmp_path / "whole.mkv", shot(0), codec="mjpeg", pix_fmt="yuvj420p", first=700)
    assert [(one.error, one.time < SECONDS) for one in members(whole)] == [(None, True)] * 2
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 3])
    assert "cut short: it ends after" in members(whole)[-1].error


@pytest.mark.parametrize("hole", [40_000, 2 << 20])
@pytest.mark.parametrize("is_hole", [False, True])
def test_what_was_never_written_of_a_stream_is_told_and_the_rest_read(is_hole, hole, shot, tmp_path):
    first, second = (write(tmp_path / f"{n}.ts", shot(n)).read_bytes() for n in range(2))
    path = tmp_path / "a.ts"
    path.write_bytes(first + bytes(hole) + (second if is_hole else b""))
    *taken, fault = members(path)
    assert len(taken) == (4 if is_hole else 2)
    assert shows(taken, [*shot(0), *shot(1)])
    lost, _, said = fault.error.partition(" ")
    assert said == "bytes of it hold no film: copy it again from its origin"
    assert 0 <= int(lost) - hole < len(first)


def test_a_film_without_a_shot_that_is_long_enough_says_so(shot, tmp_path):
    (found,) = members(write(tmp_path / "a.mp4", shot(0)[:5]))
    assert found.error == "no shot in it lasts 1 s: take it out of the source, or lower ingest.video.min_shot_seconds"


def test_a_last_picture_that_stands_for_long_is_no_damage(shot, tmp_path):
    path = tmp_path / "slides.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.height, stream.width = shot(0)[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        packets = []
        for k in range(2):
            frame = av.VideoFrame.from_ndarray(shot(k)[0])
            frame.pts = 15 * k
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            packet.duration = 300 if packet.pts else 15
        file.mux(packets)
    assert [one.error for one in members(path)] == [None, None]


@pytest.mark.parametrize(("form", "codec"), [("mp4", "libx264"), ("mpeg", "mpeg2video")])
def test_fields_of_two_moments_become_one_picture(form, codec, shot, tmp_path, opencv_zoo):
    still = shot(0)[0]
    moments = [np.roll(still, 6 * k, axis=1) for k in range(2 * round(SECONDS * FPS))]
    woven = [first.copy() for first in moments[::2]]
    for frame, second in zip(woven, moments[1::2], strict=True):
        frame[1::2] = second[1::2]
    path = write(tmp_path / "a", woven, codec=codec, form=form, flags="+ildct+ilme", b="4000000")
    pictures = [read_image(one.data) for one in members(path)]
    assert len(pictures) == 2
    for one in members(path):
        picture = read_image(one.data).astype(float)
        k = round(one.time * FPS)
        apart = [np.abs(picture - moment).mean() for moment in moments[2 * k : 2 * k + 2]]
        assert min(apart) < 4 < np.abs(woven[k].astype(float) - moments[2 * k]).mean(), "the fields are still woven"
    assert all(len(faces) == 1 for faces in opencv_zoo.detect(pictures))


@pytest.mark.parametrize(
    ("a", "b", "c", "d"),
    [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)],
)
@pytest.mark.parametrize("flags", ["+cgop", "+cgop+ildct+ilme"])
def test_a_display_matrix_turns_and_mirrors_once(a, b, c, d, flags, shot, tmp_path):
    """A pixel at x, y is shown at ax + cy, bx + dy (ISO/IEC 14496-12), moved back into the picture."""
    still = shot(2)[0]
    height, width = still.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    shown = np.zeros((np.ptp(to_y) + 1, np.ptp(to_x) + 1, 3))
    shown[to_y - to_y.min(), to_x - to_x.min()] = still
    one = 1 << 16
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path = write(tmp_path / "a.mp4", [still] * 12, matrix=matrix, flags=flags, preset="ultrafast")
    assert error(path, shown) < 5


SRGB, BT2020_10, PQ, HLG = 13, 14, 16, 18
# From BT.709's linear RGB: ITU-R BT.2087; Display P3's as in CSS Color 4.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])
PATCHES = [(0, 0, 0), (20, 20, 20), (128, 128, 128), (224, 172, 105), (141, 85, 36), (60, 30, 20), *WALLS]


def linear(codes: np.ndarray) -> np.ndarray:
    return np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)


def as_srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def as_pq(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, table 4, of white at 203 cd/m2."""
    y = (light * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def as_hlg(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, table 5, on a screen of 1000 cd/m2."""
    screen = light * 203 / 1000
    luminance = np.maximum(screen @ [0.2627, 0.6780, 0.0593], 1e-9)[..., None]
    scene = screen * luminance ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
    )


def write_wide(path: Path, codes: np.ndarray, pix_fmt: str, transfer: int, primaries: int, matrix: int) -> Path:
    """Codes (H, W, 3) from 0 to 1, a second of them, without loss."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=FPS)
        stream.height, stream.width = codes.shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, primaries, matrix
        context.color_range = ColorRange.MPEG
        frame = av.VideoFrame.from_ndarray((codes * 65535).round().astype(np.uint16), "rgb48le").reformat(
            format=pix_fmt,
            dst_colorspace=Colorspace.ITU709 if matrix == 1 else Colorspace.BT2020,
            dst_color_range=ColorRange.MPEG,
        )
        frame.color_trc, frame.color_primaries, frame.colorspace = transfer, primaries, matrix
        for k in range(FPS):
            frame.pts = k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("encode", "to", "pix_fmt", "transfer", "primaries", "matrix"),
    [
        (as_pq, TO_BT2020, "yuv420p10le", PQ, 9, 9),
        (as_pq, TO_BT2020, "yuv444p12le", PQ, 2, 2),  # HDR says of itself that it is BT.2020
        (as_hlg, TO_BT2020, "yuv420p10le", HLG, 9, 9),
        (as_srgb, TO_BT2020, "yuv420p10le", BT2020_10, 9, 9),
        (as_srgb, TO_P3, "yuv444p10le", SRGB, 12, 1),
        (as_srgb, TO_P3, "yuv420p10le", 1, 11, 1),
        (as_srgb, np.eye(3), "yuv420p10le", 1, 1, 1),
        (as_srgb, np.eye(3), "yuv444p12le", 1, 1, 1),
    ],
)
def test_colours_are_those_of_the_same_film_in_srgb(encode, to, pix_fmt, transfer, primaries, matrix, tmp_path):
    patches = np.array(PATCHES, np.uint8)
    picture = np.kron(patches[None], np.ones((32, 32, 1), np.uint8))
    codes = np.clip(encode(linear(picture / 255) @ to.T), 0, 1)
    found = members(write_wide(tmp_path / "a.mkv", codes, pix_fmt, transfer, primaries, matrix))
    seen = read_image(found[0].data)[16, 16::32].astype(int)
    assert np.abs(seen - patches).max() <= 3


def test_highlights_of_hdr_keep_their_order_and_hue():
    nits = np.array([100.0, 203, 400, 1000, 10_000])
    grey = np.round(65535 * as_pq(nits / 203)).astype(np.uint16)
    levels = colour.to_srgb(np.repeat(grey[None, :, None], 3, axis=2), PQ, 9)[0]
    assert (np.ptp(levels, axis=1) == 0).all()
    assert levels[0, 0] == round(255 * float(as_srgb(np.array(100 / 203))))
    assert levels[1, 0] in range(247, 252)
    assert (np.diff(levels[:, 0].astype(int)) > 0)[:3].all()
    skin = linear(np.array([224, 172, 105]) / 255)
    bright = np.round(65535 * as_pq(4 * skin @ TO_BT2020.T)).astype(np.uint16)
    light = linear(colour.to_srgb(bright[None, None], PQ, 9)[0, 0] / 255)
    assert light / light.max() == pytest.approx(skin / skin.max(), abs=0.02)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "JPEG", "PNG"])
def test_a_picture_under_a_films_name_is_told(form, shot, tmp_path):
    path = tmp_path / "a.mp4"
    more = {"save_all": True, "append_images": [Image.fromarray(shot(1)[0])]} if form in ("GIF", "WEBP") else {}
    Image.fromarray(shot(0)[0]).save(path, form, **more)
    assert [one.path for one in members(path)] == ["a.mp4"]
    fault = members(path)[0].error
    assert "only MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV and Ogg are read" in fault
    assert "copy it again" not in fault
