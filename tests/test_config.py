"""Configuration: all faults at once, overrides, round trip, shipped files."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from fmcnet.config import COLUMNS, REMOVED, Config, ModelConfig, load_config, purpose, shipped
from fmcnet.errors import ConfigError
from tests.cli import run_command

SETTINGS = [
    (section, name, field) for section, part in Config() for name, field in type(part).model_fields.items()
]


run = run_command


def test_a_file_with_three_mistakes_gives_one_message_with_all_three(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("model: {variant: huge, nek: true}\ndata: {height: -96}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    said = str(caught.value)
    assert said.startswith(f"3 faults in {path}")
    assert "model.variant = 'huge': input should be 'base', 'sfd', 'fmc' or 'full'" in said
    assert "model.nek: no such setting (did you mean neck?); known here: variant" in said
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


@pytest.mark.parametrize(
    ("overrides", "heading"),
    [
        (["training.lr=fast", "training.seed=1"], "1 fault in the override training.lr=fast:"),
        (["training.select=val"], "1 fault in the override training.select=val:"),
        (
            ["model.frozen_blocks=3", "model.specific_stages=1"],
            "1 fault in the overrides model.frozen_blocks=3 model",
        ),
        (["training.milestones=[30,50]"], "2 faults in the override training.milestones=[30,50]:"),
        ("training.seed=1", "overrides is a text: give a list, as ['training.seed=1']"),
        (["lr"], "1 fault in the override lr:"),
        (["colour.red=1"], "1 fault in the override colour.red=1:"),
    ],
)
def test_the_heading_names_the_override_and_not_the_file(overrides, heading, tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text("training: {epochs: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value).startswith(heading)
    assert str(path) not in str(caught.value)


def test_overrides_are_read_as_yaml():
    config = load_config(
        None,
        ["training.lr=1e-3", "model.neck=false", "data.train_splits=[train, val]", "model.pretrained=null"],
    )
    assert config.training.lr == 0.001
    assert config.model.neck is False
    assert config.data.train_splits == ("train", "val")
    assert config.model.pretrained is None


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("augment.photometric=2", "augment.photometric = 2: input should be less than or equal to 1"),
        ("augment.photometric=yes", "augment.photometric: true .* is no number"),
        ("augment.photometric=.nan", "augment.photometric = nan: input should be a finite number"),
        ("augment.photometric=", "augment.photometric = None: input should be a valid number"),
        ("augment.photometric=[0.5]", r"augment.photometric = \[0.5\]: input should be a valid number"),
        ("model.frozen_stripes=13", "model.frozen_stripes = 13: input should be less than or equal to 12"),
        ("model.frozen_stripes=2.5", "model.frozen_stripes = 2.5: input should be a valid integer"),
        ("model.frozen_stripes=on", "model.frozen_stripes: true .* is no number"),
        ("model.frozen_stripes=2", "model: frozen_stripes needs maps .*: set frozen_blocks"),
        (
            "data.train_splits=train,val",
            r"data.train_splits = 'train,val': write a list in brackets, as \[first,second\]",
        ),
        ("model.feature_weight=0", "model.feature_weight = 0: input should be greater than 0"),
        ("model.feature_weight=no", "model.feature_weight: false .* is no number"),
        ("model.feature_weight=2", "model: feature_weight weighs features .*: set frozen_stripes, too"),
        ("training.milestones=[true]", "training.milestones: true .* is no number"),
        ("model.tail_blocks=true", "model.tail_blocks: true .* is no number"),
    ],
)
def test_a_wrong_value_is_one_line(override, fault):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    heading, line = str(caught.value).splitlines()
    assert heading == f"1 fault in the override {override}:"
    assert re.match(f"  {fault}", line)


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
    with pytest.raises(ConfigError, match="generated, llcm, pairs, paper, regdb, sysu, tiny"):
        load_config("sisu")


def test_a_wrong_backbone_is_one_line_that_names_the_choices():
    from fmcnet.models.build import build_model

    with pytest.raises(ConfigError) as caught:
        build_model(load_config(None, ["model.arch=resnet51"]).model, 5)
    said = str(caught.value)
    assert said.startswith("model.arch = 'resnet51': no such backbone; choose one of ")
    assert all(name in said for name in ("resnet18", "resnet34", "resnet50"))
    assert "\n" not in said


def test_a_wrong_backbone_is_said_before_data_are_read(tmp_path):
    train = ["train", "--config", "tiny", "--data", "/nowhere", "--out", tmp_path / "run"]
    assert "model.arch = 'resnet51'" in run(*train, "model.arch=resnet51", code=2).output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("old", [True, False])
def test_the_old_name_of_a_setting_is_understood(old, tmp_path):
    new = "tail" if old else "none"
    word = str(old).lower()
    assert ModelConfig(unit_features=old).normalization == new
    assert load_config({"model": {"unit_features": old}}).model.normalization == new
    (tmp_path / "old.yaml").write_text(f"model: {{unit_features: {word}}}\n")
    assert load_config(tmp_path / "old.yaml").model.normalization == new
    for name in ("sysu", "paper", None):  # the override wins, whatever the file says under the new name
        assert load_config(name, [f"model.unit_features={word}"]).model.normalization == new
    again = [f"model.unit_features={word}", "model.normalization=modality"]
    assert load_config("sysu", again).model.normalization == "modality"
    assert load_config("sysu", again[::-1]).model.normalization == new


def test_an_old_name_that_contradicts_the_new_one_is_refused():
    assert ModelConfig(unit_features=True, normalization="tail").normalization == "tail"
    with pytest.raises(ValueError, match=r"unit_features.*contradicts normalization=modality"):
        ModelConfig(unit_features=True, normalization="modality")


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_setting_is_read_with_its_neutral_value_and_refused_with_another(key, tmp_path):
    neutral, purpose = REMOVED[key]
    section, name = key.split(".")
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({section: {name: neutral}}))
    assert load_config(path) == Config()
    assert load_config({section: {name: neutral}}) == Config()
    with pytest.raises(ConfigError) as caught:
        load_config({section: {name: 0.3}})
    assert str(caught.value).count("\n") == 1  # what was read, then one fault
    for part in (f"{key} = 0.3", "was removed", purpose, "Delete it"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=rf"{key} = .*was removed"):
        load_config("tiny", [f"{key}=0.3"])
    assert load_config("tiny", [f"{key}={yaml.safe_dump(neutral).splitlines()[0]}"]) == load_config("tiny")


@pytest.mark.parametrize("name", shipped())
def test_shipped_files_hold_only_what_differs_and_round_trip(name, tmp_path):
    text = shipped()[name].read_text()
    tree, config = yaml.safe_load(text), load_config(name)
    plain = Config().model_dump(mode="json")
    same = [
        f"{s}.{key}" for s, values in tree.items() for key, value in values.items() if value == plain[s][key]
    ]
    assert same == []
    assert list(tree) == [section for section in plain if section in tree]
    for section, values in tree.items():
        assert list(values) == [key for key in plain[section] if key in values]
    head = [line for line in text.splitlines() if "#" in line]
    assert 1 <= len(head) <= 4
    assert text.startswith("\n".join(head))
    for comments in (True, False):
        (tmp_path / "again.yaml").write_text(config.to_yaml(comments=comments))
        assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(("section", "name", "field"), SETTINGS, ids=[f"{s}.{n}" for s, n, _ in SETTINGS])
def test_every_setting_is_explained(section, name, field):
    assert field.description, "a setting without a description"
    assert len(field.description) <= 130
    assert field.description.endswith((".", ")"))


def test_comments_explain_every_setting_in_short_lines(tmp_path):
    strange = ["model.pretrained='a # b: c'", "training.milestones=[]", "training.weight_decay=1e-7"]
    config = load_config(None, [*strange, "training.channels_last=yes"])
    text = config.to_yaml(comments=True)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= COLUMNS
    for _, name, field in SETTINGS:
        at = lines.index(f"  # {field.description}")
        assert lines[at + 1].startswith(f"  {name}: ")
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(tmp_path / "again.yaml") == config
    assert "#" not in Config().to_yaml()


@pytest.mark.parametrize("changes", [[], ["training.seed=1", "model.variant=base"]])
def test_the_command_prints_what_it_names(changes, tmp_path):
    (tmp_path / "printed.yaml").write_text(run("config", "sysu", *changes).stdout)
    assert load_config(tmp_path / "printed.yaml") == load_config("sysu", changes)
    assert run("config", tmp_path / "printed.yaml").stdout == run("config", "sysu", *changes).stdout


def test_the_command_lists_the_shipped_names():
    lines = run("config").stdout.splitlines()
    assert lines == [f"{name}: {purpose(name)}" for name in shipped()]
    assert (
        "tiny: A few seconds on a CPU: for tests and for trying the commands. Learns next to nothing."
        in lines
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sisu"], "no configuration file sisu: give a YAML file or one of generated, llcm"),
        (["sysu", "training.lr=fast"], "training.lr = 'fast'"),
        (["sysu", "training.nothing=1"], "training.nothing: no such setting"),
    ],
)
def test_a_mistake_in_the_command_is_said_with_exit_code_2(arguments, said):
    output = run("config", *arguments, code=2).output
    assert said in output
    assert len(output.splitlines()) == (1 if len(arguments) == 1 else 2)


def test_the_command_does_not_import_torch():
    code = "import sys; from fmcnet.__main__ import main; sys.argv[1:] = ['config', 'sysu']\n"
    code += "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "False\n")


def test_the_papers_numbers_are_the_defaults():
    losses = Config().losses
    assert (losses.rho1, losses.rho2, losses.rho3, losses.rho4) == (1.0, 0.7, 0.7, 0.7)
    assert (losses.alpha, losses.beta, losses.lambda1, losses.lambda2) == (2.0, 2.0, 0.5, 0.5)


def test_paper_settings_contain_nothing_of_ours_that_changes_an_equation():
    paper = load_config("paper")
    assert not paper.model.neck
    assert paper.model.arch == "resnet50"
    assert (paper.model.tail_blocks, paper.model.dim, paper.model.frozen_blocks) == (None, None, 0)
    assert paper.model.normalization == "none"
    assert not paper.model.fusion_normalize
    assert not paper.model.generator_residual
    assert paper.model.pooling == "avg"
    assert paper.losses.saturating
    assert paper.model.last_stride == 2
    assert paper.augment.channel == "none"
    # The departures that the file names: without them nothing is learnt or fused.
    assert paper.model.fusion == "softmax"
    assert (paper.losses.reduction, paper.losses.md, paper.losses.mc) == ("mean", 0.1, 0.1)
    assert paper.losses.label_smoothing == 0
    assert not paper.losses.detach_targets
