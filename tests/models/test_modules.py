"""The wiring: shapes, parameter sharing, variants, the single-modality path, torchvision's key names."""

from __future__ import annotations

import math

import pytest
import torch

from fmcnet.config import ModelConfig, load_config
from fmcnet.errors import CheckpointError, ConfigError
from fmcnet.models.backbones import make_backbone
from fmcnet.models.build import build_model, last_stride_matters
from fmcnet.models.decomposition import GeM, Stem, Tail
from fmcnet.models.fmcnet import VARIANTS
from fmcnet.models.pretrained import load_pretrained
from fmcnet.types import Modality

CLASSES = 7


def tiny(variant="full", **changes):
    torch.manual_seed(0)
    return build_model(ModelConfig(variant=variant, arch="resnet18", width=8, **changes), CLASSES)


def batch(n=4):
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(0, 256, (n, 3, 64, 32), generator=generator, dtype=torch.uint8) for _ in range(2))


@pytest.mark.parametrize(("variant", "width"), [("base", 64), ("sfd", 64), ("fmc", 192), ("full", 128)])
@pytest.mark.parametrize("neck", [True, False])
def test_every_feature_and_score_by_variant(variant, width, neck):
    model = tiny(variant, neck=neck)
    assert model.variant == variant
    for mode in (True, False):
        out = model.train(mode)(*batch())
        for half in out:
            assert half.shared.shape == (4, 64)
            assert half.shared_scores.shape == (4, CLASSES)
            assert half.embedding.shape == (4, width)
            has = {
                "specific": variant != "base",
                "specific_scores": variant != "base",
                "generated": variant in ("fmc", "full"),
                "generated_scores": variant in ("fmc", "full"),
                "fused": variant == "full",
                "fused_scores": variant == "full",
            }
            assert {name: getattr(half, name) is not None for name in has} == has
    assert out.of(Modality.INFRARED) is out.infrared


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_modality_path_equals_the_whole_model(variant):
    model = tiny(variant).eval()
    visible, infrared = batch()
    whole = model(visible, infrared)
    assert torch.allclose(model.embed(visible, Modality.VISIBLE), whole.visible.embedding, atol=1e-5)
    assert torch.allclose(model.embed(infrared, Modality.INFRARED), whole.infrared.embedding, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "runs"),
    [
        ("base", {"stem_visible", "shared"}),
        ("sfd", {"stem_visible", "shared"}),
        ("fmc", {"stem_visible", "shared", "specific_visible", "to_infrared"}),
        ("full", {"stem_visible", "shared", "specific_visible", "to_infrared"}),
    ],
)
def test_single_modality_path_computes_nothing_it_does_not_need(variant, runs):
    model, seen = tiny(variant).eval(), set()
    for parent in (model.decomposition, model.compensation):
        for name, child in parent.named_children() if parent else ():
            child.register_forward_hook(lambda *_, name=name: seen.add(name))
    model.embed(next(batch()), Modality.VISIBLE)
    assert seen == runs


def test_equation_1_who_shares_what():
    """E_sh is one module for both modalities; the stems and the specific tails are not."""
    sfd = tiny().decomposition
    assert torch.equal(
        sfd.stem_visible.conv1.weight, sfd.stem_infrared.conv1.weight
    )  # equal at the start only
    for apart in (sfd.stem_infrared, sfd.specific_infrared):
        for parameter in apart.parameters():
            parameter.data = torch.randn_like(parameter) * 0.1 if parameter.ndim > 1 else parameter.data
    visible, infrared = (x.float() / 255 for x in batch())
    out = sfd.eval()(visible, infrared)
    swapped = sfd(infrared, visible)
    assert not torch.allclose(out[0].shared, swapped[1].shared, atol=1e-3)  # other stems
    sfd.stem_infrared.load_state_dict(sfd.stem_visible.state_dict())
    out, swapped = sfd(visible, infrared), sfd(infrared, visible)
    assert torch.allclose(out[0].shared, swapped[1].shared, atol=1e-5)  # same E_sh
    assert not torch.allclose(out[0].specific, swapped[1].specific, atol=1e-3)  # other E_sp


def test_equations_15_and_16():
    fusion = tiny().fusion
    with torch.no_grad():
        fusion.w1.fill_(0.25)
        fusion.w2.fill_(2.0)
    shared, specific, generated = torch.randn(3, 5, 64)
    expected = torch.cat([shared, 0.25 * specific + 2.0 * generated], dim=1)
    assert torch.equal(fusion(shared, specific, generated), expected)
    fusion(shared, specific, generated).sum().backward()
    assert fusion.w1.grad is not None
    assert fusion.w2.grad is not None


