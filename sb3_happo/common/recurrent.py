"""Recurrent layers, the sequences of rows that they run over, and their states."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from sb3_happo.common.type_aliases import RNNStates, Sequences

RecurrentKind = Literal["lstm", "gru"]
# Largest share of padding, per row, that still saves time: PyTorch has fused kernels for sequences
# of equal length only
_MOST_PADDING = 0.5
_twice: ContextVar[bool] = ContextVar("twice", default=False)
_LAYERS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentLayers(nn.Module):
    """
    LSTM or GRU layers. The state is one tensor ``(batch, n_parts, n_layers, hidden_size)``: an LSTM
    has two parts, the hidden and the cell state, a GRU one.

    :param kind: "lstm" or "gru"
    :param input_size: Number of features that go in
    :param hidden_size: Number of features that come out, and size of the state of each layer
    :param n_layers: Number of layers
    :param input_layer_norm: Whether the features that go in are normalised
    :param kwargs: Further keyword arguments of ``nn.LSTM`` or ``nn.GRU``: ``bias`` and ``dropout``
    :raises ValueError: If the kind or a keyword argument is unknown
    """

    def __init__(
        self,
        kind: RecurrentKind,
        input_size: int,
        hidden_size: int = 256,
        n_layers: int = 1,
        input_layer_norm: bool = False,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if kind not in _LAYERS:
            raise ValueError(f"recurrent must be 'lstm', 'gru' or None, not {kind!r}")
        unknown = sorted(set(kwargs or {}) - {"bias", "dropout"})
        if unknown:
            raise ValueError(
                f"lstm_kwargs may hold 'bias' and 'dropout', not {unknown}: other arguments of "
                "PyTorch's layers do not fit a policy."
            )
        self.norm: nn.LayerNorm | None = nn.LayerNorm(input_size) if input_layer_norm else None
        # SB3's feature extractors may count in NumPy's integers, which PyTorch's layers refuse
        self.rnn = _LAYERS[kind](int(input_size), hidden_size, n_layers, **(kwargs or {}))
        self.hidden_size = hidden_size
        self.state_shape = (2 if kind == "lstm" else 1, n_layers, hidden_size)

    def initial_state(self, batch_size: int) -> th.Tensor:
        """
        :param batch_size: Number of sequences
        :return: State at the start of an episode: zeros,
            ``(batch_size, n_parts, n_layers, hidden_size)``
        """
        return next(self.rnn.parameters()).new_zeros(batch_size, *self.state_shape)

    def forward(self, features: th.Tensor, sequences: Sequences) -> tuple[th.Tensor, th.Tensor]:
        """
        :param features: Features in the order of ``sequences``, ``(n_rows, input_size)``
        :param sequences: Division of the rows into sequences
        :return: Output at each row, ``(n_rows, hidden_size)``; and the states after the last step,
            ``(n_sequences, n_parts, n_layers, hidden_size)``, which have a meaning only if all
            sequences are equally long
        """
        if self.norm is not None:
            features = self.norm(features)
        n_rows, n_steps = len(features), len(sequences.batch_sizes)
        n_sequences = len(sequences.states)
        # n_parts x (n_layers, n_sequences, hidden_size), as PyTorch's layers take them
        parts = sequences.states.permute(1, 2, 0, 3).contiguous().unbind()
        before = parts[0] if len(parts) == 1 else parts
        n_cells = n_steps * n_sequences
        if _twice.get() or n_cells > (1 + _MOST_PADDING) * n_rows:
            output, after = self._run_packed(features, sequences, before)
        elif n_cells == n_rows:
            output, after = self.rnn(features.reshape(n_steps, n_sequences, -1), before)
            output = output.flatten(end_dim=1)  # (n_steps, n_sequences, ...) -> (n_rows, ...)
        else:
            output, after = self._run_padded(features, sequences, before)
        states = th.stack([after] if len(parts) == 1 else after)
        # (n_parts, n_layers, n_sequences, hidden_size) -> (n_sequences, n_parts, n_layers, ...)
        return output, states.permute(2, 0, 1, 3)

    def _run_packed(
        self, features: th.Tensor, sequences: Sequences, before: Any
    ) -> tuple[th.Tensor, Any]:
        """
        :param features: Features in packed order, ``(n_rows, input_size)``
        :param sequences: Division of the rows into sequences
        :param before: States as PyTorch's layers take them
        :return: Output at each row, and the states after the last step of each sequence
        """
        with th.backends.cudnn.flags(enabled=th.backends.cudnn.enabled and not _twice.get()):
            packed, after = self.rnn(PackedSequence(features, sequences.batch_sizes), before)
        return packed.data, after

    def _run_padded(
        self, features: th.Tensor, sequences: Sequences, before: Any
    ) -> tuple[th.Tensor, Any]:
        """
        :param features: Features in packed order, ``(n_rows, input_size)``
        :param sequences: Division of the rows into sequences
        :param before: States as PyTorch's layers take them
        :return: Output at each row, and the states after the padding
        """
        n_steps, n_sequences = len(sequences.batch_sizes), len(sequences.states)
        steps = th.arange(n_steps).repeat_interleave(sequences.batch_sizes).to(features.device)
        cells = steps * n_sequences + owners_of(sequences)
        padded = features.new_zeros(n_steps * n_sequences, features.shape[1])
        padded = padded.index_copy(0, cells, features)
        output, after = self.rnn(padded.reshape(n_steps, n_sequences, -1), before)
        return output.flatten(end_dim=1)[cells], after


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """
    Recurrent layers compute within in a way that can be differentiated twice, which the fused
    kernels of oneDNN and cuDNN cannot be.
    """
    token = _twice.set(True)
    try:
        yield
    finally:
        _twice.reset(token)


class BatchedRecurrentLayers:
    """
    The recurrent layers of several agents, one step in one call. The weights are copied at
    construction.

    :param memories: Recurrent layers of the same form, at least one
    """

    def __init__(self, memories: Sequence[RecurrentLayers]) -> None:
        leader = memories[0]
        self.norm: tuple[th.Tensor, th.Tensor] | None = None
        if leader.norm is not None:
            norms = [memory.norm for memory in memories if memory.norm is not None]
            self.norm = _stack(norms, "weight"), _stack(norms, "bias")
        self.is_lstm = isinstance(leader.rnn, nn.LSTM)
        rnns = [memory.rnn for memory in memories]
        self.layers: list[tuple[th.Tensor, ...]] = []
        for layer in range(leader.rnn.num_layers):
            weights = _stack(rnns, f"weight_ih_l{layer}"), _stack(rnns, f"weight_hh_l{layer}")
            if leader.rnn.bias:
                biases = _stack(rnns, f"bias_ih_l{layer}"), _stack(rnns, f"bias_hh_l{layer}")
            else:
                biases = (weights[0].new_zeros(len(memories), 1, 1),) * 2
            self.layers.append((*weights, *biases))

    def __call__(self, x: th.Tensor, states: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: Features, ``(n_agents, n_envs, input_size)``
        :param states: States before the step,
            ``(n_agents, n_envs, n_parts, n_layers, hidden_size)``
        :return: Output, ``(n_agents, n_envs, hidden_size)``, and the states after the step
        """
        if self.norm is not None:
            weight, bias = self.norm
            x = F.layer_norm(x, x.shape[-1:]) * weight + bias
        after = th.empty_like(states)
        for layer, (w_ih, w_hh, b_ih, b_hh) in enumerate(self.layers):
            hidden = states[:, :, 0, layer]  # (n_agents, n_envs, hidden_size)
            inner, outer = th.baddbmm(b_ih, x, w_ih), th.baddbmm(b_hh, hidden, w_hh)
            if self.is_lstm:
                write, keep, new, read = (inner + outer).chunk(4, dim=2)
                cell = keep.sigmoid() * states[:, :, 1, layer] + write.sigmoid() * new.tanh()
                after[:, :, 1, layer] = cell
                x = read.sigmoid() * cell.tanh()
            else:
                reset, keep, new = inner.chunk(3, dim=2)
                reset_hidden, keep_hidden, new_hidden = outer.chunk(3, dim=2)
                new = (new + (reset + reset_hidden).sigmoid() * new_hidden).tanh()
                x = th.lerp(new, hidden, (keep + keep_hidden).sigmoid())
            after[:, :, 0, layer] = x
        return x, after


