import torch

from bonemet_auto.model.anchors import grid_anchors


def test_anchors_sit_on_cell_centres_ordered_z_y_x_then_size():
    sizes = torch.tensor([[2.0, 4, 4], [1.0, 1, 1]])
    anchors = grid_anchors((2, 3, 2), (1, 2, 4), sizes)
    assert anchors.shape == (24, 6)
    table = anchors.view(2, 3, 2, 2, 6)
    centres = (table[..., :3] + table[..., 3:]) / 2
    for z, y, x in [(0, 0, 0), (1, 2, 1), (0, 1, 1)]:
        expected = [z + 0.5, 2 * y + 1.0, 4 * x + 2.0]
        assert centres[z, y, x].tolist() == [expected, expected]
    assert torch.equal((table[..., 3:] - table[..., :3])[1, 0, 1], sizes)


def test_one_anchor_on_one_cell():
    anchors = grid_anchors((1, 1, 1), (4, 4, 4), torch.tensor([[4.0, 4, 4]]))
    assert anchors.tolist() == [[0, 0, 0, 4, 4, 4]]


def test_no_sizes_or_no_cells_give_no_anchors():
    assert grid_anchors((2, 2, 2), (4, 4, 4), torch.zeros(0, 3)).shape == (0, 6)
    assert grid_anchors((0, 2, 2), (4, 4, 4), torch.ones(2, 3)).shape == (0, 6)
