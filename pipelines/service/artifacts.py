"""What a flow shows in Prefect's UI, as Markdown: pure functions of the products' files.

No picture and no name is in it: pictures are linked, so that whoever is forgotten is gone from here too.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.core import products
from pipelines.service.links import VALIDATIONS, Links

MEASURES = ("id_sim_strict", "id_conf", "coverage", "copy_paste")
BARS = "▁▂▃▄▅▆▇█"
CARD, SHEETS, REPORT_PAGE = "README.md", "contact_sheet_*.jpg", "report.html"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(title: str, revision: str, output: Path, links: Links, *parts: str) -> str:
    """Parts under a title, and below them which version they speak of."""
    product = links.hashes.get(str(output), "not in dvc.lock")
    return "\n\n".join([f"# {title}", *parts, f"git `{revision}` · `{output}` `{product}`"])


def funnel(found: Mapping[str, Any], revision: str, links: Links) -> str:
    """funnel.json of curate: what became of every picture."""
    reasons = sorted(found["reasons"].items(), key=lambda item: -item[1])
    rows = [("considered", found["pictures"]), *((f"− {reason}", count) for reason, count in reasons)]
    counts = table(("pictures", "number"), [*rows, ("**kept as sets**", f"**{found['kept']}**")])
    return page("From pictures to sets", revision, products.CURATED, links, counts, _by_split(found))


def _by_split(found: Mapping[str, Any]) -> str:
    counts = found["by_split_and_n"]
    sizes = sorted({n for split in counts.values() for n in split}, key=int)
    rows = [(split, sum(of.values()), *(of.get(n, 0) for n in sizes)) for split, of in counts.items()]
    return table(("split", "sets", *(f"{n} in a picture" for n in sizes)), rows)


def validation(found: Mapping[str, Any], revision: str, links: Links, key: str = "") -> str:
    """results.json of validate: what was expected of every product, and what is wrong. Where the stage failed, DVC has
    no version of its results, and `key` is that of the work in .work/validate.
    """
    faults = "\n".join(f"- **{fault}**" for fault in found["faults"]) or "Every expectation is met."
    suites = found["suites"].items()
    rows = [(name, suite["rows"], f"{suite['met']} of {suite['expectations']}") for name, suite in suites]
    output = VALIDATIONS if key else products.VALIDATED
    docs = f"[Great Expectations' Data Docs]({links.to(output, f'{products.DATA_DOCS}/index.html', key)})"
    title = "Validation failed" if found["faults"] else "Validation"
    return page(title, revision, output, links, faults, docs, table(("product", "rows", "expectations met"), rows))


def card(found: Mapping[str, Any], revision: str, links: Links) -> str:
    """What the data set holds; its card is linked."""
    address = links.to(products.EXPORTED, CARD)
    return page("Data set", revision, products.EXPORTED, links, _by_split(found), f"[Its card]({address})")


def contact_sheets(names: Sequence[str], revision: str, links: Links) -> str:
    """The first sets of every split: references, and last the target."""
    pictures = [f"![{name}]({links.to(products.EXPORTED, name)})" for name in names]
    return page("The first sets of each split", revision, products.EXPORTED, links, *pictures)


def metrics(found: Mapping[str, Mapping[str, Any]], revision: str, links: Links) -> str:
    """metrics.json of every method: means with 95 % intervals."""
    rows = [(method, *(_interval(scores[name]) for name in MEASURES)) for method, scores in found.items()]
    report = f"[The report]({links.to(products.REPORT, REPORT_PAGE)})"
    return page("Scores", revision, products.REPORT, links, table(("method", *MEASURES), rows), report)


def _interval(score: Mapping[str, float | None]) -> str:
    return "none" if score["mean"] is None else f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"


def curves(found: Mapping[str, Mapping[str, Any]], revision: str, links: Links) -> str:
    """training.json of every method: validation over the updates; the report has the curves in full."""
    lines = []
    for method, training in found.items():
        updates = training["validation"]
        for name in (name for name in (updates[0] if updates else {}) if name.startswith("validation/")):
            values = [row[name] for row in updates if row.get(name) is not None]
            lines.append((method, name.partition("/")[2], spark(values), f"{values[0]:.3f}", f"{values[-1]:.3f}"))
    report = f"[The curves in full]({links.to(products.REPORT, REPORT_PAGE)})"
    head = ("method", "on people not trained on", "over the updates", "first", "last")
    return page("Training", revision, products.REPORT, links, table(head, lines), report)


def spark(values: Sequence[float]) -> str:
    """A line of blocks from the lowest to the highest value."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


def of_data(root: Path, revision: str, links: Links) -> dict[str, str]:
    """Key -> Markdown, of the data stages' products that are there."""
    pages: dict[str, str] = {}
    if (file := root / products.CURATED / products.FUNNEL).exists():
        counts = json.loads(file.read_text())
        pages["funnel"] = funnel(counts, revision, links)
        if (root / products.EXPORTED / CARD).exists():
            pages["data-set-card"] = card(counts, revision, links)
    if sheets := sorted(path.name for path in (root / products.EXPORTED).glob(SHEETS)):
        pages["contact-sheet"] = contact_sheets(sheets, revision, links)
    if (file := root / products.VALIDATED / products.VALIDATION).exists():
        pages["validation"] = validation(json.loads(file.read_text()), revision, links)
    return pages


def of_training(root: Path, revision: str, links: Links) -> dict[str, str]:
    """Key -> Markdown, of the products of training and evaluation that are there."""
    scores = _read(root / products.EVALUATED, products.METRICS)
    trainings = _read(root / products.TRAINED, products.TRAINING)
    pages = {"metrics": metrics(scores, revision, links)} if scores else {}
    return pages | ({"curves": curves(trainings, revision, links)} if trainings else {})


def _read(folder: Path, name: str) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{name}"))}


def of_failed_validation(root: Path, revision: str, links: Links) -> dict[str, str]:
    """The page of a validation that has just failed; none where its results are not there."""
    if not (file := root / products.VALIDATED / products.VALIDATION).exists():
        return {}
    text = file.read_text()
    same = (path for path in (root / VALIDATIONS).glob(f"*/{products.VALIDATION}") if path.read_text() == text)
    key = next((path.parent.name for path in same), "")
    return {"validation": validation(json.loads(text), revision, links, key)}
