"""DivE: a set of diverse embeddings for every image and every caption, compared as sets.

Kim, Kim, Kwak: Improving Cross-Modal Retrieval with Set of Diverse Embeddings, CVPR 2023.

Shapes: I images of R regions, C captions of W words, K elements a set, joint dimension d. On either side: n samples of F
fragments. Symbols of the paper and their names here:

================================  ========================  =============================================================
local, global features            RegionFeatures,           fragments (n,F,·), and one vector a sample (n,d): the
                                  WordFeatures,             maximum over regions; the last states of the GRU, or the
                                  PieceFeatures             maximum over BERT's states
E⁰, element slots                 slots (K,d)               learned, the same for all samples
slot attention, T iterations      SetDecoder                all with the same weights
softmax over slots, then a share  compete                   slots compete for a fragment; a slot's shares add up to 1
S_k = LN(E^T_k) + LN(global)      SetPrediction             the set, each element then of unit length
c(x, y)                           products                  cosines of the elements of two sets
smooth-Chamfer, α                 smooth_chamfer            ½ mean_x (1/α) log Σ_y exp(α c) + ½ mean_y (1/α) log Σ_x exp(α c)
L_tri, L_mmd, L_div               hinge_loss, mmd,          hinge loss with every caption of an image a positive of its own;
                                  closeness_of_pairs        modalities apart; slots of one sample alike
circular variance                 evaluation.sets           1 - ‖mean of a set's elements‖: 0 where the set has collapsed
================================  ========================  =============================================================

``image_encoder="grid"``: images are pictures, and the fragments are the cells of the last feature map of ``backbone``, any image
model of transformers, which trains with the rest. They are mapped as regions are, and the global feature is their maximum. In
training, cells are dropped as regions are (VSE∞ drops some, too); itm_lib.data.pictures says how pictures are cut and mirrored.

``text_encoder="bert"``: local features are BERT's last hidden states, mapped to d, and the global feature is their maximum over
the true word pieces, or the state of the first, [CLS]. The released code has a BERT that cannot be built; this is the same linear
map as in VSE∞ (Chen et al., Learning the Best Pooling Strategy for Visual Semantic Embedding, CVPR 2021), less its pooling.

``word_vectors``: a file of GloVe's or word2vec's vectors, which the embeddings of the words that it has start as; the others start
as N(0, 1). A new model reads it when it meets its vocabulary, a saved one never.

``aggregation``: ``"slot_attention"``; ``"pie_net"``, K attention maps and a sigmoid (Song and Soleymani, Polysemous
Visual-Semantic Embedding, CVPR 2019); ``"transformer"``, a decoder whose softmax is over the fragments, so that slots do not
compete. All three give E (n,K,d) to the same sum. ``similarity``: smooth-Chamfer, of cosines or of negative distances;
Chamfer, its limit α → ∞; MIL, the best pair of elements; the match probability, the mean of σ(a c + b).

What an iteration attends to depends on the fragments alone, so with shared weights keys and values are computed once, not T
times. All cosines of two blocks of sets come from one product (K,n,K',m), pooled over both axes K: no element is ever paired
in a loop. In training a block is computed again in the backward pass when the graph would be too large.

Differences between the released code and the default, each with its switch; ``compat="official"`` sets those marked *:

1. ``mask_before_slot_softmax``*: padding gets nothing. There, the softmax over slots overrules the mask: every padded
   fragment has weight 1/K in every slot, and a caption's set depends on the batch that it is encoded in.
2. ``position_over``*: the position code runs over the caption's own length ("true"); there, over the padded one ("padded").
3. ``masked_batch_norm``*: BatchNorm's statistics come from true regions; there, from padded ones too.
4. ``norm_momentum``*: BatchNorm's running statistics move once a step, by 0.1. There, the regions are mapped twice, for local
   and for global features, and the statistics move twice: as once by 0.19. In both, the two have dropouts of their own.
5. ``learned_match``*: a and b of the match probability are learned; there, they stay 1 and 0 on a GPU.
6. ``negatives``: hardest, in both; "all" and "semi_hard" are the released alternatives.
7. Smooth-Chamfer of distances is a similarity here, higher is better; there, it is a distance.
8. Distances in MMD are not squared, the diversity regulariser sees slots before the global feature is added, and the log-sum
   is not divided by K, so that a score can be above 1: as released.
9. The released evaluation takes the last checkpoint; here the best on the validation split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itm_lib.data.pictures import Pixels
from itm_lib.files import InputError
from itm_lib.losses import matched_pairs, positive_mask, semi_hard_loss
from itm_lib.models.base import Encoding
from itm_lib.models.dropping import drop_regions, drop_states
from itm_lib.models.encoders import Projection, RegionProjection, WordGRU
from itm_lib.models.hinge import HingeModel
from itm_lib.models.layers import BatchNorm1d, full_mask, masked_max, score_dtype
from itm_lib.models.pretrained import Backbone, BertWords, WordsConfig

Similarity = Literal["smooth_chamfer", "euclidean_smooth_chamfer", "chamfer", "mil", "match_probability"]
COPIES = 3        # tensors of the size of the products that scoring holds at once
SAFE = 80.0       # exp of minus this is still a float32


class DiveConfig(WordsConfig):
    """Settings of DivE. The defaults are the released model's on COCO (regions, GRU).

    ``num_slots`` K of images, and of captions unless ``caption_slots`` says another number. ``iterations`` T; without
    ``share_weights`` each has its own. ``norm_position``: LayerNorm before each step, and after the last ("pre"), or after each
    step ("post"). ``text_local``: the word embeddings, or the GRU's or BERT's states; ``text_global``: the GRU's last states, the
    maximum over words, or BERT's first state; with a BERT they are "states" and "max" unless another is given. ``gram_weight``
    and ``query_weight`` are of released regularisers that the paper does not use.

    ``image_encoder="grid"`` takes ``backbone``, a folder or a name on the Hugging Face Hub, or ``backbone_config``, an architecture
    to train from nothing, ``{"model_type": "resnet", ...}``. When the model is made, ``backbone_config`` and ``region_dim``, the
    number of channels, are filled in, so that a saved model needs no ``backbone``. Its learning rate is ``backbone_lr_scale`` of
    the whole, and ``backbone_batch_norm`` lets its BatchNorm see the batch, which one that starts from nothing needs. ``crop`` and
    ``flip``: of pictures in training; no ``flip`` where captions tell left from right.
    """

    official: ClassVar[dict[str, Any]] = {"mask_before_slot_softmax": False, "position_over": "padded",
                                          "masked_batch_norm": False, "norm_momentum": 0.19, "learned_match": False}

    image_encoder: Literal["regions", "grid"] = "regions"
    backbone: str | None = None
    backbone_config: dict[str, Any] | None = None
    backbone_lr_scale: PositiveFloat = 0.01
    backbone_batch_norm: bool = False
    image_size: PositiveInt = 224            # pixels
    crop: float = Field(0.6, gt=0, le=1)
    flip: bool = True
    image_projection: Projection = "linear"
    masked_batch_norm: bool = True
    norm_momentum: float = Field(0.1, gt=0, le=1)
    text_local: Literal["words", "states"] = "words"
    text_global: Literal["last", "max", "first"] = "last"
    num_slots: PositiveInt = 4
    caption_slots: PositiveInt | None = None
    aggregation: Literal["slot_attention", "pie_net", "transformer"] = "slot_attention"
    iterations: PositiveInt = 4
    share_weights: bool = True
    norm_position: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    num_heads: PositiveInt = 4
    head_dim: PositiveInt = 512
    feed_factor: PositiveInt = 4             # the feed-forward network's width, in d
    mask_before_slot_softmax: bool = True
    position_code: bool = True               # of words, in the keys
    position_over: Literal["true", "padded"] = "true"
    global_norm: bool = True                 # LayerNorm of the global feature
    similarity: Similarity = "smooth_chamfer"
    alpha: PositiveFloat = 16.0
    learned_match: bool = True
    negatives: Literal["hardest", "all", "semi_hard"] = "hardest"
    mmd_weight: NonNegativeFloat = 0.01
    diversity_weight: NonNegativeFloat = 0.01
    diversity_of: Literal["slots", "embeddings"] = "slots"
    gram_weight: NonNegativeFloat = 0.0
    query_weight: NonNegativeFloat = 0.0
    dropout: float = Field(0.1, ge=0, lt=1)
    region_dropping: float = Field(0.2, ge=0, lt=1)
    image_lr_scale: PositiveFloat = 0.1
    text_set_lr_scale: PositiveFloat = 0.1

    @model_validator(mode="before")
    @classmethod
    def _fill_bert(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("text_encoder") == "bert":
            return {"text_local": "states", "text_global": "max", **values}
        return values

    @model_validator(mode="after")
    def _together(self) -> DiveConfig:
        bert = self.text_encoder == "bert"
        if bert and (self.text_local == "words" or self.text_global == "last"):
            raise ValueError("text_local 'words' and text_global 'last' are of the GRU: a BERT has 'states', and 'max' or 'first'")
        if self.image_encoder == "grid" and self.backbone is None and self.backbone_config is None:
            raise ValueError("image_encoder 'grid' needs backbone, a folder or a name like microsoft/resnet-152")
        if not bert and self.text_global == "first":
            raise ValueError("text_global 'first' is of a BERT: a GRU has 'last' or 'max'")
        if self.query_weight and self.aggregation == "pie_net":
            raise ValueError("query_weight needs slots, which aggregation 'pie_net' has none of")
        return self

    @property
    def pixels(self) -> Pixels | None:
        return Pixels(self.image_size, self.crop, self.flip) if self.image_encoder == "grid" else None

    @property
    def slots(self) -> tuple[int, int]:
        """K of images and of captions."""
        return self.num_slots, self.caption_slots or self.num_slots


# --- Local and global features ------------------------------------------------------------------------------------------


class RegionFeatures(nn.Module):
    """y = W f + b, x = y + W₂ ReLU(BN(W₁ y)): regions (I,R,D) with mask (I,R) -> local x (I,R,d), global max x (I,d).

    With ``masked_batch_norm`` padding is 0 and no part of BatchNorm's statistics. Each has a dropout of its own.
    """

    def __init__(self, config: DiveConfig):
        super().__init__()
        dim, self.masked = config.embed_dim, config.masked_batch_norm
        hidden = max(1, dim // 2)
        self.linear = RegionProjection(config.region_dim, dim, config.image_projection)
        self.hidden, self.out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm, self.dropout = BatchNorm1d(hidden, momentum=config.norm_momentum), nn.Dropout(config.dropout)

    def forward(self, regions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        used = mask if self.masked else torch.ones_like(mask)
        rows = self.linear(regions)[used]
        rows = rows + self.out(torch.relu(self.norm(self.hidden(rows))))
        x = rows.new_zeros(*mask.shape, rows.shape[-1]).masked_scatter(used[..., None], rows)
        return self.dropout(x), masked_max(self.dropout(x), mask)


class WordFeatures(WordGRU):
    """Tokens (C,W) with mask (C,W) -> local (C,W,word_dim) or (C,W,d), global (C,d), mask: word embeddings, and a GRU over them.

    Word embeddings start as N(0, 1), or as the vectors of a file: :meth:`DivE.use_vocabulary`.
    """

    def __init__(self, config: DiveConfig):
        super().__init__(config.vocab_size, config.word_dim, config.embed_dim, config.gru_layers, config.bidirectional)
        nn.init.normal_(self.embed.weight)
        self.local, self.whole, self.dropout = config.text_local, config.text_global, nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words = self.dropout(self.look_up(tokens))
        states, final = self.run(words, token_mask)
        whole = final if self.whole == "last" else masked_max(states, token_mask)
        return words if self.local == "words" else states, self.dropout(whole), token_mask


class PieceFeatures(BertWords):
    """Tokens (C,W) with mask (C,W) -> local (C,W,d), global (C,d), mask: BERT's states mapped to d, their maximum or the first.

    Each has a dropout of its own, as of regions. In training some states of a frozen BERT are left out, and the mask is that of the others.
    """

    def __init__(self, config: DiveConfig):
        super().__init__(config)
        self.whole, self.dropout = config.text_global, nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, mask = super().forward(tokens, token_mask), token_mask
        if self.training:
            states, mask = drop_states(states, mask, self.filled)
        whole = self.dropout(states)
        return self.dropout(states), whole[:, 0] if self.whole == "first" else masked_max(whole, mask), mask


# --- From fragments to K slots ------------------------------------------------------------------------------------------


def compete(logits: Tensor, mask: Tensor, masked: bool = True) -> Tensor:
    """Weights (n,h,K,F) of slot attention: softmax of logits (n,h,K,F) over slots, then each slot's shares of the fragments.

    ``mask`` (n,F) bool, True = real. Padding gets 0; if not ``masked``, 1/K before the shares are taken, as released.

    >>> compete(torch.zeros(1, 1, 2, 2), torch.tensor([[True, False]])).round(decimals=3)
    tensor([[[[1., 0.],
              [1., 0.]]]])
    """
    weights = logits.softmax(-2).masked_fill(~mask[:, None, None], 0 if masked else 1 / logits.shape[-2])
    return weights / (weights.sum(-1, keepdim=True) + 1e-7)


def position_code(lengths: Tensor, width: int, dim: int) -> Tensor:
    """Sines (even channels) and cosines (odd ones) of a word's place p = 1, 2, ... in captions of ``lengths`` (C,).

    (C, ``width``, ``dim``) float32. The angle is 2π p / length, divided by 10000^(2i / dim) in channels 2i and 2i + 1. What
    stands past a caption's length is of no use.
    """
    place = torch.arange(1, width + 1, dtype=torch.float32, device=lengths.device)
    angle = place / (lengths[:, None].float() + 1e-6) * (2 * math.pi)
    channel = torch.arange(dim, dtype=torch.float32, device=lengths.device)
    angle = angle[..., None] / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / dim)
    sines, cosines = angle[..., 0::2].sin(), nn.functional.pad(angle[..., 1::2].cos(), (0, dim % 2))
    return torch.stack([sines, cosines], dim=-1).flatten(-2)[..., :dim]


class Attention(nn.Module):
    """Slots (n,K,d) take from inputs (n,F,e) by ``num_heads`` attentions of ``head_dim`` numbers; see :func:`compete`.

    ``competing=False``: an ordinary softmax over the inputs.
    """

    def __init__(self, config: DiveConfig, input_dim: int, competing: bool):
        super().__init__()
        self.heads, self.competing, self.masked = config.num_heads, competing, config.mask_before_slot_softmax
        inner = config.num_heads * config.head_dim
        self.query = nn.Linear(config.embed_dim, inner, bias=False)
        self.key, self.value = nn.Linear(input_dim, inner, bias=False), nn.Linear(input_dim, inner, bias=False)
        self.out, self.dropout = nn.Linear(inner, config.embed_dim), nn.Dropout(config.dropout)

    def read(self, inputs: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values (n,h,F,head_dim); the position is in the keys alone."""
        placed = inputs if position is None else inputs + position.to(inputs.dtype)
        return self._by_head(self.key(placed)), self._by_head(self.value(inputs))

    def forward(self, slots: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each slot takes (n,K,d), and its weights (n,h,K,F)."""
        queries = self._by_head(self.query(slots))
        logits = (queries @ keys.mT).to(torch.promote_types(keys.dtype, torch.float32)) / math.sqrt(keys.shape[-1])
        if self.competing:
            weights = compete(logits, mask, self.masked)
        else:
            weights = (logits if mask is None else logits.masked_fill(~mask[:, None, None], -torch.inf)).softmax(-1)
        taken = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        return self.dropout(self.out(taken)), weights

    def among(self, slots: Tensor) -> Tensor:
        """What slots take from each other."""
        return self(slots, *self.read(slots, None), None)[0]

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Iteration(nn.Module):
    """The weights of one iteration: attention to the inputs, a feed-forward network; for a transformer attention among slots."""

    def __init__(self, config: DiveConfig, input_dim: int):
        super().__init__()
        dim, self.activation = config.embed_dim, getattr(nn.functional, config.activation)
        transformer = config.aggregation == "transformer"
        self.own = Attention(config, dim, competing=False) if transformer else None
        self.attention = Attention(config, input_dim, competing=not transformer)
        self.input_norm = nn.LayerNorm(input_dim) if config.norm_position == "pre" else nn.Identity()
        self.first, self.second = nn.Linear(dim, config.feed_factor * dim), nn.Linear(config.feed_factor * dim, dim)
        self.dropout = nn.Dropout(config.dropout)

    def feed(self, slots: Tensor) -> Tensor:
        return self.second(self.dropout(self.activation(self.first(slots))))


class SetDecoder(nn.Module):
    """Slots that read the fragments in T iterations: local (n,F,e), mask (n,F) -> E (n,K,d), weights (n,K,F).

    E ← E + attention(LN(E), LN(fragments)), E ← E + FFN(LN(E)); or, "post", each sum in a LayerNorm of its own. The weights
    are those of the last iteration, the mean over heads.
    """

    def __init__(self, config: DiveConfig, input_dim: int, num_slots: int):
        super().__init__()
        dim, self.iterations, self.post = config.embed_dim, config.iterations, config.norm_position == "post"
        self.slots = nn.Parameter(torch.randn(num_slots, dim))
        count = 1 if config.share_weights else config.iterations
        self.steps = nn.ModuleList(Iteration(config, input_dim) for _ in range(count))
        parts = ["attention", "feed", *(["own"] if config.aggregation == "transformer" else [])]
        self.norms = nn.ModuleList(nn.ModuleDict({part: nn.LayerNorm(dim) for part in parts})
                                   for _ in range(config.iterations if self.post else count))
        self.last_norm = nn.Identity() if self.post else nn.LayerNorm(dim)

    def forward(self, local: Tensor, mask: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slots = self.slots.expand(len(local), -1, -1)
        for number in range(self.iterations):
            step, norms = self.steps[number % len(self.steps)], self.norms[number % len(self.norms)]
            if number < len(self.steps):  # with shared weights they are the same in all iterations
                keys, values = step.attention.read(step.input_norm(local), position)
            if step.own is not None:
                slots = self._add(slots, norms["own"], step.own.among)
            normed = slots if self.post else norms["attention"](slots)
            taken, weights = step.attention(normed, keys, values, mask)
            slots = norms["attention"](slots + taken) if self.post else slots + taken
            slots = self._add(slots, norms["feed"], step.feed)
        return self.last_norm(slots), weights.mean(1)

    def _add(self, slots: Tensor, norm: nn.Module, change: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(slots + change(slots)) if self.post else slots + change(norm(slots))


class PieNet(nn.Module):
    """PIE-Net: E_k = σ(W Σ_l a_kl x_l + b), a_k = softmax over the fragments of (W₂ tanh(W₁ x))_k.

    Arguments and result as of :class:`SetDecoder`; the position is not used.
    """

    def __init__(self, config: DiveConfig, input_dim: int, num_slots: int):
        super().__init__()
        hidden = max(1, input_dim // 2)
        self.first, self.second = nn.Linear(input_dim, hidden, bias=False), nn.Linear(hidden, num_slots, bias=False)
        self.out, self.dropout = nn.Linear(input_dim, config.embed_dim), nn.Dropout(config.dropout)
        for layer in (self.first, self.second, self.out):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, local: Tensor, mask: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = self.second(torch.tanh(self.first(local))).mT
        weights = logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return self.dropout(torch.sigmoid(self.out(weights.to(local.dtype) @ local))), weights


class SetPrediction(nn.Module):
    """Local (n,F,e) with mask (n,F) and global (n,d) -> the set N(LN(global) + E) (n,K,d) of unit vectors, E, weights (n,K,F)."""

    def __init__(self, config: DiveConfig, input_dim: int, num_slots: int):
        super().__init__()
        aggregation = PieNet if config.aggregation == "pie_net" else SetDecoder
        self.aggregation = aggregation(config, input_dim, num_slots)
        self.global_norm = nn.LayerNorm(config.embed_dim) if config.global_norm else nn.Identity()

    def forward(self, local: Tensor, whole: Tensor, mask: Tensor,
                position: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        local, whole = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (local, whole))  # under autocast
        elements, weights = self.aggregation(local, mask, position)
        elements = elements.to(whole.dtype)
        return unit(self.global_norm(whole)[:, None] + elements), elements, weights


def unit(x: Tensor) -> Tensor:
    """x / max(‖x‖, 1e-12) along the last axis."""
    return nn.functional.normalize(x, dim=-1)


# --- Similarity of two sets ---------------------------------------------------------------------------------------------


def smooth_chamfer(values: Tensor, alpha: float, largest: float = 1.0) -> Tensor:
    """½ mean_x (1/α) log Σ_y exp(α v) + ½ mean_y (1/α) log Σ_x exp(α v): ``values`` (K,n,K',m) -> (n,m).

    ``largest``: what a value can be at most; at least it is 2 less, as cosines and distances of unit vectors are.
    """
    if 2 * alpha <= SAFE:  # then one exp serves both sums
        powers = (values * alpha).sub_(alpha * largest).exp_()
        logs = powers.sum(2).log(), powers.sum(0).log()
    else:
        logs = torch.logsumexp(alpha * (values - largest), 2), torch.logsumexp(alpha * (values - largest), 0)
    return (logs[0].mean(0) + logs[1].mean(1)) / (2 * alpha) + largest


def chamfer(cosines: Tensor) -> Tensor:
    """½ mean_x max_y c + ½ mean_y max_x c: (K,n,K',m) -> (n,m)."""
    return (cosines.amax(2).mean(0) + cosines.amax(0).mean(1)) / 2


def set_similarity(images: Tensor, captions: Tensor, kind: Similarity, alpha: float = 16.0,
                   match: tuple[Tensor | float, Tensor | float] = (1.0, 0.0)) -> Tensor:
    """Scores (n,m) of sets of unit vectors, elements first: (K,n,d) and (K',m,d). ``match``: a and b of the match probability."""
    rows, columns = images.flatten(0, 1), captions.flatten(0, 1)
    values = -torch.cdist(rows, columns) if kind == "euclidean_smooth_chamfer" else rows @ columns.T
    values = values.view(*images.shape[:2], *captions.shape[:2])
    if kind == "match_probability":
        return (match[0] * values + match[1]).sigmoid().mean((0, 2))
    if kind == "mil":
        return values.amax((0, 2))
    if kind == "chamfer":
        return chamfer(values)
    return smooth_chamfer(values, alpha, 1.0 if kind == "smooth_chamfer" else 0.0)


# --- Regularisers -------------------------------------------------------------------------------------------------------


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Maximum mean discrepancy of two sets of points (p,d) and (q,d), kernel exp(-½ ‖a - b‖): 0 where they are spread alike.

    Pairs of a point with itself are counted.
    """
    kernel = lambda a, b: torch.exp(-0.5 * torch.cdist(a, b)).mean()  # noqa: E731
    return kernel(x, x) - 2 * kernel(x, y) + kernel(y, y)


def closeness_of_pairs(sets: Tensor) -> Tensor:
    """Mean over samples and pairs of elements of exp(-2 ‖a - b‖²): sets (n,K,d) -> a scalar, 0 for sets of one element."""
    first, second = torch.triu_indices(sets.shape[1], sets.shape[1], 1, device=sets.device)
    if not len(first):
        return sets.new_zeros(())
    return torch.exp(-2 * (sets[:, first] - sets[:, second]).square().sum(-1)).mean()


def gram_diversity(sets: Tensor) -> Tensor:
    """Mean over samples of ‖Gram matrix less its diagonal‖_F / K²: sets (n,K,d) of unit vectors -> a scalar."""
    gram = sets @ sets.mT
    gram = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    return torch.linalg.matrix_norm(gram).mean() / sets.shape[1] ** 2


# --- The model ----------------------------------------------------------------------------------------------------------


class DivE(HingeModel):
    """Sets of diverse embeddings.

    ``block_bytes`` bounds the working memory of ``similarity`` beyond its inputs and scores; None takes 32 MiB on a CPU and
    512 MiB elsewhere. In training the blocks' tensors are kept for the backward pass up to ``graph_bytes``; above that each
    block is computed again there. Neither changes a number beyond rounding.
    """

    name = "dive"
    config_class = DiveConfig
    batch_layout = "set"
    shares_scores = True
    config: DiveConfig
    block_bytes: int | None = None
    graph_bytes: int = 2**30

    def __init__(self, config: DiveConfig):
        super().__init__()
        if config.image_encoder == "grid":
            self.backbone = Backbone(config.backbone, config.backbone_config, config.image_size, config.backbone_batch_norm)
            filled = {"backbone_config": self.backbone.architecture, "region_dim": self.backbone.dim}
            config = config.model_copy(update=filled)
        self.image = RegionFeatures(config)
        if config.text_encoder == "bert":
            self.text: nn.Module = PieceFeatures(config)
            config = self.text.filled
        else:
            self.text = WordFeatures(config)
        self.config = config
        self.image_set = SetPrediction(config, config.embed_dim, config.slots[0])
        word_dim = config.word_dim if config.text_local == "words" else config.embed_dim
        self.text_set = SetPrediction(config, word_dim, config.slots[1])
        if config.similarity == "match_probability" and config.learned_match:
            self.match = nn.Parameter(torch.tensor([1.0, 0.0]))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The image side at ``image_lr_scale``, the captions' set prediction at ``text_set_lr_scale``, BERT at ``bert_lr_scale``,
        a backbone at ``backbone_lr_scale`` of the learning rate."""
        scales = {"image.": self.config.image_lr_scale, "image_set.": self.config.image_lr_scale,
                  "text_set.": self.config.text_set_lr_scale, "text.bert.": self.config.bert_lr_scale,
                  "backbone.": self.config.backbone_lr_scale}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in self.named_parameters():
            scale = next((scale for start, scale in scales.items() if name.startswith(start)), 1.0)
            groups.setdefault(scale, []).append(value)
        return [{"params": values, "lr_scale": scale} for scale, values in groups.items()]

    # --- sets ---

    def encode_images(self, regions: Tensor, region_mask: Tensor | None) -> Encoding:
        """Regions (I, R, D) -> ``embedding`` (I, K, d), unit vectors; ``fragments`` (I, R, K), what the slots take of each region;
        where gradients are on, also what the loss needs: ``slots`` (I, K, d) in ``extra``, the set before the global feature.

        Or pictures (I, 3, H, W) without a mask; R is then the number of cells, row by row, less those that training drops.
        """
        if self.config.image_encoder == "grid":
            regions = self.backbone(regions)
            if self.training and self.config.region_dropping:
                regions, region_mask = drop_regions(regions, full_mask(regions, None), self.config.region_dropping)
        mask = full_mask(regions, region_mask)
        return self._encoding(*self.image_set(*self.image(regions, mask), mask), mask)

    def encode_captions(self, tokens: Tensor, token_mask: Tensor) -> Encoding:
        """Tokens (C, W) -> ``embedding`` (C, K, d); the rest as in :meth:`encode_images`."""
        local, whole, mask = self.text(tokens, token_mask)
        position = None
        if self.config.position_code:
            lengths = mask.sum(1)
            lengths = lengths if self.config.position_over == "true" else torch.full_like(lengths, mask.shape[1])
            position = position_code(lengths, mask.shape[1], local.shape[-1])
        return self._encoding(*self.text_set(local, whole, mask, position), mask)

    def prepare_captions(self, captions: Sequence[Sequence[int]], progress: bool = False) -> None:
        """Keep a frozen BERT's states of the training captions."""
        if isinstance(self.text, BertWords):
            self.text.keep_states(captions, progress)

    def _encoding(self, sets: Tensor, slots: Tensor, weights: Tensor, mask: Tensor) -> Encoding:
        extra = {"slots": slots} if torch.is_grad_enabled() else {}
        return Encoding(weights.detach().mT, mask, sets.to(score_dtype(self)), extra)

    # --- scores ---

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """Scores (I, C) of all pairs of sets, block by block."""
        dtype = score_dtype(self)
        with torch.autocast(images.embedding.device.type, enabled=False):
            return self._blocked_scores(*(side.embedding.to(dtype).transpose(0, 1) for side in (images, captions)))

    def _blocked_scores(self, images: Tensor, captions: Tensor) -> Tensor:
        """Scores (I, C) of sets (K,I,d) and (K',C,d)."""
        bytes_ = COPIES * images.element_size() * len(images) * len(captions)
        block_bytes = self.block_bytes or (2**25 if images.device.type == "cpu" else 2**29)
        recompute = torch.is_grad_enabled() and bytes_ * images.shape[1] * captions.shape[1] > self.graph_bytes
        pairs = max(1, block_bytes // (2 * bytes_ if recompute else bytes_))  # with a block's graph come its gradients
        height = max(1, min(images.shape[1], math.isqrt(pairs)))
        width = max(1, pairs // height)
        columns = []
        for part in captions.split(width, 1):
            part = part.contiguous()  # elements first; never more of the captions at once
            scores = [checkpoint(self._score, some, part, use_reentrant=False) if recompute else self._score(some, part)
                      for some in images.split(height, 1)]
            columns.append(torch.cat(scores))
        return torch.cat(columns, dim=1)

    def _score(self, images: Tensor, captions: Tensor) -> Tensor:
        match = (1.0, 0.0)
        if hasattr(self, "match"):
            match = self.match.to(images.dtype).unbind()
        return set_similarity(images, captions, self.config.similarity, self.config.alpha, match)

    def pair_bytes(self, images: Encoding, captions: Encoding) -> int:
        """Bytes of the products of one pair and of what is derived from them."""
        return torch.finfo(score_dtype(self)).bits // 8 * COPIES * images.embedding.shape[1] * captions.embedding.shape[1]

    def explain(self, images: Encoding, captions: Encoding) -> dict[str, Tensor]:
        """``image_attention`` (I, K, R) and ``caption_attention`` (C, K, W): what each slot takes of each fragment in the last
        iteration, the mean over heads, adding up to 1; ``elements`` (I, C, K, K'): the cosines of each pair's elements."""
        dtype = score_dtype(self)
        x, y = (side.embedding.to(dtype) for side in (images, captions))
        with torch.autocast(x.device.type, enabled=False):
            elements = (x.flatten(0, 1) @ y.flatten(0, 1).T).view(*x.shape[:2], *y.shape[:2]).transpose(1, 2)
        maps = {"image_attention": images.fragments.mT, "caption_attention": captions.fragments.mT}
        return {**maps, "elements": elements}

    # --- training ---

    def loss(self, images: Encoding, captions: Encoding, image_ids: Tensor, caption_image_ids: Tensor) -> dict[str, Tensor]:
        """``loss`` and its terms, before their weights: ``i2t``, ``t2i`` of the hinge loss; those of ``mmd``, ``diversity``,
        ``gram`` and ``query`` that have a weight."""
        terms = self._matching(images, captions, image_ids, caption_image_ids)
        total = terms.pop("loss")
        with torch.autocast(images.embedding.device.type, enabled=False):
            for name, value in self._regularisers(images, captions).items():
                terms[name] = value
                total = total + getattr(self.config, f"{name}_weight") * value
        return {"loss": total, **terms}

    def _matching(self, images: Encoding, captions: Encoding, image_ids: Tensor,
                  caption_image_ids: Tensor) -> dict[str, Tensor]:
        if self.hinge_settings["negatives"] != "semi_hard":
            return super().loss(images, captions, image_ids, caption_image_ids)
        positives = positive_mask(image_ids, caption_image_ids, self.config.same_image_negatives)
        pairs = matched_pairs(image_ids, caption_image_ids)
        return semi_hard_loss(self.batch_scores(images, captions), pairs, positives, self.config.margin)

    def _regularisers(self, images: Encoding, captions: Encoding) -> dict[str, Tensor]:
        config, sides, terms = self.config, (images, captions), {}
        if config.mmd_weight:
            terms["mmd"] = mmd(*(side.embedding.flatten(0, 1) for side in sides))
        if config.diversity_weight or config.gram_weight:
            spread = [unit(self._slots(side)) if config.diversity_of == "slots" else side.embedding for side in sides]
            if config.diversity_weight:
                terms["diversity"] = sum(map(closeness_of_pairs, spread))
            if config.gram_weight:
                terms["gram"] = sum(map(gram_diversity, spread))
        if config.query_weight:
            terms["query"] = sum(closeness_of_pairs(part.aggregation.slots[None]) for part in (self.image_set, self.text_set))
        return terms

    @staticmethod
    def _slots(side: Encoding) -> Tensor:
        if "slots" not in side.extra:
            raise InputError("these encodings have no slots for the diversity regulariser: encode with gradients on")
        return side.extra["slots"]

    def collapsed_loss(self, num_images: int, num_captions: int) -> float:
        """Without the regularisers, which are small beside it."""
        if self.hinge_settings["negatives"] == "semi_hard":
            return 2 * self.config.margin
        return super().collapsed_loss(num_images, num_captions)
