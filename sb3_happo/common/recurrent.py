"""RecurrentLayers: how a rollout's rows follow each other in time, and the recurrent layers that run over them."""

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
# Cells of padding, per row, that cost less than they spare: PyTorch has fused kernels for sequences of equal length
_MOST_PADDING = 0.5
_twice: ContextVar[bool] = ContextVar("twice", default=False)
_LAYERS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentLayers(nn.Module):
    """
    LSTM or GRU layers. Their state is one tensor ``(batch, n_parts, n_layers, hidden_size)``: an LSTM's hidden and cell
    states are two parts, a GRU has one.

    :param kind: "lstm" or "gru"
    :param input_size: Features that go in
    :param hidden_size: Features that come out, and size of the state of each layer
    :param n_layers: Layers one above the other
    :param input_layer_norm: Layer normalisation of the features that go in
    :param kwargs: Further keyword arguments of ``nn.LSTM`` or ``nn.GRU``: ``bias`` and ``dropout``
    :raises ValueError: If the kind is unknown, or a keyword argument has no meaning here
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
                f"lstm_kwargs may hold 'bias' and 'dropout', not {unknown}; nothing else fits a policy's memory."
            )
        self.norm: nn.LayerNorm | None = nn.LayerNorm(input_size) if input_layer_norm else None
        self.rnn = _LAYERS[kind](
            int(input_size), hidden_size, n_layers, **(kwargs or {})
        )  # SB3 may count in NumPy's integers
        self.hidden_size = hidden_size
        self.state_shape = (2 if kind == "lstm" else 1, n_layers, hidden_size)

    def initial_state(self, batch_size: int) -> th.Tensor:
        """
        :param batch_size: Number of sequences
        :return: What is remembered at the start of an episode: zeros, ``(batch_size, n_parts, n_layers, hidden_size)``
        """
        return next(self.rnn.parameters()).new_zeros(batch_size, *self.state_shape)

    def forward(self, features: th.Tensor, sequences: Sequences) -> tuple[th.Tensor, th.Tensor]:
        """
        :param features: ``(n_rows, input_size)``, in the order of ``sequences``
        :param sequences: What follows what
        :return: Output at each row, ``(n_rows, hidden_size)``, and, if the sequences are equally long, the states after each,
            ``(n_sequences, n_parts, n_layers, hidden_size)``
        """
        if self.norm is not None:
            features = self.norm(features)
        n_rows, n_steps, n_sequences = (
            len(features),
            len(sequences.batch_sizes),
            len(sequences.states),
        )
        parts = (
            sequences.states.permute(1, 2, 0, 3).contiguous().unbind()
        )  # each (n_layers, n_sequences, hidden_size)
        before = parts[0] if len(parts) == 1 else parts
        if _twice.get() or n_steps * n_sequences > (1 + _MOST_PADDING) * n_rows:
            with th.backends.cudnn.flags(enabled=th.backends.cudnn.enabled and not _twice.get()):
                packed, after = self.rnn(PackedSequence(features, sequences.batch_sizes), before)
            output = packed.data
        elif n_steps * n_sequences == n_rows:
            output, after = self.rnn(features.reshape(n_steps, n_sequences, -1), before)
            output = output.flatten(end_dim=1)
        else:
            steps = th.arange(n_steps).repeat_interleave(sequences.batch_sizes).to(features.device)
            cells = steps * n_sequences + owners_of(sequences)
            padded = features.new_zeros(n_steps * n_sequences, features.shape[1]).index_copy(
                0, cells, features
            )
            output, after = self.rnn(padded.reshape(n_steps, n_sequences, -1), before)
            output = output.flatten(end_dim=1)[cells]
        states = th.stack(
            [after] if len(parts) == 1 else after
        )  # (n_parts, n_layers, n_sequences, hidden_size)
        return output, states.permute(2, 0, 1, 3)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """What memories compute within can be differentiated twice, unlike what the fused kernels of oneDNN and cuDNN do."""
    token = _twice.set(True)
    try:
        yield
    finally:
        _twice.reset(token)


class BatchedRecurrentLayers:
    """
    The memories of several agents, one step at a time in one call. A snapshot of their weights.

    :param memories: Of the same form, at least one
    """

    def __init__(self, memories: Sequence[RecurrentLayers]) -> None:
        def stack(name: str) -> th.Tensor:
            """Weights ``(n_agents, in, out)`` or biases ``(n_agents, 1, out)`` of all."""
            values = th.stack([getattr(memory.rnn, name).detach() for memory in memories])
            return values.unsqueeze(1) if values.dim() == 2 else values.transpose(1, 2).contiguous()

        leader = memories[0]
        self.norm: tuple[th.Tensor, th.Tensor] | None = None
        if leader.norm is not None:
            norms = [memory.norm for memory in memories if memory.norm is not None]
            weight, bias = (
                th.stack([getattr(norm, name).detach() for norm in norms])
                for name in ("weight", "bias")
            )
            self.norm = weight.unsqueeze(1), bias.unsqueeze(1)
        self.is_lstm = isinstance(leader.rnn, nn.LSTM)
        self.layers: list[tuple[th.Tensor, ...]] = []
        for layer in range(leader.rnn.num_layers):
            weights = stack(f"weight_ih_l{layer}"), stack(f"weight_hh_l{layer}")
            if leader.rnn.bias:
                biases = stack(f"bias_ih_l{layer}"), stack(f"bias_hh_l{layer}")
            else:
                biases = (weights[0].new_zeros(len(memories), 1, 1),) * 2
            self.layers.append((*weights, *biases))

    def __call__(self, x: th.Tensor, states: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: ``(n_agents, n_envs, input_size)``
        :param states: ``(n_agents, n_envs, n_parts, n_layers, hidden_size)``
        :return: Output ``(n_agents, n_envs, hidden_size)`` and the next states
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
                (reset, keep, new), (reset_hidden, keep_hidden, new_hidden) = (
                    inner.chunk(3, dim=2),
                    outer.chunk(3, dim=2),
                )
                new = (new + (reset + reset_hidden).sigmoid() * new_hidden).tanh()
                x = th.lerp(new, hidden, (keep + keep_hidden).sigmoid())
            after[:, :, 0, layer] = x
        return x, after


# ---------------------------------------------------------------- sequences


def single_steps(states: th.Tensor) -> Sequences:
    """
    :param states: Before the step, ``(batch, ...)``
    :return: One step of each sequence: rows are the sequences themselves
    """
    return Sequences(th.tensor([len(states)]), states)


def pack(owners: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Bring rows into PyTorch's packed order (see :class:`~sb3_happo.common.type_aliases.Sequences`).

    :param owners: Which sequence a row belongs to, ``(n_rows,)``; rows of one sequence stand in the order of time
    :return: The rows in packed order ``(n_rows,)``, how many sequences have a t-th step ``(max_length,)`` on the CPU, and the
        sequences, longest first, ``(n_sequences,)``
    """
    present, owners, lengths = owners.unique(return_inverse=True, return_counts=True)
    longest_first = lengths.argsort(descending=True, stable=True)
    place = longest_first.argsort()
    by_owner = owners.argsort(stable=True)
    time = th.empty_like(owners)
    firsts = lengths.cumsum(0) - lengths
    time[by_owner] = th.arange(len(owners), device=owners.device) - firsts.repeat_interleave(
        lengths
    )
    rows = (time * len(present) + place[owners]).argsort()
    return rows, time.bincount().cpu(), present[longest_first]


