"""CAMP: cross-modal adaptive message passing. Messages between regions and words, and gates that let them in.

Wang, Liu, Li, Sheng, Yan, Wang, Shao: CAMP: Cross-Modal Adaptive Message Passing for Text-Image Retrieval, ICCV 2019.

Shapes: I images of R regions, C captions of W words, joint dimension d. Everything below is computed for every pair of an
image and a caption. Symbols of the paper and their names here:

=============================  ============================  ===========================================================
v_k, t_l                       regions (I,R,d), words (C,W,d) encoded fragments, not normalised
softmax(Q v · K t / √d)        attend                        what a *receiver*'s fragment takes of each *sender*'s fragment
U_k = Σ_l A_kl t_l             messages                      the caption's message to region k; the image's to word l likewise
softmax(Q' U · K' U / √d) U    mix                           second attention: over the messages of one receiver
g_k = σ(v_k · m_k)             gates                         scalar; the paper's is a vector, σ(v_k ⊙ m_k)
v'_k = ReLU(F g_k[v_k; m_k])   fuse                          + v_k, the residual; also F g(v + m) and F g(v ⊙ m)
Σ_k a_k v'_k                   summarise                     summary attention, ``num_heads`` softmaxes, their mean
S = σ(MLP([x; y]))             CAMP._score                   the matching score, in (0, 1)
=============================  ============================  ===========================================================

Both sides run through the same functions: N receivers of F fragments, S senders of G fragments, tensors (S, N, F, G).

A message is a mixture of the sender's fragments, m = B t, with coefficients B. So what is linear in it is computed once a
caption, not once a pair: Q'U = A (Q't), hence the second attention's logits are A ((Q't)(K't)ᵀ/√d) Aᵀ; ‖m‖² = B (t tᵀ) Bᵀ;
v·m = B (t·v); and F[v; m] = F_a v + B (F_b t). What summary attention needs, v' and its hidden layer, is all that has the size pairs ×
fragments × d. The vector gate and the product fusion are not linear in m: there m itself and F are computed for each pair.
Pairs go in blocks; in training a block is computed again in the backward pass when the graph would be too large.

Three models have names. :meth:`CampConfig.released` is what the authors released (the default), :meth:`CampConfig.paper` what
the paper writes, :meth:`CampConfig.pretraining` the cross-attention model that the first stage of training fits. :data:`ABLATIONS`
has the rows of the paper's table 3.

Differences between the released code, the paper and the default, each with its switch; ``compat="official"`` sets those marked *:

1. ``gate``: a scalar, also by default. The paper's is ``"elementwise"``.
2. ``fusion``: ``"concat"``, also by default; ``"sum"`` is the paper's main row.
3. ``second_attention``, with separate query and key matrices: yes, also by default. The paper has one affinity matrix and its softmax along
   both axes (False).
4. ``message_norm``: messages of unit length, also by default; the paper has none.
5. ``reduction``*: the loss over hardest negatives is a sum over the batch there; here the mean.
6. ``mean_over``*: the cross-attention model averages messages over all ``pad_to`` = 50 positions there, padding included; here
   over the true words.
7. Padded regions receive and send nothing here; there, every image has the same number of them.
8. The released code ignores its ``loss_func`` and trains the cross-attention model with BCE on a cosine, which has no
   gradient where the cosine is negative; ``pretraining()`` takes the ranking loss. ``objective="bce"`` gives theirs.
9. σ is computed in float64 where the device has it: in float32 every logit above 17 is the same 1.0, and captions of one image tie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itm_lib.files import InputError
from itm_lib.losses import bce_loss, collapsed_bce, hardest_bce, matched_pairs, positive_mask
from itm_lib.models.base import Encoding
from itm_lib.models.hinge import FragmentConfig, FragmentModel
from itm_lib.models.layers import l2norm, score_dtype, softmax

EPS = 1e-8     # added to lengths, as in the authors' l2norm
TINY = 1e-30   # squared lengths are clamped here: their root keeps a finite gradient
COPIES = 4     # tensors of the size of the fused fragments that scoring holds at once, and that a graph keeps

# The rows of the paper's table 3, laid over the settings of the full model.
ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "base": {"messages": "none", "score": "cosine", "objective": "ranking"},
    "no_cross_attention": {"messages": "average"},
    "no_fusion": {"fusion": "none"},
    "no_gates": {"gate": "none"},
    "no_residual": {"residual": False},
    "average_pooling": {"aggregation": "mean"},
    "concat_fusion": {"fusion": "concat"},
    "sum_fusion": {"fusion": "sum"},
    "product_fusion": {"fusion": "product"},
    "joint_embedding": {"score": "cosine", "objective": "ranking"},
    "mlp_ranking": {"objective": "ranking"},
    "all_negatives": {"negatives": "all"},
}


class CampConfig(FragmentConfig):
    """Settings of CAMP. The defaults are the released model's; see :meth:`paper` for the paper's.

    ``messages``: ``"attention"``, ``"average"`` (the mean of the other side's fragments) or ``"none"`` (no interaction: each side is
    pooled alone). ``fusion="none"`` pools the messages themselves. ``score="mlp"`` is in (0, 1), ``"cosine"`` in [-1, 1].
    ``objective``: binary cross entropy or the hinge loss; ``negatives``, ``reduction`` and ``warmup_epochs`` go with both, ``margin`` with
    the hinge loss. Over all negatives both losses are means.
    """

    official: ClassVar[dict[str, Any]] = {"reduction": "sum", "mean_over": "pad_to"}

    image_norm: bool = False
    text_norm: bool = False
    messages: Literal["attention", "average", "none"] = "attention"
    second_attention: bool = True
    message_norm: bool = True
    gate: Literal["scalar", "elementwise", "none"] = "scalar"
    fusion: Literal["concat", "sum", "product", "none"] = "concat"
    residual: bool = True
    aggregation: Literal["attention", "mean"] = "attention"
    num_heads: PositiveInt = 4
    score: Literal["mlp", "cosine"] = "mlp"
    objective: Literal["bce", "ranking"] = "bce"
    mean_over: Literal["true_words", "pad_to"] = "true_words"
    pad_to: PositiveInt = 50

    @classmethod
    def released(cls, **settings: Any) -> CampConfig:
        """The model of the authors' code: scalar gate, concat fusion, a second attention over messages of unit length."""
        return cls(**settings)

    @classmethod
    def paper(cls, **settings: Any) -> CampConfig:
        """The model of the paper: vector gate, sum fusion, one affinity matrix, messages as they are."""
        return cls(**{"gate": "elementwise", "fusion": "sum", "second_attention": False, "message_norm": False, **settings})

    @classmethod
    def pretraining(cls, **settings: Any) -> CampConfig:
        """The cross-attention model: the cosine of the two sides' mean messages, with the ranking loss."""
        return cls(**{"fusion": "none", "message_norm": False, "aggregation": "mean", "score": "cosine", "objective": "ranking",
                      **settings})