def _stack(modules: Sequence[nn.Module], name: str) -> th.Tensor:
    """
    :param modules: A module of each agent, of the same form
    :param name: Name of a parameter
    :return: The agents' matrices, ``(n_agents, in, out)``, or vectors, ``(n_agents, 1, out)``
    """
    values = th.stack([getattr(module, name).detach() for module in modules])
    return values.unsqueeze(1) if values.dim() == 2 else values.transpose(1, 2).contiguous()


# ---------------------------------------------------------------- sequences


def single_steps(states: th.Tensor) -> Sequences:
    """
    :param states: States before the step, ``(batch, ...)``
    :return: Sequences of one step, one for each row
    """
    return Sequences(th.tensor([len(states)]), states)


def pack(owners: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Bring rows into PyTorch's packed order (see :class:`~sb3_happo.common.type_aliases.Sequences`).

    :param owners: Number of the sequence that each row belongs to, ``(n_rows,)``; the rows of one
        sequence are in the order of time
    :return: Indices of the rows in packed order, ``(n_rows,)``; the number of sequences that have a
        t-th step, on the CPU, ``(max_length,)``; and the numbers of the sequences, longest first,
        ``(n_sequences,)``
    """
    present, owners, lengths = owners.unique(return_inverse=True, return_counts=True)
    longest_first = lengths.argsort(descending=True, stable=True)
    place = longest_first.argsort()
    by_owner = owners.argsort(stable=True)
    time = th.empty_like(owners)
    firsts = lengths.cumsum(0) - lengths
    positions = th.arange(len(owners), device=owners.device)
    time[by_owner] = positions - firsts.repeat_interleave(lengths)
    rows = (time * len(present) + place[owners]).argsort()
    return rows, time.bincount().cpu(), present[longest_first]


def owners_of(sequences: Sequences) -> th.Tensor:
    """
    :param sequences: Sequences
    :return: Index of the sequence that each row belongs to, in packed order, ``(n_rows,)``
    """
    sizes = sequences.batch_sizes
    firsts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return (th.arange(len(firsts)) - firsts).to(sequences.states.device)


def select(sequences: Sequences, kept: th.Tensor) -> tuple[th.Tensor, Sequences]:
    """
    Sequences without some of their rows. The states of the recurrent layers do not change at the
    rows that are left out.

    :param sequences: Sequences
    :param kept: Mask of the rows to keep, in packed order, bool ``(n_rows,)``
    :return: Indices of the kept rows, in the packed order of the new sequences; and the sequences
    """
    candidates = kept.nonzero().flatten()
    rows, batch_sizes, present = pack(owners_of(sequences)[candidates])
    return candidates[rows], Sequences(batch_sizes, sequences.states[present])


# ---------------------------------------------------------------- states of running environments


def select_states(rows: th.Tensor, states: th.Tensor, otherwise: th.Tensor) -> th.Tensor:
    """
    :param rows: Mask, bool ``(...)``
    :param states: States where the mask is true, ``(..., n_parts, n_layers, hidden_size)``
    :param otherwise: States elsewhere, of the same shape
    :return: States, of the same shape
    """
    return th.where(rows[..., None, None, None], states, otherwise)


def select_envs(states: RNNStates, envs: list[int]) -> RNNStates:
    """
    :param states: Hidden states of running environments
    :param envs: Indices of environments, ``(n,)``
    :return: Hidden states of these environments
    """
    pi = {agent: state[envs] for agent, state in states.pi.items()}
    return RNNStates(pi, None if states.vf is None else states.vf[envs])


def reset_states(states: RNNStates, starts: th.Tensor) -> RNNStates:
    """
    :param states: States of running environments
    :param starts: Mask of the environments that begin an episode, bool ``(n_envs,)``
    :return: States with zeros in these environments
    """

    def zero(state: th.Tensor) -> th.Tensor:
        return state.masked_fill(starts.reshape(-1, *[1] * (state.dim() - 1)), 0.0)

    pi = {agent: zero(state) for agent, state in states.pi.items()}
    return RNNStates(pi, None if states.vf is None else zero(states.vf))