def owners_of(sequences: Sequences) -> th.Tensor:
    """
    :param sequences: In packed order
    :return: Which of them each row belongs to, ``(n_rows,)``
    """
    sizes = sequences.batch_sizes
    firsts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return (th.arange(len(firsts)) - firsts).to(sequences.states.device)


def select(sequences: Sequences, kept: th.Tensor) -> tuple[th.Tensor, Sequences]:
    """
    Sequences without some of their rows. What is left out has not happened: the memory passes over it unchanged.

    :param sequences: In packed order
    :param kept: Which rows to keep, bool ``(n_rows,)``
    :return: The kept rows, in packed order, and what is left of the sequences
    """
    candidates = kept.nonzero().flatten()
    rows, batch_sizes, present = pack(owners_of(sequences)[candidates])
    return candidates[rows], Sequences(batch_sizes, sequences.states[present])


# ---------------------------------------------------------------- states of running environments


def select_states(rows: th.Tensor, states: th.Tensor, otherwise: th.Tensor) -> th.Tensor:
    """
    :param rows: Bool ``(...)``
    :param states: ``(..., n_parts, n_layers, hidden_size)``
    :param otherwise: Of the same shape
    :return: ``states`` where ``rows``, else ``otherwise``
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
    :param states: Of running environments
    :param starts: Which of them begin an episode, bool ``(n_envs,)``
    :return: The same with nothing remembered there
    """

    def zero(state: th.Tensor) -> th.Tensor:
        return state.masked_fill(starts.reshape(-1, *[1] * (state.dim() - 1)), 0.0)

    pi = {agent: zero(state) for agent, state in states.pi.items()}
    return RNNStates(pi, None if states.vf is None else zero(states.vf))
