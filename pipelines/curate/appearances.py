"""Who is in which picture: every face of the photographs and of the synthesised pictures, and whose it is.

Embeddings go through no join: they lie in one matrix, and a face is known by its row there.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipelines.core import products
from umo import records

KINDS = {
    "ingested": (products.INGESTED, products.MEASURED_PHOTOS),
    "synthesised": (products.SYNTHESISED, products.MEASURED_SCENES),
}
BATCH = 4096  # pairs whose vectors fit a core's cache
ANYONES = records.measured_faces(1)


@dataclass(frozen=True)
class Appearances:
    """Pictures, people and faces by number: each number is the place of a row in its table.

    Attributes:
        images: image, image_id (in order), kind (ingested | synthesised), width, group, clip, licence, consent,
            source; and of a target sources (image_ids of the photographs that it was made from), background, prompt.
            Group and clip are numbers; a picture that is of no video is a clip of its own.
        people: person, person_id, split: the kept ones, and those who were drawn without a photograph.
        faces: row, image, face_id, kind, box, landmarks, side_px, middle (x of the box's centre), yaw, pitch,
            person_id (null: nobody's), person (null: nobody's who is kept), reference (may stand for its person).
        shown: image, row, person_id, person, lost, position, source_row, guide_row: a face in a target, or a person who
            was placed there and is not found again (lost; row is null). The position is that of the layout, null in a
            photograph; the source is the photographed face that it was made from, the guide the one that it was placed
            like.
        taken: image, clip: a scene and the clips of the photographs that it was made from.
        embeddings: (faces, d) float32.
        centres: (people, d) float32 unit vectors.
    """

    images: pl.DataFrame
    people: pl.DataFrame
    faces: pl.DataFrame
    shown: pl.DataFrame
    taken: pl.DataFrame
    embeddings: np.ndarray
    centres: np.ndarray


def read(min_overlap: float) -> Appearances:
    """Bring the products together; raises BadInput where one is missing, cut short or of another version.

    A face found in a synthesised picture is the person's whose box it overlaps by `min_overlap` (over their union).
    """
    images = _images()
    usable = images.lazy().select("image_id", "image")
    found = products.scan(products.SYNTHESISED, products.LAYOUT_TABLE, records.LAYOUT)
    layout = found.join(usable, on="image_id").drop("image_id").collect()
    found = products.scan(products.SYNTHESISED, products.SCENES_TABLE, records.SCENES)
    scenes = found.select("image_id", "split", "background", "prompt").join(usable, on="image_id").collect()
    faces, embeddings = _faces(images)
    placed = _found_again(min_overlap, faces, layout)
    known = products.scan_file(products.PEOPLE / products.PEOPLE_FACES_TABLE, records.PEOPLE_FACES).filter("keep")
    photographed = faces.lazy().filter(kind="ingested").select("row", "face_id")
    photographed = photographed.join(known.select("face_id", "person_id"), on="face_id").drop("face_id")
    owners = pl.concat([photographed.collect(), placed.select("row", "person_id")])
    people, centres = _people(layout, scenes, owners, embeddings)
    halves = layout.filter(role="reference").select("image", half=pl.lit(True)).unique()
    faces = (
        faces.lazy()
        .join(owners.lazy(), on="row", how="left")
        .join(people.lazy().select("person_id", "person"), on="person_id", how="left")
        .join(halves.lazy(), on="image", how="left")
        .with_columns(reference=pl.col("person").is_not_null() & ((pl.col("kind") == "ingested") | pl.col("half")))
        .drop("half")
        .sort("row")
        .collect()
    )
    clips = images.select("clip", source_image_id="image_id")
    taken = layout.select("image", "source_image_id").join(clips, on="source_image_id").select("image", "clip").unique()
    return Appearances(
        images=_with_origin(images, layout, scenes),
        people=people,
        faces=faces,
        shown=_shown(faces, people, layout, scenes, placed),
        taken=taken,
        embeddings=embeddings,
        centres=centres,
    )


def cosines(first: np.ndarray, rows: pl.Series, second: np.ndarray, others: pl.Series) -> np.ndarray:
    """(n,) float32 products of the vectors first[rows] and second[others], the same on any number of threads."""
    one, other = rows.to_numpy(), others.to_numpy()
    found = np.empty(len(one), np.float32)
    for part in (slice(start, start + BATCH) for start in range(0, len(one), BATCH)):
        found[part] = np.einsum("nd,nd->n", first[one[part]], second[other[part]])
    return found


def _images() -> pl.DataFrame:
    columns = ("image_id", "width", "group", "clip", "licence", "consent", "source")
    both = [
        products.scan(product, products.IMAGES_TABLE, records.IMAGES)
        .filter(pl.col("status") == "ok")
        .select(*columns, kind=pl.lit(kind))
        for kind, (product, _) in KINDS.items()
    ]
    shot = pl.concat_str(pl.col("group").fill_null(""), "clip", separator="\0")  # null where there is no clip
    numbered = {"group": pl.col("group").rank("dense"), "clip": pl.coalesce(shot, "image_id").rank("dense")}
    return pl.concat(both).sort("image_id").with_columns(**numbered).with_row_index("image").collect()


def _faces(images: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
    """The faces of usable pictures, and their embeddings."""
    pose, box = pl.col("pose").arr, pl.col("box").arr
    measured = [products.scan(measured, products.FACES_TABLE, ANYONES) for _, measured in KINDS.values()]
    faces = (
        pl.concat(measured)
        .select(
            *("face_id", "image_id", "box", "landmarks", "side_px"),
            middle=(box.get(0) + box.get(2)) / 2,
            yaw=pose.get(0),
            pitch=pose.get(1),
        )
        .with_row_index("place")
        .join(images.lazy().select("image_id", "image", "kind"), on="image_id")
        .drop("image_id")
        .sort("place")
        .with_row_index("row")
        .collect()
    )
    embeddings = np.concatenate([part.select("embedding").collect()["embedding"].to_numpy() for part in measured])
    return faces.drop("place"), embeddings[faces["place"].to_numpy()].astype(np.float32)


def _found_again(min_overlap: float, faces: pl.DataFrame, layout: pl.DataFrame) -> pl.DataFrame:
    """row, image, person_id, ...: synthesised faces with the row of the layout that they lie on, each used once."""
    place = ["image", "person_id"]
    return (
        faces.lazy()
        .select("row", "face_id", "image", "box")
        .join(layout.lazy().rename({"box": "placed"}), on="image")
        .with_columns(overlap=_overlap(pl.col("box"), pl.col("placed")))
        .filter(pl.col("overlap") >= min_overlap)
        .sort("overlap", "face_id", "person_id", descending=[True, False, False])
        .unique("row", keep="first", maintain_order=True)
        .unique(place, keep="first", maintain_order=True)
        .select("row", "role", *place, "position", "source_face_id", "guide_face_id")
        .collect()
    )


def _overlap(first: pl.Expr, second: pl.Expr) -> pl.Expr:
    """Intersection over union of two box columns."""
    a, b = first.arr, second.arr

    def side(low: int, high: int) -> pl.Expr:
        return (pl.min_horizontal(a.get(high), b.get(high)) - pl.max_horizontal(a.get(low), b.get(low))).clip(0)

    both = side(0, 2) * side(1, 3)
    one, other = ((box.get(2) - box.get(0)) * (box.get(3) - box.get(1)) for box in (a, b))
    return both / (one + other - both)


def _people(
    layout: pl.DataFrame, scenes: pl.DataFrame, owners: pl.DataFrame, embeddings: np.ndarray
) -> tuple[pl.DataFrame, np.ndarray]:
    """The kept people, then the drawn ones, whose split is their scene's and whose centre is their faces' mean."""
    known = products.scan_file(products.PEOPLE / products.PEOPLE_TABLE, records.PEOPLE).filter("keep")
    kept = known.select("person_id", "split", "centre").collect()
    centres = kept["centre"].cast(pl.Array(pl.Float32, embeddings.shape[1])).to_numpy()
    drawn = (
        layout.filter(pl.col("source_face_id").is_null())
        .join(scenes.select("image", "split"), on="image")
        .join(kept, on="person_id", how="anti")
        .group_by("person_id")
        .agg(pl.col("split").min())
        .sort("person_id")
    )
    people = pl.concat([kept.select("person_id", "split"), drawn]).with_row_index("person")
    found = owners.join(people.slice(kept.height), on="person_id")
    sums = np.zeros((drawn.height, embeddings.shape[1]), np.float32)
    np.add.at(sums, found["person"].to_numpy() - kept.height, embeddings[found["row"].to_numpy()])
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return people, np.concatenate([centres, means])


def _shown(
    faces: pl.DataFrame, people: pl.DataFrame, layout: pl.DataFrame, scenes: pl.DataFrame, placed: pl.DataFrame
) -> pl.DataFrame:
    """The faces of photographs and scenes, and the people of scenes who are lost."""
    place = ["image", "person_id"]
    row_of = faces.lazy().filter(pl.col("kind") == "ingested").select("face_id", "row")
    made_from = (
        placed.lazy()
        .select("row", "position", "source_face_id", "guide_face_id")
        .join(row_of.rename({"face_id": "source_face_id", "row": "source_row"}), on="source_face_id", how="left")
        .join(row_of.rename({"face_id": "guide_face_id", "row": "guide_row"}), on="guide_face_id", how="left")
        .select("row", "position", "source_row", "guide_row")
    )
    targets = scenes.lazy().select("image", target=pl.lit(True))
    found = (
        faces.lazy()
        .join(targets, on="image", how="left")
        .filter((pl.col("kind") == "ingested") | pl.col("target"))
        .select("row", *place, "person", lost=pl.lit(False))
        .join(made_from, on="row", how="left")
    )
    lost = (
        layout.lazy()
        .join(targets, on="image")
        .join(placed.lazy(), on=place, how="anti")
        .join(people.lazy(), on="person_id", how="left")
        .select(*place, "person", lost=pl.lit(True))
    )
    return pl.concat([found, lost], how="diagonal").collect()


def _with_origin(images: pl.DataFrame, layout: pl.DataFrame, scenes: pl.DataFrame) -> pl.DataFrame:
    """Images with the photographs that they were made from, a photograph from itself, and the scenes' words."""
    made_from = layout.group_by("image").agg(sources=pl.col("source_image_id").drop_nulls().unique().sort())
    itself = pl.when(kind="ingested").then(pl.concat_list("image_id"))
    return (
        images.join(made_from, on="image", how="left")
        .join(scenes.select("image", "background", "prompt"), on="image", how="left")
        .with_columns(sources=pl.coalesce(itself, "sources"))
        .sort("image")
    )
