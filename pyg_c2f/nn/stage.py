r"""What the models have in common in their two stages."""

from typing import Any, Self, get_args

import torch
from torch import Tensor

from pyg_c2f.typing import Stage


class Staged(torch.nn.Module):
    r"""A model whose fine anchors take part in the second of its stages only.

    The stage is part of the state, as it decides what the tables mean. What a subclass
    keeps of what it has computed is forgotten (``_forget``) when its state changes.
    """

    is_fine: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('is_fine', torch.tensor(False))
        self.register_load_state_dict_post_hook(Staged._after_load)

    def set_stage(self, stage: Stage) -> None:
        """Lets the fine anchors take part, or not.

        Raises:
            ValueError: If there is no such stage.
        """
        if stage not in get_args(Stage):
            raise ValueError(
                f"'{self.__class__.__name__}' expected a stage of {get_args(Stage)} "
                f'(got {stage})'
            )
        # Beside the buffer, which a branch would have to wait for on a GPU.
        self.stage: Stage = stage
        self.is_fine.fill_(stage == 'fine')

    def _forget(self) -> None:
        raise NotImplementedError

    def _after_load(self, _: Any) -> None:
        self._forget()
        self.set_stage('fine' if self.is_fine else 'coarse')

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)
