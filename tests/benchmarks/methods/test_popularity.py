import torch
from methods.popularity import Popularity


def test_scores_are_the_degrees_for_everyone(small, others, check_served):
    method = Popularity()
    stored = method.fit(small)
    degree = torch.bincount(small.col, minlength=small.num_items).float()
    users = torch.tensor([3, 0, 6])
    assert torch.equal(
        method.scorer(stored, others)(users), degree.expand(3, small.num_items)
    )
    assert stored['degree'].dtype == torch.uint8
    check_served(method, stored, small)
