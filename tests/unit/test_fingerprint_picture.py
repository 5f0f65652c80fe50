import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from bonemet_auto.plan_schema import Target
from bonemet_auto.report.fingerprint import draw_fingerprint
from planners import plan_fast
from tests.cohort import LABELS
from tests.unit.test_planners import cohort


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """Draw a cohort and give its three panels."""

    def draw(fingerprint):
        kept = []
        save = Figure.savefig
        monkeypatch.setattr(
            Figure, "savefig", lambda f, *a, **k: (kept.append(f), save(f, *a, **k))
        )
        plan = plan_fast(fingerprint, Target(device="cpu", memory_gb=6), "p")
        draw_fingerprint(fingerprint, LABELS, plan, tmp_path / "f.png")
        assert imread(tmp_path / "f.png").std() > 0.01
        return kept[0].axes, plan

    return draw


def test_every_lesion_and_case_is_drawn_beside_the_plan(axes):
    sizes = ((9.0, 8.0, 5.0), (20.0, 30.0, 25.0))
    (lesions, spacings, hu), plan = axes(cohort([(2.0, 0.8, 0.8), (3.0, 1.0, 1.2)], sizes=sizes))
    counted = sum(bar.get_height() for bar in lesions.patches)
    assert counted == 4
    texts = [text.get_text() for text in lesions.get_legend().get_texts()]
    assert "lung_metastasis (4)" in texts
    cases, planned = spacings.lines
    assert np.allclose(cases.get_xydata(), [(0.8, 2.0), (1.1, 3.0)])
    assert planned.get_xydata()[0, 1] == plan.spacing_mm[0]
    assert {line.get_label() for line in hu.lines} == {"bone", "lesion"}
