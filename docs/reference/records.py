"""Every record of umo/records.py: columns, types, and the comments that say there what a column means."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

import pyarrow as pa

from docs.reference.markdown import Undocumented, code, table
from pipelines.core.shards import ROOT
from umo import records

SOURCE = ROOT / "umo/records.py"
# Where each record lies, and what a row of it is.
HOMES = {
    "images": ("a picture", "datasets/ingested/*/images.parquet", "datasets/synthesised/*/images.parquet"),
    "measured_images": ("a picture as measured", "datasets/measured/*/*/measured.parquet"),
    "measured_faces": ("a face in a picture", "datasets/measured/*/*/faces.parquet"),
    "people": ("a person", "datasets/people/people.parquet"),
    "people_faces": ("a face, and whose it is", "datasets/people/people_faces.parquet"),
    "layout": ("a person placed in a scene", "datasets/synthesised/*/layout.parquet"),
    "scenes": ("a scene", "datasets/synthesised/*/scenes.parquet"),
    "sets": ("a training example, kept or not", "datasets/curated/sets.parquet"),
    "captions": ("the prompt of a kept set", "datasets/captioned/*/captions.parquet"),
    "scores": ("a drawn picture and a judge", "runs/evaluate/*/scores.parquet"),
    "losses": ("a case's loss", "runs/generate/*/losses.parquet"),
    "side_effects": ("a drawn picture", "runs/evaluate/*/side_effects.parquet"),
}
INTRODUCTION = f"""\
# Records

Stages hand each other Parquet files, each with one of these records (`umo/records.py`, version {records.VERSION}). A
file with another record or version is refused. Rows that were turned away stay, with the reason in `status` and
`error`, or in `keep` and `reason` ([looking one up](../where.md#why-was-this-row-dropped)).
"""


def page() -> str:
    """The page.

    Raises:
        Undocumented: a column has no meaning, or a record no home.
    """
    return "\n\n".join([INTRODUCTION, *(_record(schema) for schema in schemas().values())])


def schemas() -> dict[str, pa.Schema]:
    """By name; that of faces with the dimension of the embedded face models."""
    found = [value for value in vars(records).values() if isinstance(value, pa.Schema)]
    found.insert(2, records.measured_faces(128))
    return {records.name(schema): schema for schema in found}


def _record(schema: pa.Schema) -> str:
    name = records.name(schema)
    if name not in HOMES:
        raise Undocumented(f"umo/records.py: {name} has no home; write one in docs/reference/records.py")
    row, *homes = HOMES[name]
    rows = table(("column", "type", "meaning"), _columns(schema, meanings()))
    return f"## {name}\n\nA row is {row}. {', '.join(map(code, homes))}\n\n{rows}"


def _columns(schema: pa.Schema, said: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str, str]]:
    """Name, type, meaning of every column, and of every part of a struct inside one."""
    record = records.name(schema)
    for field in schema:
        yield code(field.name), _type(field.type), meaning(said, record, field.name)
        for part in _parts(field.type):
            yield code(f"{field.name}.{part.name}"), _type(part.type), meaning(said, "_reference", part.name)


def meaning(said: Mapping[tuple[str, str], str], record: str, column: str) -> str:
    """What is said of a column where it stands, or the record in which its name stands first.

    Raises:
        Undocumented: nowhere is anything said.
    """
    if text := said.get((record, column)):
        return text
    if first := next((other for other, name in said if name == column), None):
        return f"as in [{first}](#{first})"
    raise Undocumented(f"umo/records.py: {record}.{column} has no meaning; write it in a comment beside the column")


def meanings() -> dict[tuple[str, str], str]:
    """(record, column) -> the comment above, inside or behind the column's line in umo/records.py."""
    source = SOURCE.read_text()
    comments: dict[int, tuple[str, bool]] = {}  # by line: the text, and whether it has the line for itself
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own = not token.line[: token.start[1]].strip()
            comments[token.start[0]] = (token.string.removeprefix("#").strip(), own)
    found = {}
    for record, column, first, last in _written(ast.parse(source)):
        above = first
        while comments.get(above - 1, ("", False))[1]:
            above -= 1
        text = " ".join(comments[line][0] for line in range(above, last + 1) if line in comments)
        if text:
            found[record, column] = text
    return found


def _written(module: ast.Module) -> Iterator[tuple[str, str, int, int]]:
    """Record, column, first and last line of every `("column", type)` in a call of _record or pa.struct."""
    for statement in module.body:
        for call in ast.walk(statement):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func) in ("_record", "pa.struct")):
                continue
            name, *entries = call.args
            record = "_reference" if isinstance(name, ast.List) else ast.literal_eval(name)
            for entry in name.elts if isinstance(name, ast.List) else entries:
                assert isinstance(entry, ast.Tuple) and entry.end_lineno
                yield record, ast.literal_eval(entry.elts[0]), entry.lineno, entry.end_lineno


def _parts(kind: pa.DataType) -> list[pa.Field]:
    """Of the struct at the bottom of lists."""
    while pa.types.is_list(kind):
        kind = kind.value_type
    return list(kind) if pa.types.is_struct(kind) else []


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} × {_type(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "struct"
    return re.sub(r"^halffloat$", "float16", re.sub(r"^float$", "float32", re.sub(r"^double$", "float64", str(kind))))
