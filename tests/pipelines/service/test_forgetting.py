"""forget as a flow runs it: no photograph is named where Prefect would keep it."""

import pytest

from pipelines.service import privacy
from umo.errors import BadInput, WorkFailed

SAYS = """
import sys
print("p0123: 2 pictures; asked with", *sys.argv[1:])
print("original, refused by ingest from now on: /home/ann smith/1.jpg: delete it")
print("original, refused by ingest from now on: datasets/photos/ann/2.jpg: take their pictures out of it")
print("forget: datasets/photos/ann/3.jpg: shows two faces", file=sys.stderr)
"""


@pytest.fixture
def says(toy):
    """`python -m pipelines forget` is a script that ends with a code."""

    def as_if(code: int) -> None:
        (toy.path / "pipelines").mkdir()
        (toy.path / "pipelines/__init__.py").write_text("")
        (toy.path / "pipelines/__main__.py").write_text(SAYS + f"sys.exit({code})")

    return as_if


def test_photographs_are_named_in_the_file_alone(toy, says):
    says(0)
    lines = []
    privacy.forget(["--photo=/tmp/ann.jpg", "--dry-run"], lines.append)
    assert not any("ann" in line for line in lines)
    assert "original, refused by ingest from now on: /…: delete it" in lines
    assert lines[0] == "p0123: 2 pictures; asked with forget --photo=the photograph --dry-run"
    whole = toy.path / privacy.WHOLE
    assert "/home/ann smith/1.jpg" in whole.read_text()
    assert whole.stat().st_mode & 0o077 == 0
    assert toy.dirty() == ["?? pipelines/"]


def test_copies_that_remain_are_no_failure(toy, says):
    says(privacy.CopiesRemain.exit_code)
    assert privacy.forget(["p0123"], lambda line: None) == "forget: datasets/photos/…: shows two faces"


@pytest.mark.parametrize(("code", "kind"), [(2, BadInput), (1, WorkFailed)])
def test_its_own_line_is_the_error(toy, says, code, kind):
    says(code)
    with pytest.raises(kind, match=r"^forget: datasets/photos/…: shows two faces$"):
        privacy.forget(["p0123"], lambda line: None)
