import pytest
import torch

from scenarium.core.errors import ScenariumError
from scenarium.training import backbones


@pytest.mark.parametrize("name", ["small", "resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_build(name):
    network = backbones.build(name, 3, 64).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    last = backbones.head(network)
    assert last.weight.shape[0] == 3


def test_transformers_take_the_size_that_is_asked_for():
    assert "vit_b_16" in backbones.names()
    with pytest.raises(ScenariumError, match=r"vit_b_16.*100"):
        backbones.build("vit_b_16", 3, 100)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ScenariumError) as caught:
        backbones.build("resnet55", 3, 64)
    assert "resnet50" in caught.value.hint()
    assert not {"googlenet", "inception_v3"} & set(backbones.names())


def test_weights_of_another_network_are_refused():
    network = backbones.build("small", 3, 28)
    with pytest.raises(ScenariumError) as caught:
        backbones.load_weights(network, dict(backbones.build("squeezenet1_1", 3, 64).state_dict()), "small")
    assert caught.value.code == "SCN-3306"


def test_the_head_may_have_other_classes(tmp_path):
    from safetensors.torch import save_file

    source, target = backbones.build("squeezenet1_1", 7, 64), backbones.build("squeezenet1_1", 2, 64)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    before = backbones.head(target).weight.clone()
    backbones.load_weights(target, backbones.read_file(tmp_path / "w.safetensors"), "squeezenet1_1")
    assert torch.equal(target.features[0].weight, source.features[0].weight)
    assert torch.equal(backbones.head(target).weight, before)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScenariumError) as caught:
        backbones.read_file(path)
    assert caught.value.code == "SCN-3305"


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    with pytest.raises(ScenariumError):
        backbones.read_file(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_no_state_dict(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ScenariumError, match="state dict"):
        backbones.read_file(tmp_path / "w.pth")
