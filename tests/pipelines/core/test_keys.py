"""What is part of a key, and what is not."""

from pipelines.core.keys import sources


def test_sources_follow_imports_and_packages():
    found = {str(path) for path in sources("pipelines.measure.stage")}
    assert {"pipelines/measure/stage.py", "pipelines/core/store.py", "umo/quality.py"} <= found
    assert {"umo/__init__.py", "pipelines/__init__.py", "umo/faces/__init__.py", "umo/faces/opencv_zoo.py"} <= found
    assert not found & {"pipelines/curate/stage.py", "umo/evaluation/metrics.py", "pipelines/report/stage.py"}