def test_equation_11_generator_depends_on_the_image_alone():
    """The compensated feature of an image does not change with the rest of the batch."""
    model = tiny().eval()
    visible, infrared = batch()
    together = model(visible, infrared).visible.generated
    alone = model(visible[:1], infrared[:1]).visible.generated
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_equation_12_discriminator_is_one_layer_that_gives_the_logit():
    discriminator = tiny().compensation.judge_infrared
    assert sum(p.numel() for p in discriminator.parameters()) == 64 + 1
    x = torch.randn(3, 64)
    assert torch.allclose(discriminator(x), x @ discriminator.linear.weight[0] + discriminator.linear.bias)


def test_concatenated_descriptor_has_the_visible_part_first_for_both_modalities():
    model = tiny("fmc", neck=False).eval()
    out = model(*batch())
    assert torch.equal(
        out.visible.embedding, torch.cat([out.visible.shared, out.visible.specific, out.visible.generated], 1)
    )
    assert torch.equal(
        out.infrared.embedding,
        torch.cat([out.infrared.shared, out.infrared.generated, out.infrared.specific], 1),
    )


@pytest.mark.parametrize(("arch", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_published_sizes(arch, dim):
    backbone = make_backbone(arch, last_stride=2)
    stem, tail = Stem(backbone), Tail(backbone)
    assert tail.dim == dim
    parameters = sum(p.numel() for m in (stem, tail) for p in m.parameters())
    # torchvision's counts with the 1000-class layer, which is dim * 1000 + 1000
    published = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}[arch]
    assert parameters == published - (dim * 1000 + 1000)


@pytest.mark.parametrize(
    ("config", "settings", "matters"),
    [("tiny", [], True), ("paper", [], True), ("generated", [], False), ("pairs", [], False),
     ("paper", ["model.tail_blocks=1"], False), ("generated", ["model.tail_blocks=3"], True)],
)  # fmt: skip
def test_whether_the_last_stride_changes_the_network_is_known(config, settings, matters):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert last_stride_matters(load_config(config, settings).model) is matters
    assert torch.equal(torch.random.get_rng_state(), before)


def test_last_stride_keeps_the_map_large():
    x = torch.zeros(1, 16, 8, 4)
    for stride, size in ((1, (4, 2)), (2, (2, 1))):
        assert Tail(make_backbone("resnet18", 8, stride)).eval().maps(x).shape[2:] == size


def torchvision_names(model):
    """One state dict with torchvision's names, as an ImageNet file would hold."""
    sfd = model.decomposition
    state = {
        k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in sfd.stem_visible.state_dict().items()
    }
    state |= {k: torch.randn_like(v) for k, v in sfd.shared.state_dict().items() if v.is_floating_point()}
    return state | {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}


def test_one_imagenet_file_fills_both_stems_and_all_tails(tmp_path):
    state = torchvision_names(tiny())
    torch.save(state, tmp_path / "resnet.pth")
    model = tiny()
    load_pretrained(model, str(tmp_path / "resnet.pth"), "resnet18")
    sfd = model.decomposition
    for stem in (sfd.stem_visible, sfd.stem_infrared):
        assert torch.equal(stem.conv1.weight, state["conv1.weight"])
        assert torch.equal(stem.layer2[1].bn2.running_var, state["layer2.1.bn2.running_var"])
    for tail in (sfd.shared, sfd.specific_visible, sfd.specific_infrared):
        assert torch.equal(tail.layer4[0].downsample[0].weight, state["layer4.0.downsample.0.weight"])


def test_weights_of_another_network_are_refused(tmp_path):
    state = torchvision_names(tiny())
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"missing layer1\.0\.conv1\.weight"):
        load_pretrained(tiny(), str(tmp_path / "cut.pth"), "resnet18")
    torch.save(
        torchvision_names(build_model(ModelConfig(arch="resnet18", width=4), 3)), tmp_path / "thin.pth"
    )
    with pytest.raises(CheckpointError, match="in the file"):
        load_pretrained(tiny(), str(tmp_path / "thin.pth"), "resnet18")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a readable file of weights"):
        load_pretrained(tiny(), str(tmp_path / "text.pth"), "resnet18")
    with pytest.raises(CheckpointError, match="no file"):
        load_pretrained(tiny(), str(tmp_path / "absent.pth"), "resnet18")


