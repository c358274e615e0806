"""The model card of a run's weights says what the run's files say."""

from __future__ import annotations

import json
from pathlib import Path

from fmcnet.experiments.model_card import MODEL_CARD
from fmcnet.experiments.study import StudyOptions, run_study
from fmcnet.inference.info import model_info


def test_a_study_leaves_a_card_with_every_model(tmp_path):
    options = StudyOptions("table2", tmp_path / "s", preset="tiny", seeds=(0,), budget=1, device="cpu")
    for run in run_study(options, quiet=True)["runs"]:
        folder = tmp_path / "s" / "runs" / run["name"]
        text = (folder / MODEL_CARD).read_text()
        result = json.loads((folder / "result.json").read_text())
        assert model_info(folder)["weights_sha256"] in text
        assert run["commands"][0] in text
        for one in result["evaluations"]:
            assert f"| {100 * one['mean']['rank1']:.2f} |" in text
            assert f"| {100 * one['mean']['mAP']:.2f} |" in text
            assert one["protocol"] in text
        assert "GENERATED" in text
        assert text.startswith("---\nlicense: apache-2.0\n")
        settings = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
        assert settings["training"]["seed"] == run["seed"]
        assert Path(folder, "model.safetensors").is_file()
