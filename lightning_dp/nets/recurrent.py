"""Recurrent layers from plain linear layers, so that every per-example gradient rule applies to them.

`nn.LSTM` and `nn.GRU` are clipped exactly too, but as one operator each, whose backward is run again unit by
unit. Here the weights of all steps are linear layers, whose uses the engines join over the steps.

Shapes: B rows, T tokens, I inputs, H hidden width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class RecurrentCell(nn.Module, ABC):
    """One step after another from a state of zeros: (B, T, I) to (B, T, H).

    Weights are drawn from U(−1/√H, 1/√H), as torch's recurrent layers have them.

    Args:
        input_size: I.
        hidden_size: H.
        kinds: vectors of width H that a step takes from input and state.
        biased_state: whether what is taken of the state has a bias of its own.

    Attributes:
        num_states: vectors of width H that a step hands to the next.
    """

    num_states = 1

    @abstractmethod
    def __init__(self, input_size: int, hidden_size: int, *, kinds: int, biased_state: bool) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.inputs = nn.Linear(input_size, kinds * hidden_size)
        self.state = nn.Linear(hidden_size, kinds * hidden_size, bias=biased_state)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, x: Tensor, *, reverse: bool = False) -> Tensor:
        """The states after each token, in the tokens' order; with `reverse` the last token comes first."""
        drawn = self.inputs(x)  # (B, T, kinds · H), of all steps at once
        state = tuple(x.new_zeros(len(x), self.hidden_size) for _ in range(self.num_states))
        found = []
        for step in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
            state = self.step(drawn[:, step], state)
            found.append(state[0])
        return torch.stack(found[::-1] if reverse else found, dim=1)  # (B, T, H)

    @abstractmethod
    def step(self, drawn: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The states (B, H) after a token, what it puts out first, from (B, kinds · H) of its input."""


class LSTM(RecurrentCell):
    """Hochreiter & Schmidhuber 1997 with a forget gate, as `torch.nn.LSTM` has it.

    Args:
        input_size: I.
        hidden_size: H.
    """

    num_states = 2

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, kinds=4, biased_state=False)

    def step(self, drawn: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        output, memory = state
        put, keep, new, show = (drawn + self.state(output)).chunk(4, dim=-1)  # each (B, H)
        memory = keep.sigmoid() * memory + put.sigmoid() * new.tanh()
        return show.sigmoid() * memory.tanh(), memory


class GRU(RecurrentCell):
    """Cho et al. 2014 (arXiv 1406.1078), as `torch.nn.GRU` has it.

    Args:
        input_size: I.
        hidden_size: H.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, kinds=3, biased_state=True)

    def step(self, drawn: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (output,) = state
        reset, update, new = drawn.chunk(3, dim=-1)  # each (B, H)
        of_reset, of_update, of_new = self.state(output).chunk(3, dim=-1)  # each (B, H)
        update = (update + of_update).sigmoid()
        new = (new + (reset + of_reset).sigmoid() * of_new).tanh()
        return ((1 - update) * new + update * output,)