def test_random_initialisation_says_so(caplog):
    load_pretrained(tiny(), None, "resnet18")
    assert "RANDOM INITIALISATION" in caplog.text


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"model\.arch = 'vgg': no such backbone; choose one of .*resnet50"):
        make_backbone("vgg")
    with pytest.raises(ConfigError, match="unknown pooling"):
        Tail(make_backbone("resnet18"), pooling="max")


def test_the_single_stream_baseline_has_one_stem_and_saves():
    from fmcnet.config import load_config

    model = tiny("base", single_stream=True)
    assert model.decomposition.stem_visible is model.decomposition.stem_infrared
    twice = tiny("base")
    saved = sum(p.numel() for p in twice.parameters()) - sum(p.numel() for p in model.parameters())
    assert saved == sum(p.numel() for p in twice.decomposition.stem_infrared.parameters())
    with pytest.raises(ConfigError, match="single_stream is for"):
        load_config(None, ["model.single_stream=true"])


def test_images_of_another_kind_are_refused_and_words_for_the_modality_do():
    model = build_model(ModelConfig(arch="resnet18", width=2, variant="full"), 5).eval()
    images = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8)
    for wrong, said in (
        (images.long(), "got torch.int64"),
        (images[:, :1], r"\(B, 3, H, W\), got \(2, 1, 32, 16\)"),
        (images[0], r"got \(3, 32, 16\)"),
        (images.float(), "0..1 and not normalised, got 0 to 255"),
        (images / 255 * torch.nan, "not normalised, got nan to nan"),
        ((images / 255 - 0.45) / 0.22, r"not normalised, got -2\.04\d to 2\.5"),
    ):
        with pytest.raises(ValueError, match=said):
            model.embed(wrong, Modality.VISIBLE)
    with torch.no_grad():
        assert torch.equal(model.embed(images, "ir"), model.embed(images, Modality.INFRARED))
        torch.testing.assert_close(model.embed(images / 255, "ir"), model.embed(images, "ir"))
        assert model.embed(images[:0] / 255, "ir").shape[0] == 0
        apart = torch.func.vmap(lambda one: model.embed(one[None], "ir")[0])(images / 255)
        torch.testing.assert_close(apart, model.embed(images, "ir"))
        assert torch.equal(model.features(images, "rgb")[0], model.features(images, Modality.VISIBLE)[0])


def test_normalised_images_are_refused_in_the_first_batch_of_a_training():
    """The model normalises, so a loop that does it too would train on images that no search gives."""
    images = torch.rand(4, 3, 32, 16)
    for halves in ((images, images * 255), ((images - 0.45) / 0.22, images)):
        model = build_model(ModelConfig(arch="resnet18", width=2, variant="base"), 5)
        with pytest.raises(ValueError, match="and not normalised"):
            model(*halves)
    model = build_model(ModelConfig(arch="resnet18", width=2, variant="base"), 5)
    for factor in (1, 5):  # later ones are not looked at, which would make training wait for a GPU
        model(images, images * factor)
    with pytest.raises(ValueError, match="and not normalised"):
        model.eval()(images, images * 5)


@pytest.mark.parametrize("half_weights", [True, False])
def test_gem_of_large_half_precision_values_is_finite(half_weights):
    """41 cubed is beyond float16; without a GPU autocast leaves powers in half precision."""
    maps = torch.rand(2, 3, 4, 2, generator=torch.Generator().manual_seed(0)).mul(200).half()
    pool = GeM().half() if half_weights else GeM()
    with torch.autocast("cpu", torch.float16, enabled=not half_weights):
        found = pool(maps)
    assert found.dtype == (torch.float16 if half_weights else torch.float32)
    torch.testing.assert_close(found.float(), GeM()(maps.float()), rtol=1e-3, atol=1e-3)


def test_a_model_of_mean_0_takes_normalised_images_and_others_none():
    images = torch.full((2, 3, 32, 16), -2.0)
    for training in (True, False):
        model = tiny().train(training)
        with pytest.raises(ValueError, match=r"must be 0\.\.1 and not normalised, got -2 to -2"):
            model(images, images)
        model.mean.zero_()
        model(images, images)
        with pytest.raises(ValueError, match="got nan to nan"):
            tiny().train(training)(images * math.nan, images)
