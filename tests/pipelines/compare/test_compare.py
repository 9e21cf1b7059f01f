"""All comparisons of the stage are corrected together."""

import json
from itertools import chain

import numpy as np
import pytest

from pipelines.compare import stage as compare
from pipelines.core import products
from pipelines.core.shards import Shard
from umo import records
from umo.evaluation import metrics


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Three methods on thirty cases of one person, each a little more alike than the one before."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for method, mean in (("base", 0.5), ("sft", 0.51), ("mimr", 0.6)):
        folder = products.EVALUATED / method
        folder.mkdir(parents=True)
        (folder / products.METRICS).write_text(json.dumps({"judge": {"name": "somebody"}}))
        scores, effects = [], []
        for k, cosine in enumerate(generator.normal(mean, 0.04, 30)):
            known = {"case_id": str(k), "seed": 0, "n": 1}
            scored = metrics.score(np.array([[cosine]]), 0.5)
            scores.append(dict.fromkeys(records.SCORES.names) | known | scored)
            effects.append(dict.fromkeys(records.SIDE_EFFECTS.names) | known | {"sharpness_error": cosine})
        records.write(folder / products.SCORES_TABLE, scores, records.SCORES)
        records.write(folder / products.SIDE_EFFECTS_TABLE, effects, records.SIDE_EFFECTS)


def test_verdicts_hold_against_all_pairs_and_metrics(evaluated, tmp_path):
    params = compare.Params(pairs=[("sft", "base"), ("mimr", "base"), ("mimr", "sft")])
    assert compare._compare(params, Shard("", {}), tmp_path).made == {"pairs": 3}
    found = json.loads((tmp_path / products.COMPARISONS.name).read_text())
    every = list(
        chain.from_iterable(
            [*(one[name] for name in metrics.METRICS), *one["side_effects"].values()] for one in found.values()
        )
    )
    tried = [one for one in every if one["p"] is not None]
    assert len(tried) > 30
    assert [one["p_holm"] for one in tried] == metrics.holm([one["p"] for one in tried])
    assert found["mimr-base"]["id_sim_strict"]["holds"]
    assert found["mimr-base"]["side_effects"]["sharpness_error"]["holds"]
    assert not any(one["holds"] for one in every if one["p_holm"] is None or one["p_holm"] >= 0.05)
    alone = found["sft-base"]["id_sim_strict"]
    assert (alone["verdict"], alone["holds"]) == ("better", False)
