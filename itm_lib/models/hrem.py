"""HREM: hierarchical relations, among the fragments of one sample and among the samples of a batch, to learn better embeddings.

Fu, Mao, Song, Zhang: Learning Semantic Relationship among Instances for Image-Text Matching, CVPR 2023.

Shapes: I images of R regions, C captions of W words, joint dimension d. A batch has N = I + C nodes, images first. Symbols of
the paper and their names here:

================================  ========================  =============================================================
r_m, c_n                          fragments (n,F,d)         regions and words, not normalised
R' = self-attention(R)            FragmentRelations         fragment level: a transformer layer over one sample's fragments
v = l2(β top(R) + (1-β) mean(R')) embedding (n,d)           ``top``: mean of the ``pool_top`` largest values; u for captions
A, intra-modal                    nearest                   1 where j is among the nearest of i, by v_i · v_j; i is its own
S, intra-modal                    closeness                 exp(-‖v_i - v_j‖ / σ); exactly 1 on the diagonal
p, q, inter-modal                 match_fragments           mean and K largest of the fragments' best matches
A, inter-modal                    nearest                   1 where j is among the nearest of i, by p
S, inter-modal                    cross_relevance           MLP(q) + p, an MLP for each direction
softmax(QKᵀ/√d_k + λS) V          Attend, graph_bias        instance level: attention among the nodes that A connects
v~, u~                            enhance                   l2-normalised nodes after the graph
L_reg                             regulariser               KL(softmax S_inter ‖ softmax exp(-‖v - u‖ / σ)), both directions
================================  ========================  =============================================================

``mechanism="fusion"``: one self-attention over all N nodes. ``"standalone"``: in each modality cross-attention to the other
one under the inter-modal blocks, then self-attention under the intra-modal blocks, then the feed-forward network. ``"none"``:
no instance level, the model that the ablations start from. The graph sees the training batch alone and teaches the embeddings
through the loss L(v,u) + L(v,u~) + L(v~,u) + L(v~,u~) + ``reg_weight`` L_reg. At test time nothing interacts: S = v · u.

Which relations there are: ``relations`` ("all", "intra", "inter"), ``connection`` (A; without it everything is connected),
``relevance`` (S; without it the bias is 0), ``relation_weight`` (λ).

The inter-modal relations come from one product of all regions with all words, without gradient: only the MLPs learn from them.
The embeddings learn through v~ and u~, as nodes and, in the intra-modal S, as distances.

Differences between the released code, the paper and the default, each with its switch; ``compat="official"`` sets those marked *:

1. ``masked_batch_norm``*: BatchNorm's statistics come from true regions; there, from padded ones too.
2. ``mask_adjacency``*: padded regions and words are left out of the relations, and missing entries of q are 0. There, all
   region slots take part, and captions shorter than K words are filled up with padding.
3. ``reduction``*: the loss is a sum over the batch there. Here it is the mean, and the regulariser is divided by the batch
   too, so that the two keep their balance.
4. ``matching_loss``: negatives sampled by distance, in both; the paper's hardest negatives are ``"hinge"``.
5. ``mechanism``: only the fusion mechanism was released.
6. ‖v_i - v_i‖ is exactly 0; there, torch.cdist rounds it to as much as 7e-4 for more than 25 samples.
7. An anchor without a candidate adds 0; there, one such anchor empties its direction of the loss.
8. A sample of one fragment is pooled by itself; there, every later sample of its batch is pooled by its maximum from then on.
9. Distances are not squared, σ = 1, and the connection ranks by p, not by S: as released.
10. The released code chooses its checkpoint on the test split; here nothing does.

Distances are drawn by their density on a sphere of ``sampling_dim`` dimensions, 512 in the released code whatever d is. Above
the dimension that the embeddings really fill, nearly always the rarest distance is drawn: the nearest negative, or the farthest
below the cutoff. Small models then start better with less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from itm_lib.data.dataset import Batch
from itm_lib.files import InputError
from itm_lib.losses import collapsed_triplet, draw_negatives, hinge_loss, matched_pairs, positive_mask, sampled_triplet_loss
from itm_lib.models.base import Encoding
from itm_lib.models.dropping import drop_states
from itm_lib.models.encoders import Projection, RegionProjection, WordGRU
from itm_lib.models.hinge import HingeModel
from itm_lib.models.layers import BatchNorm1d, full_mask, l2norm, masked_mean, score_dtype
from itm_lib.models.pretrained import BertWords, WordsConfig

TINY = 1e-12        # lengths are clamped here
# Bytes of a block of the product of fragments, and of what follows it, which is faster in a CPU's cache.
CPU_BLOCKS, DEVICE_BLOCKS = (2**25, 2**20), (2**28, 2**28)


class HremConfig(WordsConfig):
    """Settings of HREM. The defaults are the released model's on Flickr30K; on COCO relation_weight=1.5, distance_cutoff=1.9.

    ``relation_warmup``: training steps without the instance level. ``warmup_epochs`` is of the hinge loss.
    """

    official: ClassVar[dict[str, Any]] = {"reduction": "sum", "masked_batch_norm": False, "mask_adjacency": False}

    image_projection: Projection = "linear"
    image_norm: bool = True
    text_norm: bool = True
    pool_top: PositiveInt = 2                # 1: the paper's maximum
    beta: float = Field(0.8, ge=0, le=1)
    num_heads: PositiveInt = 16
    dropout: float = Field(0.1, ge=0, lt=1)
    region_dropping: float = Field(0.2, ge=0, lt=1)
    masked_batch_norm: bool = True
    mask_adjacency: bool = True
    mechanism: Literal["fusion", "standalone", "none"] = "fusion"
    num_layers: PositiveInt = 1
    relations: Literal["all", "intra", "inter"] = "all"
    connection: bool = True
    relevance: bool = True
    relation_weight: NonNegativeFloat = 1.0  # λ
    threshold: float = Field(0.5, gt=0, le=1)  # the share of a row that counts as near
    topk: PositiveInt = 10                   # K, the size of a relation vector q
    match_norm: bool = True                  # LeakyReLU and division by the length before fragments are matched, as in SCAN
    relevance_residual: bool = True          # False: inter-modal S = MLP(q), without + p
    sigma: PositiveFloat = 1.0
    normalise_nodes: bool = True
    matching_loss: Literal["distance_weighted", "hinge"] = "distance_weighted"
    distance_cutoff: PositiveFloat = 1.7
    sampling_dim: int = Field(512, ge=4)
    cross_loss: bool = True                  # False: L(v,u) + L(v~,u~)
    reg_weight: NonNegativeFloat = 10.0
    relation_warmup: NonNegativeInt = 0
    graph_lr_scale: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _together(self) -> HremConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")
        return self

    @property
    def learns_relevance(self) -> bool:
        """Whether there is a graph with the inter-modal S, which has parameters."""
        return self.mechanism != "none" and self.relevance and self.relations != "intra"


# --- Fragment level: one sample alone -----------------------------------------------------------------------------------


def top_mean(x: Tensor, mask: Tensor, count: int) -> Tensor:
    """Mean of the ``count`` largest values of each dimension over the true fragments: (n,F,d), mask (n,F) -> (n,d).

    >>> top_mean(torch.tensor([[[1.0], [4.0], [2.0]]]), torch.tensor([[True, True, True]]), 2)
    tensor([[3.]])
    """
    largest = x.masked_fill(~mask[..., None], -torch.inf).topk(min(count, x.shape[1]), dim=1).values
    found = mask.sum(1).clamp(max=count)
    missing = torch.arange(largest.shape[1], device=x.device) >= found[:, None]
    return largest.masked_fill(missing[..., None], 0).sum(1) / found[:, None]


class Attend(nn.Module):
    """Receivers attend to senders; residual and LayerNorm: x ← LN(x + MHA(x, senders)).

    Batched (n,F,d) with ``padding`` (n,G), True on padding; or nodes (n,d) with ``bias`` (n,m) added to the logits of all heads.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)

    def forward(self, receivers: Tensor, senders: Tensor, padding: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        messages, _ = self.attention(receivers, senders, senders, padding, need_weights=False, attn_mask=bias)
        return self.norm(receivers + self.dropout(messages))


class FeedForward(nn.Module):
    """x ← LN(x + W₂ ReLU(W₁ x)), as wide inside as outside."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.second(self.dropout(torch.relu(self.first(x))))))


class FragmentRelations(nn.Module):
    """Fragments (n,F,d) with mask (n,F) -> one vector a sample (n,d), not normalised."""

    def __init__(self, config: HremConfig):
        super().__init__()
        self.pool_top, self.beta = config.pool_top, config.beta
        self.attend = Attend(config.embed_dim, config.num_heads, config.dropout)
        self.feed = FeedForward(config.embed_dim, config.dropout)

    def forward(self, fragments: Tensor, mask: Tensor) -> Tensor:
        related = self.feed(self.attend(fragments, fragments, padding=~mask))
        return self.beta * top_mean(fragments, mask, self.pool_top) + (1 - self.beta) * masked_mean(related, mask)


class RegionEncoder(nn.Module):
    """x = W f + b + W₂ ReLU(BN(W₁ f + b₁)) + b₂: regions (I,R,D) with mask (I,R) -> (I,R,d).

    With ``masked`` padding is 0 and no part of BatchNorm's statistics.
    """

    def __init__(self, region_dim: int, embed_dim: int, kind: Projection, masked: bool):
        super().__init__()
        self.masked, hidden = masked, max(1, embed_dim // 2)
        self.linear = RegionProjection(region_dim, embed_dim, kind)
        self.hidden, self.norm, self.out = nn.Linear(region_dim, hidden), BatchNorm1d(hidden), nn.Linear(hidden, embed_dim)
        for layer in (self.hidden, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor, mask: Tensor) -> Tensor:
        fragments = self.linear(regions)
        used = mask if self.masked else torch.ones_like(mask)
        rows = regions[used].to(self.hidden.weight.dtype)
        mapped = self.out(torch.relu(self.norm(self.hidden(rows))))
        return torch.zeros_like(fragments).masked_scatter(used[..., None], fragments[used] + mapped.to(fragments.dtype))


class GruWords(WordGRU):
    """Words (C,W,d) from a GRU, 0 on padding."""

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        return super().forward(tokens, token_mask)[0]


# --- Instance level: the relations among the samples of a batch ---------------------------------------------------------


def nearest(scores: Tensor, share: float) -> Tensor:
    """Connection (n,m) bool: in each row the ⌊m · share⌋ largest scores, at least one; ties at the border are all in.

    >>> nearest(torch.tensor([[0.1, 0.9, 0.4, 0.3]]), 0.5)
    tensor([[False,  True,  True, False]])
    """
    count = max(1, int(scores.shape[1] * share))
    return scores >= scores.topk(count, dim=1).values[:, -1:]


def closeness(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """exp(-‖x_i - y_j‖ / σ) (n,m) of vectors (n,d) and (m,d); exactly 1, with gradient 0, where they are equal.

    ‖x - y‖² = ‖x‖² + ‖y‖² - 2 x · y is one matrix product and its gradient another; in float64, for the difference loses half of
    the digits. What is left of the squares below a 10⁻¹² of their parts is rounding: there the vectors are equal.
    """
    if x.device.type == "mps":  # has no float64
        return torch.exp(-torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") / sigma)
    dtype, x, y = x.dtype, x.double(), y.double()
    parts = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = parts - 2 * x @ y.T
    apart = squares > 1e-12 * parts.detach()
    distances = torch.where(apart, squares, 1).sqrt() * apart  # never a root of 0, whose gradient is infinite
    return torch.exp(-distances / sigma).to(dtype)


@dataclass
class Matches:
    """How well the fragments of each pair match: ``mean`` p (n,m) and the K largest ``vector`` q (n,m,K), falling."""

    mean: Tensor
    vector: Tensor


@torch.no_grad()
def match_fragments(regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor, used_words: Tensor,
                    topk: int, norm: bool = True, used_regions: Tensor | None = None) -> tuple[Matches, Matches]:
    """``(i2t, t2i)`` of all pairs, tensors (I,C,...) and (C,I,...), of fragments (I,R,d) and (C,W,d).

    Cosines, with ``norm`` through LeakyReLU(0.1). t2i: each region's are divided by their length over the words, then every word
    takes its best region; p is the mean over the words. i2t: each word's are divided by their length over the regions, then
    every region takes its best word. Without ``norm`` nothing is divided. ``word_mask`` (C,W): the true words; ``used_words``
    (C,W): they, and what else t2i puts into its lengths and q. ``used_regions`` (I,R): what i2t puts into its lengths besides
    the true regions ``region_mask`` (I,R). Entries of q that there are no fragments for are 0.

    The product is computed in blocks of images of bounded memory, and what follows it in smaller ones, which fit a CPU's cache:
    that takes a fraction of the product's time then. Padding must be finite.
    """
    used_regions = region_mask if used_regions is None else used_regions
    scale = used_regions / torch.linalg.vector_norm(regions, dim=-1).clamp(min=TINY)
    places = used_words.T.flatten().nonzero().squeeze(1)  # of the words, in a table (W,C): the fast axis is the long one
    listed = nn.functional.normalize(words[places % len(words), places // len(words)], dim=-1, eps=TINY)
    hide = lambda mask: torch.zeros_like(mask, dtype=regions.dtype).masked_fill(~mask, -torch.inf)  # noqa: E731
    hidden_words, hidden_regions = hide(word_mask.T.contiguous()), hide(region_mask)
    image_bytes = regions.shape[1] * used_words.numel() * regions.element_size()
    sizes = CPU_BLOCKS if regions.device.type == "cpu" else DEVICE_BLOCKS
    in_product, in_cache = (max(1, size // image_bytes) for size in sizes)
    parts = []
    for start in range(0, len(regions), in_product):
        block = slice(start, start + in_product)
        products = all_products(regions[block], listed, places, hidden_words.shape)
        sides = products, scale[block], hidden_regions[block]
        parts += [best_matches(*part, hidden_words, norm) for part in zip(*(side.split(in_cache) for side in sides))]
    word_best, region_best = (torch.cat(each) for each in zip(*parts))
    word_best, region_best = word_best.permute(2, 0, 1).contiguous(), region_best.transpose(1, 2).contiguous()  # (C,I,W), (I,C,R)
    true, shown, seen = word_mask[:, None], used_words[:, None], region_mask[:, None]
    t2i = Matches((word_best * true).sum(-1) / true.sum(-1), largest(word_best, shown, topk))
    i2t = Matches((region_best * seen).sum(-1) / seen.sum(-1), largest(region_best, seen, topk))
    return i2t, t2i


def all_products(regions: Tensor, listed: Tensor, places: Tensor, table: tuple[int, int]) -> Tensor:
    """r · c (n,R,W,C) of regions (n,R,d) and ``listed`` words (T,d) at ``places`` (T,) of the ``table`` (W,C); 0 elsewhere."""
    products = regions.flatten(0, 1) @ listed.T
    if len(places) < table[0] * table[1]:
        products = products.new_zeros(len(products), table[0] * table[1]).index_copy_(1, places, products)
    return products.view(*regions.shape[:2], *table)


def best_matches(products: Tensor, scale: Tensor, hidden_regions: Tensor, hidden_words: Tensor, norm: bool) -> tuple[Tensor, Tensor]:
    """The best region of every word (n,W,C) and the best word of every region (n,R,C), of n images; overwrites ``products``.

    ``products`` (n,R,W,C) of regions with unit words become cosines by ``scale`` (n,R), 0 for a region that does not take part.
    ``hidden_regions`` (n,R) and ``hidden_words`` (W,C): 0 for a true one, -∞ otherwise.
    """
    affinity, hidden_regions = products.mul_(scale[..., None, None]), hidden_regions[..., None, None]
    if not norm:
        return (affinity + hidden_regions).amax(1), affinity.add_(hidden_words).amax(2)
    affinity = nn.functional.leaky_relu(affinity, 0.1, inplace=True)
    squares = affinity * affinity  # torch's own norm is ten times slower here, and division half as fast as multiplication
    over_words, over_regions = (squares.sum(axis, keepdim=True).sqrt().clamp(min=TINY).reciprocal() for axis in (2, 1))
    by_region = torch.addcmul(hidden_regions, affinity, over_words, out=squares)
    by_word = torch.addcmul(hidden_words, affinity, over_regions, out=affinity)
    return by_region.amax(1), by_word.amax(2)


def largest(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """The ``count`` largest true values (...,count) of (...,F), falling; 0 where there are fewer."""
    values = values.masked_fill(~mask, -torch.inf)
    found = values.topk(min(count, values.shape[-1]), dim=-1).values
    return nn.functional.pad(found.masked_fill(found.isinf(), 0), (0, count - found.shape[-1]))


def graph_bias(connection: Tensor, relevance: Tensor, weight: float) -> Tensor:
    """What is added to the attention's logits (N,N): λS where A connects, -∞ elsewhere."""
    return (weight * relevance).masked_fill(~connection, -torch.inf)


def regulariser(i2t: Tensor, t2i: Tensor, guide: Tensor) -> Tensor:
    """KL(softmax S ‖ softmax G) a row, both directions: S (I,C) and (C,I) learned, G (I,C) the embeddings' closeness, fixed."""
    terms = []
    for learned, fixed in ((i2t, guide), (t2i, guide.T)):
        logs = learned.log_softmax(1)
        terms.append((logs.exp() * (logs - fixed.detach().log_softmax(1))).sum() / len(learned))
    return terms[0] + terms[1]


def cross_relevance(matches: Matches, layers: nn.Module, residual: bool = True) -> Tensor:
    """S = MLP(q) + p (n,m) of one direction, without p if not ``residual``; only the MLP has gradients."""
    learned = layers(matches.vector).squeeze(-1)
    return learned + matches.mean if residual else learned


def join_blocks(images: Tensor, i2t: Tensor, t2i: Tensor, captions: Tensor) -> Tensor:
    """(N,N) of the blocks (I,I), (I,C), (C,I) and (C,C)."""
    return torch.cat([torch.cat([images, i2t], dim=1), torch.cat([t2i, captions], dim=1)])


class FusionLayer(nn.Module):
    """Self-attention among all nodes, then the feed-forward network."""

    def __init__(self, config: HremConfig):
        super().__init__()
        self.attend = Attend(config.embed_dim, config.num_heads, config.dropout)
        self.feed = FeedForward(config.embed_dim, config.dropout)

    def forward(self, images: Tensor, captions: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        nodes = torch.cat([images, captions])
        nodes = self.feed(self.attend(nodes, nodes, bias=bias))
        return nodes[: len(images)], nodes[len(images) :]


class Branch(nn.Module):
    """One modality of the standalone mechanism: to the other modality, to its own, feed-forward. What is off is left out."""

    def __init__(self, config: HremConfig):
        super().__init__()
        make = lambda: Attend(config.embed_dim, config.num_heads, config.dropout)  # noqa: E731
        self.cross = make() if config.relations != "intra" else None
        self.own = make() if config.relations != "inter" else None
        self.feed = FeedForward(config.embed_dim, config.dropout)

    def forward(self, nodes: Tensor, others: Tensor, cross_bias: Tensor, own_bias: Tensor) -> Tensor:
        if self.cross is not None:
            nodes = self.cross(nodes, others, bias=cross_bias)
        if self.own is not None:
            nodes = self.own(nodes, nodes, bias=own_bias)
        return self.feed(nodes)


class StandaloneLayer(nn.Module):
    """Both branches, each reading the other's nodes from before this layer."""

    def __init__(self, config: HremConfig):
        super().__init__()
        self.images, self.captions = Branch(config), Branch(config)

    def forward(self, images: Tensor, captions: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        return (self.images(images, captions, bias[:count, count:], bias[:count, :count]),
                self.captions(captions, images, bias[count:, :count], bias[count:, count:]))


@dataclass
class Graph:
    """The relations of a batch: A (N,N) bool and S (N,N); what is switched off is not connected and has S = 0.

    ``i2t`` (I,C) and ``t2i`` (C,I): the inter-modal blocks of S, where they are learned.
    """

    connection: Tensor
    relevance: Tensor
    i2t: Tensor | None = None
    t2i: Tensor | None = None


# --- The model ----------------------------------------------------------------------------------------------------------


class HREM(HingeModel):
    """Hierarchical relation modelling.

    ``draw``: how negatives are drawn, weights (P, N) to columns (P,). ``step`` counts training batches, for ``relation_warmup``.
    """

    name = "hrem"
    config_class = HremConfig
    batch_layout = "caption"
    config: HremConfig
    step: Tensor
    draw: Callable[[Tensor], Tensor] = staticmethod(draw_negatives)

    def __init__(self, config: HremConfig):
        super().__init__()
        dim = config.embed_dim
        self.image = RegionEncoder(config.region_dim, dim, config.image_projection, config.masked_batch_norm)
        if config.text_encoder == "bert":
            self.text: nn.Module = BertWords(config)
            config = self.text.filled
        else:
            self.text = GruWords(config.vocab_size, config.word_dim, dim, config.gru_layers, config.bidirectional)
        self.config = config
        self.image_relations, self.text_relations = FragmentRelations(config), FragmentRelations(config)
        if config.mechanism != "none":
            layer = FusionLayer if config.mechanism == "fusion" else StandaloneLayer
            self.graph = nn.ModuleList(layer(config) for _ in range(config.num_layers))
        if config.learns_relevance:
            first = nn.Sequential(nn.Linear(config.topk, config.topk), nn.ReLU(), nn.Linear(config.topk, 1))
            self.relevance = nn.ModuleDict({"i2t": first, "t2i": deepcopy(first)})  # both start alike
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def parameters_rest(self) -> bool:
        return self.config.mechanism != "none" and self.config.relation_warmup > 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """BERT at ``bert_lr_scale``, graph and relevance at ``graph_lr_scale`` of the learning rate."""
        groups: dict[float, list[nn.Parameter]] = {1.0: []}
        for name, value in self.named_parameters():
            scale = 1.0
            if name.startswith("text.bert."):
                scale = self.config.bert_lr_scale
            elif name.startswith(("graph.", "relevance.")):
                scale = self.config.graph_lr_scale
            groups.setdefault(scale, []).append(value)
        return [{"params": values, "lr_scale": scale} for scale, values in groups.items()]

    # --- embeddings ---

    def encode_images(self, regions: Tensor, region_mask: Tensor | None) -> Encoding:
        """Regions (I, R, D) -> ``embedding`` (I, d), unit length; where gradients are on, also what the loss needs:
        ``fragments`` (I, R, d) and, in ``extra``, ``pooled`` (I, d), the embedding before its length is taken."""
        mask = full_mask(regions, region_mask)
        return self._encode(self.image(regions, mask), mask, self.image_relations, self.config.image_norm)

    def encode_captions(self, tokens: Tensor, token_mask: Tensor) -> Encoding:
        """Tokens (C, W) -> ``embedding`` (C, d); the rest as in :meth:`encode_images`."""
        words, mask = self.text(tokens, token_mask), token_mask
        if self.training:
            words, mask = drop_states(words, mask, self.config)
        return self._encode(words, mask, self.text_relations, self.config.text_norm)

    def prepare_captions(self, captions: Sequence[Sequence[int]], progress: bool = False) -> None:
        """Keep a frozen BERT's states of the training captions."""
        if isinstance(self.text, BertWords):
            self.text.keep_states(captions, progress)

    def _encode(self, fragments: Tensor, mask: Tensor, relations: FragmentRelations, norm: bool) -> Encoding:
        fragments = fragments.to(score_dtype(self))
        if self.config.mask_adjacency:
            fragments = fragments.masked_fill(~mask[..., None], 0)
        pooled = relations(fragments, mask).to(score_dtype(self))
        embedding = l2norm(pooled) if norm else pooled
        if not torch.is_grad_enabled():
            return Encoding(embedding=embedding)
        return Encoding(fragments, mask, embedding, {"pooled": pooled})

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """v · u (I, C)."""
        dtype = score_dtype(self)
        with torch.autocast(images.embedding.device.type, enabled=False):
            return images.embedding.to(dtype) @ captions.embedding.to(dtype).T

    # --- the graph of a batch ---

    def relate(self, images: Encoding, captions: Encoding) -> Graph:
        """Connection and relevance among the batch's images and captions."""
        config, v, u = self.config, images.embedding, captions.embedding
        intra, inter = config.relations != "inter", config.relations != "intra"
        none = v.new_zeros(len(v), len(u))
        i2t = t2i = None
        means = none, none.T
        if inter:
            matches = self._match(images, captions)
            means = matches[0].mean, matches[1].mean
            if config.relevance:
                i2t, t2i = (cross_relevance(part, self.relevance[way], config.relevance_residual)
                            for part, way in zip(matches, ("i2t", "t2i")))
        connection = join_blocks(self._connect(v.detach() @ v.detach().T, intra), self._connect(means[0], inter),
                                 self._connect(means[1], inter), self._connect(u.detach() @ u.detach().T, intra))
        near = closeness if config.relevance and intra else lambda x, y, _: x.new_zeros(len(x), len(y))
        relevance = join_blocks(near(v, v, config.sigma), none if i2t is None else i2t, none.T if t2i is None else t2i,
                                near(u, u, config.sigma))
        return Graph(connection, relevance, i2t, t2i)

    def _connect(self, scores: Tensor, on: bool) -> Tensor:
        """One block (n,m) of A."""
        if on and self.config.connection:
            return nearest(scores, self.config.threshold)
        return torch.full_like(scores, on, dtype=torch.bool)

    def _match(self, images: Encoding, captions: Encoding) -> tuple[Matches, Matches]:
        """p and q of all pairs. Without ``mask_adjacency`` all regions are used, and words up to K."""
        if images.fragments is None or captions.fragments is None:
            raise InputError("these encodings have no fragments to relate: encode with gradients on")
        region_mask, words = images.mask, captions.mask
        if not self.config.mask_adjacency:
            region_mask = torch.ones_like(region_mask)
            place = torch.arange(words.shape[1], device=words.device)
            words = place < captions.mask.sum(1, keepdim=True).clamp(min=self.config.topk)
        return match_fragments(images.fragments, region_mask, captions.fragments, captions.mask, words, self.config.topk,
                               self.config.match_norm)

    def enhance(self, images: Encoding, captions: Encoding, graph: Graph) -> tuple[Tensor, Tensor]:
        """v~ (I, d) and u~ (C, d), unit length: the embeddings after messages among the batch."""
        bias = graph_bias(graph.connection, graph.relevance, self.config.relation_weight)
        nodes = [side.embedding if self.config.normalise_nodes else side.extra["pooled"] for side in (images, captions)]
        for layer in self.graph:
            nodes = layer(*nodes, bias)
        return tuple(nn.functional.normalize(side, dim=-1, eps=TINY) for side in nodes)

    def explain(self, images: Encoding, captions: Encoding) -> dict[str, Tensor]:
        """``connection`` (N, N) bool and ``relevance`` (N, N), images before captions, and ``graph_scores`` (I, C) = v~ · u~.

        Empty without an instance level, and for encodings made with gradients off, which carry no fragments to relate.
        """
        if self.config.mechanism == "none" or images.fragments is None or captions.fragments is None:
            return {}
        with torch.autocast(images.embedding.device.type, enabled=False):
            graph = self.relate(images, captions)
            v, u = self.enhance(images, captions, graph)
        return {"connection": graph.connection, "relevance": graph.relevance, "graph_scores": v @ u.T}

    # --- training ---

    def forward(self, batch: Batch, gather: Callable[[Encoding], Encoding] | None = None) -> dict[str, Tensor]:
        """In training, drop regions and words and count the step; then as every model."""
        if self.training:
            self.step += 1
        return super().forward(batch, gather)

    @property
    def graph_is_on(self) -> bool:
        """Whether the instance level takes part in the loss of the current step."""
        wait = self.config.relation_warmup
        return self.config.mechanism != "none" and (not wait or int(self.step) > wait)

    def loss(self, images: Encoding, captions: Encoding, image_ids: Tensor, caption_image_ids: Tensor) -> dict[str, Tensor]:
        """``loss`` and its terms: ``embedding`` L(v,u); with the graph ``text_graph`` L(v,u~), ``image_graph`` L(v~,u), ``graph``
        L(v~,u~) and ``regulariser``, before its weight."""
        ids = image_ids, caption_image_ids
        with torch.autocast(images.embedding.device.type, enabled=False):
            v, u = images.embedding, captions.embedding
            terms = {"embedding": self._matching(v, u, *ids)}
            if not self.graph_is_on:
                return {"loss": terms["embedding"], **terms}
            graph = self.relate(images, captions)
            v2, u2 = self.enhance(images, captions, graph)
            if self.config.cross_loss:
                terms |= {"text_graph": self._matching(v, u2, *ids), "image_graph": self._matching(v2, u, *ids)}
            terms["graph"] = self._matching(v2, u2, *ids)
            total = sum(terms.values())
            if graph.i2t is not None:
                terms["regulariser"] = regulariser(graph.i2t, graph.t2i, closeness(v, u, self.config.sigma))
                share = len(caption_image_ids) if self.config.reduction == "mean" else 1
                total = total + self.config.reg_weight / share * terms["regulariser"]
        return {"loss": total, **terms}

    def _matching(self, images: Tensor, captions: Tensor, image_ids: Tensor, caption_image_ids: Tensor) -> Tensor:
        """L of embeddings (I,d) and (C,d)."""
        scores, config = images @ captions.T, self.config
        if config.matching_loss == "distance_weighted":
            positives = positive_mask(image_ids, caption_image_ids)
            return sampled_triplet_loss(scores, positives, config.margin, config.distance_cutoff, config.sampling_dim,
                                        config.reduction, self.draw)["loss"]
        positives = positive_mask(image_ids, caption_image_ids, config.same_image_negatives)
        return hinge_loss(scores, matched_pairs(image_ids, caption_image_ids), positives, **self.hinge_settings)["loss"]

    def collapsed_loss(self, num_images: int, num_captions: int) -> float:
        """Without the regulariser, which is small beside it."""
        terms = (4 if self.config.cross_loss else 2) if self.graph_is_on else 1
        if self.config.matching_loss == "hinge":
            return terms * super().collapsed_loss(num_images, num_captions)
        return terms * collapsed_triplet(max(num_images, num_captions), self.config.margin, self.config.reduction)