@dataclass
class Side:
    """One side of a block of pairs: n samples of F fragments, and what depends on this side alone.

    ``fragments`` (n,F,d), 0 on padding, ``mask`` (n,F); ``query`` (over √d) and ``key`` (n,F,d) of the first attention; ``mixing`` (n,F,F):
    logits between the messages made of single fragments; ``gram`` (n,F,F); ``own`` (n,F,d): F's share of a receiving fragment;
    ``passed`` (n,F,d): F's share of a message. None where the config needs none. ``paired``: its n samples are not combined with all
    of the other side, but each with one: S = n and N = 1.
    """

    fragments: Tensor
    mask: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    mixing: Tensor | None = None
    gram: Tensor | None = None
    own: Tensor | None = None
    passed: Tensor | None = None
    paired: bool = False

    def over_pairs(self, values: Tensor) -> Tensor:
        """What belongs to the receivers, (n,F,...), beside tensors (S,N,F,...): (1,N,F,...), or (S,1,F,...) of pairs."""
        return values.unsqueeze(1 if self.paired else 0)


# --- The equations, for N receivers and S senders ------------------------------------------------------------------------


def affinities(receivers: Tensor, senders: Tensor, paired: bool = False) -> Tensor:
    """Dot products (S,N,F,G) of fragments (N,F,d) and (S,G,d); where they are ``paired``, (S,1,F,G) of each with its own."""
    if paired:
        return (receivers @ senders.mT)[:, None]
    every = receivers.flatten(0, 1) @ senders.flatten(0, 1).T
    return every.view(*receivers.shape[:2], *senders.shape[:2]).permute(2, 0, 1, 3)


