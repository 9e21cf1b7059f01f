"""Every record that passes between stages: its schema, its version, and how it is read and written.

A product is a Parquet file of one of these schemas. `write` refuses a table that does not fit its schema and `read`
refuses a file of another schema or version, so that two stages can never disagree in silence.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from umo.errors import BadInput
from umo.files import replacing

VERSION = "4"

_box = pa.list_(pa.float32(), 4)
_landmarks = pa.list_(pa.float32(), 10)


def _record(name: str, *columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(columns, metadata={"record": name})


IMAGES = _record(
    "images",
    # sha256 of the encoded picture's bytes, in a file of its own or in a tar or a table. Of a video's frame: half a
    # digest of (the video's sha256, the frame's timestamp), then half the video's sha256; a frame's encoding may
    # change with a library, and the ledger and the tombstones go by this id.
    ("image_id", pa.string()),
    ("shard", pa.string()),  # folder of the product that holds the picture
    ("key", pa.string()),  # member of the shard's tar; null where the picture cannot be used
    ("offset", pa.int64()),  # where in the tar its bytes begin
    ("size", pa.int64()),  # how many there are
    ("sha256", pa.string()),  # of them: what is made from the picture is made again only where they change
    ("width", pa.int32()),  # of the stored picture: upright, tight crops padded
    ("height", pa.int32()),  # of the stored picture, as width
    ("source", pa.string()),  # key of datasets/sources.yaml, or the generator of a synthesised picture
    ("path", pa.string()),  # inside its source: FILE, TAR/MEMBER, TABLE#ROW, VIDEO#t=SECONDS
    ("group", pa.string()),  # album or long video
    ("clip", pa.string()),  # shot of a long video: VIDEO#RANK
    ("time", pa.float64()),  # seconds from the start of a long video
    ("licence", pa.string()),  # on what terms the picture may be used
    ("consent", pa.string()),  # given | research | public | drawn (of nobody) | unknown
    ("label", pa.string()),  # a folder's name, kept for checking and never read by identify
    ("status", pa.string()),  # ok | duplicate | rejected (drawn, and not as asked) | error
    ("error", pa.string()),  # why the picture cannot be used; null where it can
)
MEASURED_IMAGES = _record(
    "measured_images",
    ("image_id", pa.string()),
    ("phash", pa.string()),  # 64 bits as 16 hexadecimal digits
    ("sharpness", pa.float32()),  # variance of the Laplacian of the luminance in [0, 1]
    ("n_faces", pa.int32()),  # faces found
    ("error", pa.string()),  # why it could not be measured; null where it was
)


def measured_faces(dimension: int) -> pa.Schema:
    """Faces of pictures, measured by one embedder of `dimension` numbers."""
    return _record(
        "measured_faces",
        ("face_id", pa.string()),  # first 16 digits of image_id, a dash, the rank in the detector's order
        ("image_id", pa.string()),
        ("box", _box),  # x0, y0, x1, y1 in pixels
        ("landmarks", _landmarks),  # five times x, y in pixels
        ("score", pa.float32()),  # the detector's confidence
        ("side_px", pa.float32()),  # the shorter side of the box
        ("pose", pa.list_(pa.float32(), 3)),  # rough yaw, pitch, roll in degrees
        ("sharpness", pa.float32()),  # as of a picture, of the face alone
        ("embedding", pa.list_(pa.float16(), dimension)),  # unit vector
        ("embedder", pa.string()),  # name of the face model
    )


PEOPLE = _record(
    "people",
    ("person_id", pa.string()),  # pseudonym; the same as long as the ledger has one of the person's faces
    ("n", pa.int32()),  # faces kept
    ("centre", pa.list_(pa.float32())),  # unit vector
    ("spread", pa.float32()),  # mean cosine of the faces to the centre
    ("nearest_person", pa.string()),  # the most alike other person
    ("nearest_cosine", pa.float32()),  # between the two centres
    ("alike", pa.bool_()),  # too alike to the nearest person to be told apart
    ("component", pa.string()),  # people who share a picture or are too alike go into one split
    ("split", pa.string()),  # train | validation | test
    ("keep", pa.bool_()),  # whether the row is used further
    ("reason", pa.string()),  # why it is not; null where it is
)
PEOPLE_FACES = _record(
    "people_faces",
    ("face_id", pa.string()),
    ("image_id", pa.string()),
    ("person_id", pa.string()),  # null where the face belongs to nobody
    ("cosine", pa.float32()),  # to the person's centre
    ("keep", pa.bool_()),
    ("reason", pa.string()),
)
LAYOUT = _record(
    "layout",
    ("image_id", pa.string()),
    ("position", pa.int32()),  # in the order of the references
    ("person_id", pa.string()),
    ("role", pa.string()),  # target | reference (the other half of a diptych, drawn for somebody who is no one)
    ("source_face_id", pa.string()),  # null for somebody who was drawn without a photograph
    ("source_image_id", pa.string()),  # the photograph of that face
    ("guide_face_id", pa.string()),  # of the same person: its head's place, scale and roll were taken; or null
    ("box", _box),  # of the face as placed
)
SCENES = _record(
    "scenes",
    ("image_id", pa.string()),
    ("n", pa.int32()),  # people asked for
    ("split", pa.string()),
    ("generator", pa.string()),  # composite | diffusion
    ("background", pa.string()),  # such as plain blue; null where none was asked for
    ("prompt", pa.string()),  # what was asked for
)
RECALL = ("group", "corpus")
_reference = pa.struct(
    [
        ("face_id", pa.string()),
        ("image_id", pa.string()),
        ("cosine", pa.float32()),  # to the target's face
        # of RECALL; group: another picture or clip of the target's album or video; corpus: another one
        ("recall", pa.string()),
    ]
)
SETS = _record(
    "sets",
    ("set_id", pa.string()),  # s and the first 16 digits of target_image_id
    ("n", pa.int32()),  # people
    # In the order of the references: from left to right in the target, unless its prompt leaves open who stands where.
    ("person_ids", pa.list_(pa.string())),
    ("target_image_id", pa.string()),  # image_id of the target
    ("target_kind", pa.string()),  # ingested | synthesised
    ("target_face_ids", pa.list_(pa.string())),  # an entry a person
    ("target_boxes", pa.list_(_box)),  # an entry a person, in the target's pixels
    ("target_landmarks", pa.list_(_landmarks)),  # an entry a person, in the target's pixels
    ("target_sources", pa.list_(pa.string())),  # image_id of the photographs that the target was made from
    ("pool", pa.list_(pa.list_(_reference))),  # a list a person; the first is the reference, the others spare
    ("reference_cosine", pa.list_(pa.float32())),  # reference to target face
    ("cross_cosine", pa.float32()),  # highest between two people of the set; null for n = 1
    ("background", pa.string()),  # as in scenes; null of a photograph
    ("prompt", pa.string()),  # from the measured layout; names nobody
    ("licence", pa.string()),  # of the target and of all photographs used
    ("consent", pa.string()),  # the weakest of the target's and of all photographs'
    ("source", pa.string()),  # of the target
    ("split", pa.string()),
    ("keep", pa.bool_()),
    ("reason", pa.string()),
)
CAPTIONS = _record(
    "captions",
    ("set_id", pa.string()),
    ("prompt", pa.string()),  # what the export and the training take
    ("captioner", pa.string()),  # template, or the name of a vision-language model
)
SCORES = _record(
    "scores",
    ("case_id", pa.string()),  # as CASES.jsonl gives it
    ("image", pa.string()),  # path as the case gives it
    ("seed", pa.int32()),  # rank of the image in its case
    ("judge", pa.string()),  # name of the face model
    ("people", pa.list_(pa.string())),  # null where the case does not say
    ("n", pa.int32()),  # references
    ("n_faces", pa.int32()),  # faces found; null where the picture could not be read
    ("cosines", pa.list_(pa.list_(pa.float32()))),  # a row a reference, a column a drawn face
    ("assignment", pa.list_(pa.int32())),  # a face a reference; -1 where none is left
    ("boxes", pa.list_(_box)),  # an entry a drawn face
    ("target_cosines", pa.list_(pa.float32())),  # of each reference and its face in the target; null without one
    ("id_sim", pa.float32()),  # this and the next three as in umo/evaluation/metrics.py
    ("id_conf", pa.float32()),  # null where the released code skips the picture
    ("id_sim_strict", pa.float32()),  # over the assignment; a missing person counts 0
    ("id_conf_strict", pa.float32()),  # null for n = 1
    ("covered", pa.int32()),  # references whose assigned face is the same person
    ("missing", pa.int32()),  # the other references
    ("duplicated", pa.int32()),  # faces left over that are the same person as a reference
    ("extra", pa.int32()),  # the other faces left over
    ("absent", pa.int32()),  # faces fewer than references
    ("surplus", pa.int32()),  # faces more than references
    ("doubled", pa.int32()),  # faces beyond the first whose most alike reference is the same person, assigned or not
    ("swapped", pa.int32()),  # of `placed` pairs, those in each other's order; null where there is none
    ("placed", pa.int32()),  # pairs of covered references that were asked for different places
    ("blend", pa.float32()),  # of assigned faces with the other references, beyond what these have; null for n = 1
    ("collapse", pa.float32()),  # share of pairs of drawn faces that are one person; null for fewer than two faces
    ("sim_target", pa.float32()),  # cosine with the person's face in the target; none drawn counts 0; null without one
    ("copy_paste", pa.float32()),  # null without a target
    ("copy_paste_covered", pa.float32()),  # of covered references with a target clearly unlike; null without one
    ("error", pa.string()),  # why the picture could not be scored; null where it was
)
LOSSES = _record(
    "losses",
    ("case_id", pa.string()),
    ("diffusion_loss", pa.float32()),  # of the model on the case's target (umo/evaluation/held_out.py)
)
SIDE_EFFECTS = _record(
    "side_effects",
    ("case_id", pa.string()),
    ("seed", pa.int32()),
    ("n", pa.int32()),  # people asked for
    ("people", pa.list_(pa.string())),  # as in scores
    ("people_right", pa.bool_()),  # as many faces as people; of this and the next two, null where none can tell
    ("order_right", pa.bool_()),  # the people stand as the case or its prompt asks; null where neither says
    ("background_right", pa.bool_()),  # the background has the colour that the prompt names
    ("sharpness_error", pa.float32()),  # |log2| of the drawn picture's sharpness over the target's
    ("diffusion_loss", pa.float32()),  # the case's, as in LOSSES; null for a method that draws with no model
    ("variety", pa.float32()),  # the case's, in [0, 1]; null where it was not drawn with several seeds
)


def name(schema: pa.Schema) -> str:
    """The record's name."""
    return schema.metadata[b"record"].decode()


