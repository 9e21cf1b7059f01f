"""Published benchmarks, by the names that `umo benchmark` takes; one file a layout."""

from umo.evaluation.benchmarks.base import Benchmark
from umo.evaluation.benchmarks.multihuman import MultiHuman
from umo.evaluation.benchmarks.multiid import MultiID
from umo.evaluation.benchmarks.omnicontext import OmniContext
from umo.evaluation.benchmarks.xverse import XVerseMulti, XVerseSingle

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one for one in (XVerseSingle(), XVerseMulti(), OmniContext(), MultiID(), MultiHuman())
}