def attend(logits: Tensor, sender_mask: Tensor) -> Tensor:
    """Softmax of (S,N,F,G) over the true fragments of the sender, ``sender_mask`` (S,G)."""
    return softmax(logits.masked_fill(~sender_mask[:, None, None, :], -torch.inf))


def mix(attention: Tensor, mixing: Tensor, receiver_mask: Tensor) -> Tensor:
    """Second attention: coefficients (S,N,F,G) of the messages after self-attention over the receiver's true fragments.

    softmax(A M Aᵀ) A with M = (Q's)(K's)ᵀ/√d, ``mixing`` (S,G,G). ``receiver_mask`` (1,N,F), or (S,1,F) of pairs.
    """
    logits = by_sender(attention, mixing) @ attention.mT
    return softmax(logits.masked_fill(~receiver_mask[:, :, None, :], -torch.inf)) @ attention


def by_sender(coefficients: Tensor, values: Tensor) -> Tensor:
    """Coefficients (S,N,F,G) times each sender's own matrix (S,G,·): the messages, where that is its fragments."""
    return (coefficients.flatten(1, 2) @ values).unflatten(1, coefficients.shape[1:3])


def unit_messages(coefficients: Tensor, gram: Tensor) -> Tensor:
    """The coefficients (S,N,F,G) of the same messages at length 1; ‖m‖² = B G Bᵀ with the sender's ``gram`` (S,G,G)."""
    squared = (by_sender(coefficients, gram) * coefficients).sum(-1, keepdim=True)
    return coefficients / (squared.clamp(min=TINY).sqrt() + EPS)


def scalar_gates(coefficients: Tensor, products: Tensor) -> Tensor:
    """g = σ(v · m) (S,N,F), from the coefficients of m and the dot products of all fragments, both (S,N,F,G)."""
    return (coefficients * products).sum(-1).sigmoid()