def table(rows: Iterable[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    """Rows -> a table of the schema; a row with a missing or an unknown column is a bug and raises ValueError."""
    rows = list(rows)
    for row in rows:
        if row.keys() != set(schema.names):
            raise ValueError(f"{name(schema)} row: {sorted(row.keys() ^ set(schema.names))} missing or unknown")
    return pa.Table.from_pylist(rows, schema=schema)


def write(
    path: Path, data: pa.Table | Sequence[Mapping[str, object]], schema: pa.Schema, group: int | None = None
) -> None:
    """Write a product atomically; the same rows give the same bytes. Other columns or types raise ValueError.

    Args:
        group: rows that lie together: a reader with a filter leaves out the groups that cannot have what it looks for.
    """
    found = data if isinstance(data, pa.Table) else table(data, schema)
    if found.schema.names != schema.names:
        raise ValueError(f"{name(schema)}: columns {found.schema.names} instead of {schema.names}")
    found = found.cast(schema).replace_schema_metadata({"record": name(schema), "version": VERSION})
    with replacing(path) as temporary:
        pq.write_table(found, temporary, compression="zstd", row_group_size=group)


def read(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a product; BadInput where it is missing, cut short, or of another record or version."""
    with _refusing(path), pq.ParquetFile(path) as file:  # pq.read_table takes long to load what it needs for many files
        found = file.read(columns)
    _refuse_another(path, found.schema, schema)
    return found


def check(path: Path, schema: pa.Schema) -> None:
    """`read` of a product's footer alone, for a reader that takes its columns later."""
    with _refusing(path):
        found = pq.read_schema(path)
    _refuse_another(path, found, schema)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"{path}: missing; run the stage that makes it (dvc repro)") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: not a readable Parquet file ({error}); remove it and run dvc repro") from error


def _refuse_another(path: Path, found: pa.Schema, schema: pa.Schema) -> None:
    metadata = found.metadata or {}
    identity = (metadata.get(b"record", b"").decode(), metadata.get(b"version", b"").decode())
    if identity != (name(schema), VERSION):
        raise BadInput(f"{path}: record {identity} instead of {(name(schema), VERSION)}; run dvc repro")
