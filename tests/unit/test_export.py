"""The dense branch and all before it leave Python: `torch.export`, saved and loaded."""

import io

import pytest
import torch
from torch import nn

from bonemet_auto.model.mask_rcnn import MaskRCNN, build_model
from tests.unit.training_fakes import make_network


class DenseProbability(nn.Module):
    """Windows (N, 1, Z, Y, X) to lesion probability (N, Z, Y, X)."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.look(images).probability[:, 0]


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("neck", ["fusion", "fpn"])
def test_the_exported_dense_trunk_answers_as_the_network(neck):
    torch.manual_seed(0)
    network = DenseProbability(build_model(make_network(neck=neck)).eval())
    images = torch.randn(2, 1, 8, 16, 16)
    file = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(network, (images,)), file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for seed in range(3):
            other = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(loaded(other), network(other), rtol=0, atol=1e-4)