def summarise(fused: Tensor, mask: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Summary attention: fused (·,N,F,d) with mask (1,N,F), or (·,1,F) -> (·,N,d), and the weights (·,N,F), the mean over the heads."""
    weights = layer(fused).masked_fill(~mask[..., None], -torch.inf).softmax(-2).mean(-1)
    return (weights[..., None, :] @ fused).squeeze(-2), weights


# --- The model ----------------------------------------------------------------------------------------------------------


class Projections(nn.Module):
    """The queries' and keys' matrices, d×d without bias. ``*_message_*`` act on messages made of that side's fragments."""

    def __init__(self, dim: int, second_attention: bool):
        super().__init__()
        names = ["image_key", "text_key"]
        if second_attention:
            names += ["image_query", "text_query"]
            names += [f"{side}_message_{kind}" for side in ("image", "text") for kind in ("key", "query")]
        for name in names:
            setattr(self, name, nn.Linear(dim, dim, bias=False))
        for layer in (self.image_key, self.text_key):
            wide_uniform(layer, dim)


def even_share(count: int, most: int) -> int:
    """The size of blocks of at most ``most`` that share ``count`` evenly.

    >>> even_share(16, 11)
    8
    """
    return math.ceil(count / math.ceil(count / most))


def wide_uniform(layer: nn.Linear, dim: int) -> None:
    """Weights uniform in ±√6/√(2d), a bias of 0, whatever the layer's own sizes: the authors' start."""
    bound = math.sqrt(6 / (2 * dim))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class CAMP(FragmentModel):
    """Cross-modal adaptive message passing.

    ``block_bytes`` bounds the working memory of ``similarity`` beyond its inputs and scores; None takes 32 MiB on a CPU, or 128 pairs where
    they are larger, and 512 MiB elsewhere. In training the blocks' tensors are kept for the backward pass up to ``graph_bytes``; above that each block
    is computed again there. Neither changes a number beyond rounding.
    """

    name = "camp"
    config_class = CampConfig
    batch_layout = "image"
    shares_scores = True
    scores_pairs = True
    other_words = 0.1  # of words that word2vec lacks, as released
    config: CampConfig
    block_bytes: int | None = None
    graph_bytes: int = 2**30

    def __init__(self, config: CampConfig):
        super().__init__(config)
        dim = config.embed_dim
        if config.messages == "attention":
            self.attention = Projections(dim, config.second_attention)
        if config.messages != "none" and config.fusion != "none":
            wide = 2 * dim if config.fusion == "concat" else dim
            self.fusion = nn.ModuleDict({side: nn.Linear(wide, dim, bias=False) for side in ("regions", "words")})
            for layer in self.fusion.values():
                wide_uniform(layer, dim)
        if config.aggregation == "attention":
            make = lambda: nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, config.num_heads))  # noqa: E731
            self.summary = nn.ModuleDict({"regions": make(), "words": make()})
        if config.score == "mlp":
            wide = dim if config.fusion in ("sum", "product") else 2 * dim
            self.head = nn.Sequential(nn.Linear(wide, dim), nn.ReLU(), nn.Linear(dim, 1))
            for layer in (self.head[0], self.head[2]):
                wide_uniform(layer, dim)

    # --- scores ---

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """Scores (I, C) of all pairs, block by block; float64 where they are probabilities and the device has it."""
        dtype = score_dtype(self)
        images, captions = (Encoding(side.fragments.to(dtype), side.mask) for side in (images, captions))
        bytes_ = self._pair_bytes(images.fragments.shape[1], captions.fragments.shape[1])
        block_bytes = self.block_bytes or (max(2**25, 128 * bytes_) if images.fragments.device.type == "cpu" else 2**29)
        recompute = torch.is_grad_enabled() and bytes_ * len(images) * len(captions) > self.graph_bytes
        pairs = max(1, block_bytes // (2 * bytes_ if recompute else bytes_))  # with a block's graph come its gradients
        height = even_share(len(images), math.isqrt(pairs))
        width = even_share(len(captions), pairs // height)
        order = captions.mask.sum(1).argsort(stable=True)  # captions of like length together: little padding
        with torch.autocast(images.fragments.device.type, enabled=False):
            sides = [self._side(images.select(slice(top, top + height)), "regions") for top in range(0, len(images), height)]
            columns = []
            for rows in order.split(width):
                words = self._side(self._with_pad_position(captions.select(rows)), "words")
                scores = [checkpoint(self._score, side, words, use_reentrant=False) if recompute else self._score(side, words)
                          for side in sides]
                columns.append(torch.cat(scores))
        return torch.cat(columns, dim=1)[:, order.argsort()]

    def similarity_of_pairs(self, images: Encoding, captions: Encoding, rows: Tensor, columns: Tensor) -> Tensor:
        """Scores (P,) of P pairs; all in one block."""
        dtype = score_dtype(self)
        images, captions = (Encoding(side.fragments[picked].to(dtype), side.mask[picked])
                            for side, picked in ((images, rows), (captions, columns)))
        with torch.autocast(images.fragments.device.type, enabled=False):
            regions, words = self._side(images, "regions"), self._side(self._with_pad_position(captions), "words")
            regions.paired = words.paired = True
            return self._score(regions, words).squeeze(1)

    def _with_pad_position(self, captions: Encoding) -> Encoding:
        """With ``mean_over="pad_to"``, one padded position is kept: it stands for all of them, whose messages are equal."""
        if not self._keeps_pad_position:
            return captions
        longest = captions.fragments.shape[1]
        if longest > self.config.pad_to:
            raise InputError(f"a caption has {longest} words and pad_to is {self.config.pad_to}: cut captions or raise pad_to")
        return Encoding(nn.functional.pad(captions.fragments, (0, 0, 0, 1)), nn.functional.pad(captions.mask, (0, 1)))

    @property
    def _keeps_pad_position(self) -> bool:
        config = self.config
        return config.mean_over == "pad_to" and config.fusion == "none" and config.aggregation == "mean" and config.messages != "none"

    def _side(self, encoding: Encoding, kind: Literal["regions", "words"]) -> Side:
        """What depends on the regions or on the words alone."""
        config, mask = self.config, encoding.mask
        x = encoding.fragments.masked_fill(~mask[..., None], 0)
        side = Side(x, mask)
        name, other = ("image", "words") if kind == "regions" else ("text", "regions")
        if config.messages == "attention":
            scale = 1 / math.sqrt(config.embed_dim)
            project = lambda what: getattr(self.attention, f"{name}_{what}")(x)  # noqa: E731
            side.key = project("key")
            side.query = scale * (project("query") if config.second_attention else side.key)
            if config.second_attention:
                side.mixing = scale * (project("message_query") @ project("message_key").mT)
        if config.messages != "none" and config.message_norm:
            side.gram = x @ x.mT
        if self._linear_fusion:
            receiving, sending = self.fusion[kind].weight, self.fusion[other].weight
            if config.fusion == "concat":
                receiving, sending = receiving[:, : config.embed_dim], sending[:, config.embed_dim :]
            side.own, side.passed = x @ receiving.T, x @ sending.T
        return side

    @property
    def _linear_fusion(self) -> bool:
        """Whether F acts on something linear in the message, so that it can act on fragments."""
        config = self.config
        return config.messages != "none" and config.gate != "elementwise" and config.fusion in ("concat", "sum")

    def _score(self, images: Side, captions: Side) -> Tensor:
        """Scores (I, C) of one block, or (P, 1) of pairs."""
        paired, first = images.paired, 0 if images.paired else 1  # what the images receive comes as (C,I,d), or as (P,1,d)
        if self.config.messages == "none":
            x, y = (l2norm(self._pool(side.fragments[None], side.mask[None], kind)[0][0])
                    for side, kind in ((images, "regions"), (captions, "words")))
            x, y = x[:, None], y[:, None] if paired else y[None]                       # (I,1,d) and (1,C,d), or both (P,1,d)
            if self.config.score == "cosine" and not paired:
                return x.squeeze(1) @ y.squeeze(0).T
        else:
            products = affinities(images.fragments, captions.fragments, paired) if self.config.gate == "scalar" else None
            x = l2norm(self._receive(images, captions, products, "regions").transpose(0, first))
            if products is not None:
                products = products.mT if paired else products.permute(1, 0, 3, 2)
            y = l2norm(self._receive(captions, images, products, "words"))
        if self.config.score == "cosine":
            return (x * y).sum(-1)
        layer, last = self.head[0], self.head[2]
        wx, wy = layer.weight.split(self.config.embed_dim, 1) if layer.in_features > self.config.embed_dim else [layer.weight] * 2
        hidden = torch.relu(x @ wx.T + y @ wy.T + layer.bias)
        logits = hidden @ last.weight[0] + last.bias
        return (logits if logits.device.type == "mps" else logits.double()).sigmoid()

    def _receive(self, receiver: Side, sender: Side, products: Tensor | None, kind: str) -> Tensor:
        """One side's vector for each pair (S,N,d): message, gate, fusion, pooling. ``products``: of all fragments (S,N,F,G)."""
        coefficients = self._coefficients(receiver, sender)[1]
        if self.config.fusion == "none" and self.config.aggregation == "mean":  # the mean of mixtures is one mixture
            weights = self._mean_weights(receiver.over_pairs(receiver.mask), kind)
            return by_sender(weights @ coefficients, sender.fragments).squeeze(2)
        return self._pool(self._fuse(receiver, sender, coefficients, products, kind), receiver.over_pairs(receiver.mask), kind)[0]

    def _coefficients(self, receiver: Side, sender: Side) -> tuple[Tensor, Tensor]:
        """What each fragment takes of the sender's (S,N,F,G): of the first attention, and of the message in the end."""
        if self.config.messages == "average":
            share = sender.mask.to(sender.fragments.dtype) / sender.mask.sum(1, keepdim=True)
            samples, fragments = receiver.mask.shape
            first = share[:, None, None, :].expand(-1, 1 if receiver.paired else samples, fragments, -1)
        else:
            first = attend(affinities(receiver.query, sender.key, receiver.paired), sender.mask)
        second = first
        if self.config.messages == "attention" and self.config.second_attention:
            second = mix(first, sender.mixing, receiver.over_pairs(receiver.mask))
        return first, unit_messages(second, sender.gram) if self.config.message_norm else second

    def _fuse(self, receiver: Side, sender: Side, coefficients: Tensor, products: Tensor | None, kind: str) -> Tensor:
        """Fused fragments (S,N,F,d) of every pair."""
        config, x = self.config, receiver.over_pairs(receiver.fragments)
        if config.fusion == "none":
            return by_sender(coefficients, sender.fragments)
        gates = None if products is None else scalar_gates(coefficients, products)[..., None]
        if self._linear_fusion:
            taken = by_sender(coefficients if gates is None else gates * coefficients, sender.passed)
            own = receiver.over_pairs(receiver.own)
            mapped = taken + own if gates is None else torch.addcmul(taken, gates, own)
        else:
            messages = by_sender(coefficients, sender.fragments)
            gates = (x * messages).sigmoid() if config.gate == "elementwise" else gates
            joined = {"concat": lambda: (x, messages), "sum": lambda: (x + messages,), "product": lambda: (x * messages,)}
            parts = [part if gates is None else gates * part for part in joined[config.fusion]()]
            weights = self.fusion[kind].weight.split(config.embed_dim, 1)
            mapped = sum(part @ weight.T for part, weight in zip(parts, weights))
        fused = mapped.relu_()  # in place: these are the largest tensors there are
        if not config.residual:
            return fused
        return fused + x if fused.requires_grad else fused.add_(x)  # the gradient of ReLU needs its result

    def _pool(self, fused: Tensor, mask: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Fused fragments (·,N,F,d) with mask (1,N,F), or (·,1,F), to one vector (·,N,d), and the weights (·,N,F)."""
        if self.config.aggregation == "attention":
            return summarise(fused, mask, self.summary[kind])
        weights = self._mean_weights(mask, kind)
        return (weights @ fused).squeeze(-2), weights.squeeze(-2).expand(fused.shape[:-1])

    def _mean_weights(self, mask: Tensor, kind: str) -> Tensor:
        """Weights (·,N,1,F) of a mean over the true fragments; a kept padded word weighs as much as all of them up to ``pad_to``."""
        weights = mask.to(score_dtype(self))
        if kind == "words" and self._keeps_pad_position:
            weights[..., -1] = self.config.pad_to - mask.sum(-1)
        return (weights / weights.sum(-1, keepdim=True))[..., None, :]

    # --- loss, and what there is to look at ---

    def loss(self, images: Encoding, captions: Encoding, image_ids: Tensor, caption_image_ids: Tensor) -> dict[str, Tensor]:
        if self.config.objective == "ranking":
            return super().loss(images, captions, image_ids, caption_image_ids)
        positives = positive_mask(image_ids, caption_image_ids, self.config.same_image_negatives)
        pairs, (negatives, reduction) = matched_pairs(image_ids, caption_image_ids), self._bce_settings
        if negatives == "hardest":
            return hardest_bce(self.hardest_scores(images, captions, pairs, positives), reduction)
        return bce_loss(self.batch_scores(images, captions), pairs, positives, negatives, reduction)

    @property
    def _bce_settings(self) -> tuple[str, str]:
        return self.hinge_settings["negatives"], self.hinge_settings["reduction"]

    def collapsed_loss(self, num_images: int, num_captions: int) -> float:
        """2δ a pair for the hinge loss, 4 ln 2 for BCE with hardest negatives: every score 0.5 is the best constant."""
        if self.config.objective == "ranking":
            return super().collapsed_loss(num_images, num_captions)
        return collapsed_bce(num_images, num_captions, *self._bce_settings)

    def explain(self, images: Encoding, captions: Encoding) -> dict[str, Tensor]:
        """All pairs, 0 on padding. (I,C,W,R) ``attention`` of words over regions, ``word_messages``: the coefficients of each word's
        message after the second attention and the norm; (I,C,R,W) ``region_attention``, ``region_messages``; (I,C,W)
        ``word_gates``, ``word_weights`` (of the pooling); (I,C,R) ``region_gates``, ``region_weights``. A vector gate is
        shown as its mean over dimensions."""
        if self.config.messages == "none":
            return {}
        dtype, seen = score_dtype(self), {}
        with torch.autocast(images.fragments.device.type, enabled=False):
            regions = self._side(Encoding(images.fragments.to(dtype), images.mask), "regions")
            padded = self._with_pad_position(Encoding(captions.fragments.to(dtype), captions.mask))
            words, width = self._side(padded, "words"), captions.mask.shape[1]
            for kind, receiver, sender in (("word", words, regions), ("region", regions, words)):
                for name, value in self._seen(receiver, sender, f"{kind}s").items():
                    value = value * (receiver.mask if value.dim() == 3 else receiver.mask[..., None])
                    value = value[:, :, :width] if kind == "word" else value.transpose(0, 1)[..., :width if value.dim() == 4 else None]
                    seen[f"{kind}_{name}"] = value
        seen["attention"] = seen.pop("word_attention")
        return seen

    def _seen(self, receiver: Side, sender: Side, kind: str) -> dict[str, Tensor]:
        """Attention and messages (S,N,F,G), gates and pooling weights (S,N,F) of one side."""
        first, coefficients = self._coefficients(receiver, sender)
        seen = {"attention": first, "messages": coefficients}
        products = affinities(receiver.fragments, sender.fragments) if self.config.gate == "scalar" else None
        if self.config.fusion != "none" and products is not None:
            seen["gates"] = scalar_gates(coefficients, products)
        elif self.config.fusion != "none" and self.config.gate == "elementwise":
            seen["gates"] = (receiver.fragments * by_sender(coefficients, sender.fragments)).sigmoid().mean(-1)
        fused = self._fuse(receiver, sender, coefficients, products, kind)
        seen["weights"] = self._pool(fused, receiver.over_pairs(receiver.mask), kind)[1]
        return seen

    def pair_bytes(self, images: Encoding, captions: Encoding) -> int:
        """Bytes of one pair's fused fragments and of what is derived from them."""
        return self._pair_bytes(images.fragments.shape[1], captions.fragments.shape[1])

    def _pair_bytes(self, regions: int, words: int) -> int:
        config, dim = self.config, self.config.embed_dim
        coefficients = 8 * regions * words + regions**2 + words**2
        if config.messages == "none":
            cells = 2 * dim
        elif config.fusion == "none" and config.aggregation == "mean":
            cells = coefficients + 2 * dim
        else:
            copies = COPIES if self._linear_fusion or config.fusion == "none" else COPIES + 3
            cells = coefficients + copies * (regions + words) * dim
        return torch.finfo(score_dtype(self)).bits // 8 * cells
