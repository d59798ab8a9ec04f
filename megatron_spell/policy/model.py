"""The policy as a Megatron GPTModel: own norms and core attention, positions by index, a head for trained tokens."""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_spell.bridge.inventory import chunk_prefix
from megatron_spell.bridge.megatron_names import table_name
from megatron_spell.bridge.rules import padded_vocab
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy.backends import Backend, Found, choose_backend
from megatron_spell.policy.layers import block_spec
from megatron_spell.policy.log_probs import TokenScores, score_tokens, share_of
from megatron_spell.policy.megatron_config import transformer_config
from megatron_spell.policy.microbatches import BinTensors
from megatron_spell.policy.rope import inverse_frequencies
from megatron_spell.policy.routing import tell_routers
from megatron_spell.policy.setup import refuse_layout

HEAD_CHUNK_BYTES = 256 * 2**20  # of float32 logits held at once by a rank


class IndexedRotary(torch.nn.Module):
    """Rotary angles of the positions given to `place`, instead of 0, 1, 2, ...

    Takes the place of `GPTModel.rotary_pos_emb`. The inverse frequencies are no buffer, so that no cast to bfloat16
    reaches them (a bfloat16 angle is wrong from position 256 on).
    """

    def __init__(self, inverse_frequencies: Tensor) -> None:
        super().__init__()
        self.inverse_frequencies = inverse_frequencies
        self.position_ids_T: Tensor | None = None

    def place(self, position_ids_1_T: Tensor) -> None:
        self.position_ids_T = position_ids_1_T[0]

    def get_rotary_seq_len(self, *_: object) -> int:
        return self.position_ids_T.shape[0]

    def forward(self, *_: object, **__: object) -> Tensor:
        """Angles [T, 1, 1, H], each half repeated, as Megatron's non-interleaved rotation wants them."""
        frequencies = self.inverse_frequencies.to(self.position_ids_T.device)
        angles = torch.outer(self.position_ids_T.float(), frequencies)
        return torch.cat((angles, angles), -1)[:, None, None, :]


class PolicyModel(GPTModel):
    """One pipeline stage, or chunk `chunk` of an interleaved one.

    Returns hidden states [T, 1, D]; the last of the pipeline returns the TokenScores of the trained tokens.
    """

    def __init__(
        self,
        config: TransformerConfig,
        shape: ModelShape,
        mesh: Mesh,
        temperature: float,
        backend: Backend,
        chunk: int = 0,
    ) -> None:
        pp = parallel_state.get_pipeline_model_parallel_rank()
        num_layers = len(mesh.chunk_layers(shape.num_layers, pp, chunk))
        super().__init__(
            config,
            block_spec(shape, num_layers, backend),
            padded_vocab(shape.vocab_size, mesh.tp),
            shape.max_positions,
            pre_process=(pp, chunk) == (0, 0),
            post_process=(pp, chunk) == (mesh.pp - 1, mesh.vpp - 1),
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
            vp_stage=chunk if mesh.vpp > 1 else None,
        )
        self.rotary_pos_emb = IndexedRotary(inverse_frequencies(shape))
        self.temperature = temperature
        self.real_vocab = shape.vocab_size
        if self.post_process and config.sequence_parallel:
            # The head gets the same hidden states on every rank (see _predicting), not each rank's share of them.
            self.output_layer.sequence_parallel, self.output_layer.allreduce_dgrad = False, True
        self._clear_padding_rows()

    def forward(self, bin_tensors: BinTensors) -> Tensor | TokenScores:
        self.rotary_pos_emb.place(bin_tensors.position_ids_1_T)
        tell_routers(self, bin_tensors)
        return super().forward(
            bin_tensors.token_ids_1_T,
            bin_tensors.position_ids_1_T,
            attention_mask=bin_tensors.segments_S_4,
            # Megatron hands these two to _postprocess untouched.
            labels=bin_tensors.labels_A,
            loss_mask=bin_tensors.predictors_A,
        )

    def _postprocess(self, hidden_states: Tensor, *_: object, labels=None, loss_mask=None, **__: object):
        """Only the hidden states that predict a trained token (`loss_mask`) go through the output layer."""
        if not self.post_process:
            return hidden_states
        columns = self.output_layer.output_size_per_partition
        return score_tokens(
            self._predicting(hidden_states, loss_mask),
            labels,
            self._logits,
            temperature=self.temperature,
            first_label=self._first_label(),
            group=self.tp_group,
            chunk=max(1, HEAD_CHUNK_BYTES // (4 * columns)),
        )

    def _predicting(self, hidden_states: Tensor, predictors_A: Tensor) -> Tensor:
        """[A, D] of [T, 1, D]. Under sequence parallelism each rank has T/tp tokens: only those asked for travel.

        The gradient that comes back is whole on every rank (the head sums it), so each keeps its own tokens' part.
        """
        if not self.config.sequence_parallel:
            return hidden_states[predictors_A, 0]
        num_local = hidden_states.shape[0]
        mine, local_A = share_of(predictors_A, self.tp_group.rank() * num_local, num_local)
        own = hidden_states[local_A, 0].masked_fill(~mine.unsqueeze(-1), 0.0)
        return reduce_from_tensor_model_parallel_region(own, group=self.tp_group)

    def _logits(self, hidden_A_D: Tensor) -> Tensor:
        """float32 [A, W/tp]; columns that only pad the vocabulary are -inf."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(hidden_A_D.unsqueeze(1), weight=weight)
        logits = logits.squeeze(1).float()
        if self._num_real_columns() == logits.shape[-1]:
            return logits
        columns = torch.arange(logits.shape[-1], device=logits.device)
        return logits.masked_fill(columns >= self._num_real_columns(), -torch.inf)

    def _first_label(self) -> int:
        return self.tp_group.rank() * self.output_layer.output_size_per_partition

    def _num_real_columns(self) -> int:
        columns = self.output_layer.output_size_per_partition
        return min(columns, max(0, self.real_vocab - self._first_label()))

    @torch.no_grad()
    def _clear_padding_rows(self) -> None:
        """No file fills the rows past the real vocabulary, and weights are made uninitialised."""
        rows = self.vocab_size // self.tp_group.size()
        first_padding = max(0, self.real_vocab - self.tp_group.rank() * rows)
        for name, parameter in self.named_parameters():
            if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
                parameter[first_padding:].zero_()


def build_model(shape: ModelShape, policy: PolicySection, temperature: float) -> list[PolicyModel]:
    """This rank's stage, its weights uninitialised: one model, or the chunks of an interleaved stage in their order.

    Raises PolicyError when the model cannot be trained in the layout.
    """
    refuse_layout(shape, policy)
    backend = choose_backend(policy.backend, policy.dtype, Found.here())
    config = transformer_config(shape, policy, backend)
    mesh = policy.mesh.mesh()
    return [PolicyModel(config, shape, mesh, temperature, backend, chunk) for chunk in range(mesh.vpp)]


def local_parameters(chunks: Sequence[PolicyModel], mesh: Mesh) -> dict[str, torch.nn.Parameter]:
    """All parameters of this rank by the names that the bridge's inventory gives them."""
    return {
        chunk_prefix(mesh, number) + table_name(name): parameter
        for number, chunk in enumerate(chunks)
        for name, parameter in chunk.named_parameters()
    }
