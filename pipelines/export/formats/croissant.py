"""Croissant (MLCommons): croissant.json says what the Parquet files hold, so that loaders read records from it.

Written as plain JSON, because importing mlcroissant takes as long as a small export; the tests let it validate the file
and read the records. There is no date in it: the same sets give the same bytes.
"""

import json
from collections.abc import Mapping

import pyarrow as pa

from pipelines.core.sources import Source
from pipelines.export.formats.parquet import COLUMNS

FILE = "croissant.json"
PARQUET = {"encodingFormat": "application/x-parquet"}
CITATION = (
    "@misc{umo2025, title={UMO: Scaling Multi-Identity Consistency for Image Customization via Matching Reward}, "
    "author={{ByteDance UXO Team}}, year={2025}, eprint={2509.06818}, archivePrefix={arXiv}}"
)
_TERMS = (
    *("arrayShape", "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty"),
    *("fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path"),
    *("recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField"),
    "transform",
)
CONTEXT: dict[str, object] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
}
# Of `pool` a field cannot be made: Croissant's jsonPath reaches into a list, but not into a list of lists.
WITHOUT = ("pool", "pool_recall", "pool_landmarks")
_TYPES = {"string": "sc:Text", "int32": "cr:Int32", "float": "cr:Float32"}


def describe(count: int, files: Mapping[str, tuple[int, str]], sources: Mapping[str, Source]) -> str:
    """croissant.json of the Parquet files.

    Args:
        count: of sets.
        files: name -> size in bytes and sha256.
        sources: of the photographs.
    """
    licences = sorted({source.licence or "none stated" for source in sources.values()})
    file_set = {"@type": "cr:FileSet", "@id": "parquet", "name": "parquet", "includes": "*.parquet", **PARQUET}
    file_objects = [
        {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "contentSize": f"{size} B"}
        | {"sha256": sha256, **PARQUET}
        for name, (size, sha256) in sorted(files.items())
    ]
    record_set = {
        "@type": "cr:RecordSet",
        "@id": "sets",
        "name": "sets",
        "description": f"A training example a record; further columns of the files: {', '.join(WITHOUT)}.",
        "key": {"@id": "sets/set_id"},
        "field": [_field(column, kind) for column, kind in COLUMNS.items() if column not in WITHOUT],
    }
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "multi-identity-reference-sets",
        "description": f"{count} sets of a target picture, a reference photograph of each person in it, and a prompt.",
        "version": "1.0.0",
        "license": licences,
        "citeAs": CITATION,
        "keywords": ["image customization", "several people", "reference images"],
        **_responsible(sources),
        "distribution": [*file_objects, file_set],
        "recordSet": [record_set],
    }
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _responsible(sources: Mapping[str, Source]) -> dict[str, object]:
    """The fields of Croissant's extension for responsible AI."""
    credits_ = [f"{name}: {source.credit}" for name, source in sorted(sources.items()) if source.credit]
    return {
        "rai:dataBiases": data_biases(sources),
        "rai:personalSensitiveInformation": [
            "Faces of real people; person_ids are pseudonyms. Consent is stated for every record and is the weakest "
            "among the photographs that it shows or was made from."
        ],
        "rai:dataCollection": "Photographs of: " + "; ".join(credits_ or sorted(sources)),
        "rai:dataLimitations": [
            "Who is who was found by a face network and not by people; targets may be composited from photographs."
        ],
        "rai:dataUseCases": [
            "Training and judging image customization with several people. Not for identifying anyone, and not for "
            "training recognition."
        ],
    }


def data_biases(sources: Mapping[str, Source]) -> list[str]:
    """What is known of whom the pictures show and of what the selection does to it."""
    return [
        *(f"{name}: {' '.join(source.note.split())}" for name, source in sorted(sources.items()) if source.note),
        "People were found, told apart and chosen by one face network and its thresholds: it is not equally good on "
        "everyone, and whom it does badly on is shown less often here, or left out.",
    ]


def _field(column: str, kind: pa.DataType) -> dict:
    source: dict[str, object] = {"fileSet": {"@id": "parquet"}, "extract": {"column": column}}
    field: dict[str, object] = {"@type": "cr:Field", "@id": f"sets/{column}", "name": column, "source": source}
    depth = 0
    while pa.types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    if pa.types.is_struct(kind):
        source["transform"] = {"jsonPath": "bytes"}
        field["dataType"] = "sc:ImageObject"
        if depth:
            field["repeated"] = True  # older than isArray, but mlcroissant 1.1 decodes pictures of such lists alone
        return field
    field["dataType"] = ["sc:Text", "cr:Split"] if column == "split" else _TYPES[str(kind)]
    if depth:
        last = {"target_boxes": "4", "target_landmarks": "10", "reference_landmarks": "10"}.get(column, "-1")
        field |= {"isArray": True, "arrayShape": "-1," * (depth - 1) + last}
    return field
