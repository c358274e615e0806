"""Configuration: all faults at once, overrides, round trip, shipped files."""

from __future__ import annotations

import pytest

from fmcnet.config import Config, load_config, shipped
from fmcnet.errors import ConfigError


def test_a_file_with_three_mistakes_gives_one_message_with_all_three(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("model: {arch: resnet51, nek: true}\ndata: {height: -96}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    said = str(caught.value)
    assert said.startswith(f"3 faults in {path}")
    assert "model.arch = 'resnet51': input should be 'resnet18', 'resnet34' or 'resnet50'" in said
    assert "model.nek: no such setting; known here: variant" in said
    assert "data.height = -96: input should be greater than 0" in said


def test_mistakes_in_overrides_and_file_are_listed_together(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("training: {lr: fast}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["lr=1", "model.variant=huge", "colour.red=1"])
    said = str(caught.value)
    assert said.startswith("4 faults")
    for part in (
        "override 'lr=1': write section.key=value",
        "model.variant",
        "training.lr",
        "colour: no such",
    ):
        assert part in said


def test_overrides_are_read_as_yaml():
    config = load_config(
        None,
        ["training.lr=1e-3", "model.neck=false", "data.train_splits=[train, val]", "model.pretrained=null"],
    )
    assert config.training.lr == 0.001
    assert config.model.neck is False
    assert config.data.train_splits == ("train", "val")
    assert config.model.pretrained is None


def test_settings_that_exclude_each_other():
    with pytest.raises(ConfigError, match="validation needs val identities that are not trained on"):
        load_config(
            None, ["training.select=val", "training.validate_every=1", "data.train_splits=[train, val]"]
        )
    with pytest.raises(ConfigError, match=r"needs training\.validate_every > 0"):
        load_config(None, ["training.select=test"])
    with pytest.raises(ConfigError, match=r"compile and training\.recompute do not go together"):
        load_config(None, ["training.compile=true", "training.recompute=true"])


def test_yes_and_no_are_words_though_yaml_reads_them_as_booleans(tmp_path):
    for word in ("yes", "no", "auto"):
        config = load_config(None, [f"training.channels_last={word}"])
        assert config.training.channels_last == word
        (tmp_path / "c.yaml").write_text(f"training: {{channels_last: {word}}}")
        assert load_config(tmp_path / "c.yaml") == config
        (tmp_path / "c.yaml").write_text(config.to_yaml())
        assert load_config(tmp_path / "c.yaml") == config
    with pytest.raises(ConfigError, match="channels_last"):
        load_config(None, ["training.channels_last=1"])


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a\n- b\n", "must hold sections"), ("a: [", "not valid YAML"), ("model: 3\n", "model = 3")],
)
def test_files_that_are_no_configuration(tmp_path, text, said):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_a_missing_file_names_the_shipped_ones():
    with pytest.raises(ConfigError, match="generated, llcm, paper, regdb, sysu, tiny"):
        load_config("sisu")


@pytest.mark.parametrize("name", shipped())
def test_shipped_files_name_every_setting_and_round_trip(name, tmp_path):
    import yaml

    tree = yaml.safe_load(shipped()[name].read_text())
    config = load_config(name)
    assert {s: set(v) for s, v in tree.items()} == {s: set(v) for s, v in config.model_dump().items()}
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_the_papers_numbers_are_the_defaults():
    losses = Config().losses
    assert (losses.rho1, losses.rho2, losses.rho3, losses.rho4) == (1.0, 0.7, 0.7, 0.7)
    assert (losses.alpha, losses.beta, losses.lambda1, losses.lambda2) == (2.0, 2.0, 0.5, 0.5)


def test_paper_settings_contain_nothing_of_ours_that_changes_an_equation():
    paper = load_config("paper")
    assert not paper.model.neck
    assert not paper.model.unit_features
    assert not paper.model.generator_norm
    assert paper.model.pooling == "avg"
    assert paper.losses.saturating
    assert (paper.losses.reduction, paper.losses.fc_reduction) == ("sum", "sum")
    assert paper.losses.label_smoothing == 0
    assert (paper.losses.md, paper.losses.mc) == (1, 1)
    assert not paper.losses.detach_targets
