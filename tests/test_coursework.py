"""Every checker takes a right answer, and refuses the stub and plausible wrong answers, saying what is wrong."""

import pytest
import torch

from itm_lib import coursework
from itm_lib.coursework import NotRight
from itm_lib.losses import hinge_loss


def stub(*arguments):
    raise NotImplementedError()


# ---- 00 Image-text retrieval: right answers as the notebook has them -----------------------------------------------------

def caption_recall(scores, caption_to_image, k, ties_against=True, best_caption=True):
    found = 0
    for row, line in enumerate(scores):
        own = caption_to_image == row
        best = line[own].max() if best_caption else line[own][0]
        before = (line[~own] >= best) if ties_against else (line[~own] > best)
        found += int(before.sum() < k)
    return 100 * found / len(scores)


def hardest_hinge(scores, positive_mask, margin, mean=True, masked=True, both=True, clamped=True, first=True):
    mask = positive_mask if masked else torch.eye(len(scores), dtype=torch.bool)
    matched = scores.diagonal()
    negatives = scores.masked_fill(mask, -torch.inf) if first else scores
    costs = [margin + negatives.amax(1) - matched, margin + negatives.amax(0) - matched][: 2 if both else 1]
    if clamped:
        costs = [cost.clamp(min=0) for cost in costs]
    return sum(cost.mean() if mean else cost.sum() for cost in costs)


def map_at_r(scores, truth, by_found=False, precision_only=False, whole=False, axis=1):
    if axis == 0:
        scores, truth = scores.T, truth.T
    values = []
    for column in range(scores.shape[1]):
        relevant = truth[scores[:, column].argsort(descending=True), column].float()
        total = int(relevant.sum())
        if not whole:
            relevant = relevant[:total]
        precision = relevant.cumsum(0) / torch.arange(1, len(relevant) + 1)
        if precision_only:
            values.append(relevant.mean())
        else:
            values.append((precision * relevant).sum() / (relevant.sum().clamp(min=1) if by_found else total))
    return 100 * float(torch.stack(values).mean())


def recall_ceiling(truth, k, axis=0, worst=False, capped=True, ignore_k=False):
    count = truth.sum(axis)
    if worst:
        return 100 * float((count <= k).float().mean())
    chance = (1 if ignore_k else k) / count
    return 100 * float((chance.clamp(max=1) if capped else chance).mean())


# ---- 01 From pixels to regions -------------------------------------------------------------------------------------------

def pooled_convolution(picture, kernel, relu=True, late=False, pool=torch.mean):
    size = len(kernel)
    places = [[(picture[y : y + size, x : x + size] * kernel).sum() for x in range(picture.shape[1] - size + 1)]
              for y in range(picture.shape[0] - size + 1)]
    values = torch.stack([torch.stack(row) for row in places])
    return pool(values.relu() if relu else values).relu() if late or relu else pool(values)


def box_iou(boxes, others, clamp=True, union=True, shared_twice=False):
    low, high = torch.maximum(boxes[:, None, :2], others[None, :, :2]), torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = ((high - low).clamp(min=0) if clamp else high - low).prod(2)
    area, other = ((part[:, 2:] - part[:, :2]).prod(1) for part in (boxes, others))
    return shared / (area[:, None] + other - (0 if shared_twice else shared)) if union else shared


def nearest_regions(features, owners, k, cosine=True, others=True):
    unit = features / features.norm(dim=1, keepdim=True) if cosine else features
    scores = unit @ unit.T
    if others:
        scores[owners[:, None] == owners] = -2
    return scores.argsort(dim=1, descending=True)[:, :k]


def interpolation_weights(places, size, half=0.5, clamped=True):
    at = (places - half).clamp(0, size - 1) if clamped else places - half
    low = at.floor().long().clamp(0, max(size - 2, 0))
    share = (at - low)[:, None]
    cells = torch.arange(size)
    return ((1 - share) * (cells == low[:, None]) + share * (cells == low[:, None] + 1)).clamp(0, 1)


def kept_boxes(boxes, scores, threshold, over=True, lowest=False):
    left, kept = scores.argsort(descending=not lowest).tolist(), []
    while left:
        best = left.pop(0)
        kept.append(best)
        if over:
            left = [other for other in left if box_iou(boxes[[best]], boxes[[other]])[0, 0] <= threshold]
    return kept


def boxes_without_greed(boxes, scores, threshold):
    iou, order = box_iou(boxes, boxes), scores.argsort(descending=True).tolist()
    return [row for place, row in enumerate(order) if all(iou[row, other] <= threshold for other in order[:place])]


def boxes_against_the_last(boxes, scores, threshold):
    iou, kept = box_iou(boxes, boxes), []
    for row in scores.argsort(descending=True).tolist():
        if not kept or iou[row, kept[-1]] <= threshold:
            kept.append(row)
    return kept


# ---- 02 SCAN -------------------------------------------------------------------------------------------------------------

def normalised(raw, dim=1, leak=0.1, squash=True):
    values = torch.nn.functional.leaky_relu(raw, leak) if squash else raw
    return values / (values.norm(dim=dim, keepdim=True) + 1e-8)


def attended_cosine(attention, raw, gram, root=True, between=True):
    squared = (attention * ((gram if between else torch.eye(len(gram))) @ attention)).sum(0)
    return (attention * raw).sum(0) / (squared.sqrt() if root else squared)


def lse_pooling(relevance, mask, lambda_lse):
    return torch.logsumexp((lambda_lse * relevance).masked_fill(~mask, -torch.inf), dim=1) / lambda_lse


def lse_overflowing(relevance, mask, lambda_lse):
    return ((lambda_lse * relevance).exp() * mask).sum(1).log() / lambda_lse


def sum_max(regions, words, mask, masked=True):
    best = torch.einsum("ird,cwd->icwr", regions, words).amax(3)
    return (best * mask if masked else best).sum(2)


# ---- 03 CAMP -------------------------------------------------------------------------------------------------------------

def region_messages(regions, words, mask, masked=True, scale=True, axis=1):
    logits = regions @ words.T / (regions.shape[1] ** 0.5 if scale else 1)
    if masked:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(axis) @ words


def gates(coefficients, products):
    return torch.sigmoid((coefficients * products).sum(1))


def gated_fusion(regions, messages, weight, gated=True, residual=True, inside=False):
    gate = torch.sigmoid((regions * messages).sum(1, keepdim=True)) if gated else 1
    mapped = (gate * torch.cat([regions, messages], 1)) @ weight.T
    return (mapped + regions).relu() if inside else mapped.relu() + (regions if residual else 0)


def hardest_bce(scores, positive_mask, eps, positive=2, clamped=True, first=True, reduce=torch.mean):
    scores = scores.clamp(eps, 1 - eps) if clamped else scores
    negatives = scores.masked_fill(positive_mask, 0) if first else scores
    own = -positive * scores.diagonal().log()
    return reduce(own - (1 - negatives.amax(1)).log() - (1 - negatives.amax(0)).log())


# ---- 04 HREM -------------------------------------------------------------------------------------------------------------

def closeness(embeddings, sigma, power=1, divide=True):
    distances = (embeddings[:, None] - embeddings[None, :]).norm(dim=2) ** power
    return torch.exp(-distances / (sigma if divide else 1))


def match_vector(cosines, topk, over=1, best=0, squash=True, norm=True, fill=True):
    values = torch.nn.functional.leaky_relu(cosines, 0.1) if squash else cosines
    if norm:
        values = values / values.norm(dim=over, keepdim=True)
    found = values.amax(dim=best).sort(descending=True).values[:topk]
    return torch.cat([found, torch.zeros(topk - len(found))]) if fill else found


def graph_step(nodes, connection, relevance, weight, masked=-torch.inf, scale=True, axis=1):
    logits = nodes @ nodes.T / (nodes.shape[1] ** 0.5 if scale else 1) + weight * relevance
    return logits.masked_fill(~connection, masked).softmax(axis) @ nodes


def negative_chances(distances, positives, cutoff, dim, sign=-1, stable=True, own=True):
    logs = sign * ((dim - 2) * distances.log() + (dim - 3) / 2 * torch.log(1 - distances**2 / 4))
    allowed = (~positives if own else True) & (distances < cutoff)
    logs = logs.masked_fill(~allowed, -torch.inf)
    return logs.softmax(0) if stable else logs.exp() / logs.exp().sum()


# ---- 05 DivE -------------------------------------------------------------------------------------------------------------

def variance_of_sets(sets, axis=1, first=False, inverted=True, squared=False):
    length = sets.norm(dim=2).mean(1) if first else sets.mean(axis).norm(dim=-1)
    length = length**2 if squared else length
    return 1 - length if inverted else length


def soft_chamfer(x, y, alpha, stable=True, pool=torch.mean, half=True, scaled=True, both=True, inner=False):
    values = alpha * x @ y.T
    sums = [values.logsumexp(axis) if stable else values.exp().sum(axis).log() for axis in (1, 0)]
    if inner:
        sums = [sums[0] - torch.tensor(float(len(y))).log(), sums[1] - torch.tensor(float(len(x))).log()]
    whole = pool(sums[0]) + (pool(sums[1]) if both else 0)
    return whole / ((2 if half else 1) * (alpha if scaled else 1))


def slot_shares(logits, mask, axis=0, late=True, shares=True, leak=False):
    if not late:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min if leak else -torch.inf)
    weights = logits.softmax(axis)
    weights = weights.masked_fill(~mask, 0) if late else weights
    return weights / weights.sum(1, keepdim=True) if shares else weights


def choose(fit, candidates, seeds, mean=True, paired=True, again=False, highest=True):
    table = {candidate: [fit(candidate, seed) for seed in seeds] for candidate in candidates}
    rank = (lambda candidate: sum(table[candidate])) if mean else (lambda candidate: max(table[candidate]))
    best = (max if highest else min)(candidates, key=rank)
    others = [table[candidate] for candidate in candidates if candidate != best]
    if again:
        fit(best, seeds[0])
    if paired:
        return best, all(mine > theirs for other in others for mine, theirs in zip(table[best], other))
    return best, all(min(table[best]) > max(other) for other in others)


# ---- 06 Reproduction --------------------------------------------------------------------------------------------------------

def t2i_r1(scores, owners, ties_against=True):
    matched = scores[owners, torch.arange(scores.shape[1])]
    found = (scores >= matched).sum(0) == 1 if ties_against else (scores > matched).sum(0) == 0
    return 100 * found.double().mean()


def fivefold(scores, owners, folds, consecutive=True, sum_of=False, only=None, ties_against=True):
    pictures, recalls = torch.arange(len(scores)), []
    for fold in range(folds):
        rows = pictures[fold * len(scores) // folds : (fold + 1) * len(scores) // folds] if consecutive else pictures[fold::folds]
        columns = [column for column, owner in enumerate(owners.tolist()) if owner in rows.tolist()]
        own = torch.tensor([rows.tolist().index(owner) for owner in owners[columns].tolist()])
        recalls.append(t2i_r1(scores[rows][:, columns], own, ties_against))
    return recalls[only] if only is not None else sum(recalls) if sum_of else sum(recalls) / folds


def recall_interval(answered, drawn, low=0.025, axis=1, percent=100):
    recalls = percent * answered[drawn].double().mean(axis)
    return torch.quantile(recalls, torch.tensor([low, 1 - low], dtype=torch.float64))


def ensemble(first, second, owners, of=torch.mean, ties_against=True):
    scores = of(torch.stack([first, second]), 0)
    return t2i_r1(scores if isinstance(scores, torch.Tensor) else scores.values, owners, ties_against)


def luck(better, worse, two_sided=True, strict=False):
    from itertools import product

    gains = torch.tensor(better, dtype=torch.float64) - torch.tensor(worse, dtype=torch.float64)
    means = torch.stack([(gains * torch.tensor(signs)).mean() for signs in product([1.0, -1.0], repeat=len(gains))])
    found = gains.mean()
    if two_sided:
        means, found = means.abs(), found.abs()
    return float(((means > found + 1e-9) if strict else (means >= found - 1e-9)).double().mean())


# ---- 07 Training on GPUs ------------------------------------------------------------------------------------------------------

def run_length(captions, per_gpu, gpus, epochs, lr, tuned_for, all_gpus=True, whole=True, up=True, scaled=True):
    batch = per_gpu * (gpus if all_gpus else 1)
    steps = -(-captions // batch) if up else captions // batch
    return steps * (epochs if whole else 1), lr * per_gpu * gpus / tuned_for if scaled else lr


def negatives(per_gpu, gpus, accumulate, gathered, meet=False, ignore=False, itself=1):
    return per_gpu * (gpus if gathered or ignore else 1) * (accumulate if meet else 1) - itself


def gather_backward(gradients, sizes, rank, of=torch.sum, uneven=True):
    first = sum(sizes[:rank]) if uneven else rank * sizes[rank]
    return of(gradients, 0)[first : first + sizes[rank]]


def checkpoint(run, without=(), copied=True):
    import copy

    return {name: copy.deepcopy(getattr(run, name)) if copied else getattr(run, name) for name in coursework.ToyRun.NAMES if name not in without}


# ---- 08 Search -----------------------------------------------------------------------------------------------------------

def index_recall(found, exact):
    return 100 * sum(len(set(one.tolist()) & set(two.tolist())) for one, two in zip(found, exact)) / found.numel()


def table_scores(query, codebooks, codes, parts=None):
    table = torch.einsum("mkd,md->mk", codebooks, query.reshape(len(codebooks), -1))
    return sum(table[part][codes[:, part]] for part in range(parts or len(codebooks)))


def fused_scores(rankings, k, first=1):
    scores = torch.zeros(rankings.shape[1], dtype=torch.float64)
    for ranking in rankings.tolist():
        for rank, picture in enumerate(ranking, first):
            scores[picture] += 1 / (k + rank)
    return scores


# ---- 09 Real photographs -------------------------------------------------------------------------------------------------

def verdict(better, worse, t, paired=True, ddof=1, root=True, times=True, interval=True):
    better, worse = (torch.tensor(values, dtype=torch.float64) for values in (better, worse))
    gains = better - worse
    spread = gains.std(correction=ddof) if paired else (better.var() + worse.var()).sqrt()
    half = (t if times else 1) * spread / (len(gains) ** 0.5 if root else 1) if interval else 0
    return int(gains.mean() - half > 0) - int(gains.mean() + half < 0)


def crowd_auc(scores, yes, ties=0.5, percent=100.0):
    above = scores[yes][:, None] - scores[~yes][None]
    return percent * float(((above > 0).double() + ties * (above == 0).double()).mean())


def wrong_but_right(scores, caption_to_image, judged, right, wrong_alone=True, whole=False, turned=False):
    if turned:
        rows, columns = torch.arange(len(scores)), scores.argmax(1)
    else:
        rows, columns = scores.argmax(0), torch.arange(scores.shape[1])
    wrong = caption_to_image[columns] != rows
    kept = wrong if wrong_alone else torch.ones_like(wrong)
    if whole:
        return int(wrong.sum()), int(judged.sum()), int(right.sum())
    return int(wrong.sum()), int((kept & judged[rows, columns]).sum()), int((kept & judged[rows, columns] & right[rows, columns]).sum())


CASES = [
    (coursework.check_caption_recall, caption_recall, [
        (lambda s, o, k: caption_recall(s, o, k, ties_against=False), "ties count against the query"),
        (lambda s, o, k: caption_recall(s, o, k, best_caption=False), "not only its first caption"),
        (lambda s, o, k: caption_recall(s, o, k) / 100, "in percent"),
        (lambda s, o, k: 50.0, "constant scorer|same score"),
    ]),
    (coursework.check_hardest_hinge, hardest_hinge, [
        (lambda s, p, m: hardest_hinge(s, p, m, mean=False), "not their sum"),
        (lambda s, p, m: hardest_hinge(s, p, m, masked=False), "use positive_mask"),
        (lambda s, p, m: hardest_hinge(s, p, m, both=False), "the columns are missing"),
        (lambda s, p, m: hardest_hinge(s.T, p.T, m, both=False), "the rows are missing"),
        (lambda s, p, m: hinge_loss(s, (torch.arange(len(s)),) * 2, p, m, negatives="all")["loss"], "not all of them"),
        (lambda s, p, m: hardest_hinge(s, p, m, clamped=False), "cut to 0"),
        (lambda s, p, m: hardest_hinge(s, p, m, first=False), "three pairs"),
    ]),
    (coursework.check_map_at_r, map_at_r, [
        (lambda s, t: map_at_r(s, t, by_found=True), "not by the number found"),
        (lambda s, t: map_at_r(s, t, precision_only=True), "R-Precision"),
        (lambda s, t: map_at_r(s, t, whole=True), "stop after the first R"),
        (lambda s, t: map_at_r(s, t, axis=0), "a caption true of 3 pictures"),
        (lambda s, t: map_at_r(s, t) / 100, "in percent"),
    ]),
    (coursework.check_recall_ceiling, recall_ceiling, [
        (lambda t, k: 100.0, "cannot know"),
        (lambda t, k: recall_ceiling(t, k, worst=True), "worst case"),
        (lambda t, k: recall_ceiling(t, k, capped=False), "no chance is above 1"),
        (lambda t, k: recall_ceiling(t, k, ignore_k=True), "k counts too"),
        (lambda t, k: recall_ceiling(t, k, axis=1), "captions true of 1, 2 and 4"),
    ]),
    (coursework.check_pooled_convolution, pooled_convolution, [
        (lambda p, k: pooled_convolution(p, k, relu=False), "ReLU"),
        (lambda p, k: pooled_convolution(p, k, relu=False, late=True), "before the mean"),
        (lambda p, k: pooled_convolution(p, k, pool=torch.max), "the largest place"),
        (lambda p, k: pooled_convolution(p, k.flip(0, 1)), "does not flip"),
        (lambda p, k: torch.nn.functional.conv2d(p[None, None], k[None, None], padding=1).relu().mean(), "2 × 3|no padding"),
    ]),
    (coursework.check_box_iou, box_iou, [
        (lambda b, o: box_iou(b, o, clamp=False), "cut negative sides"),
        (lambda b, o: box_iou(b, o, shared_twice=True), "counts what is shared once"),
        (lambda b, o: box_iou(b, o, union=False), "that is the intersection"),
        (lambda b, o: box_iou(b, o, union=False) / (b[:, 2:] - b[:, :2]).prod(1)[:, None], "share of the first box"),
    ]),
    (coursework.check_nearest_regions, nearest_regions, [
        (lambda f, o, k: nearest_regions(f, o, k, others=False), "own picture does not count"),
        (lambda f, o, k: nearest_regions(f, o, k, cosine=False), "divide each vector by its length"),
        (lambda f, o, k: torch.cdist(f, f).masked_fill(o[:, None] == o, -1).topk(k, dim=1).indices, "farthest|regions"),
    ]),
    (coursework.check_interpolation_weights, interpolation_weights, [
        (lambda p, n: interpolation_weights(p, n, half=0.0), "half a cell is to be taken off"),
        (lambda p, n: (1 - (p[:, None] - 0.5 - torch.arange(n)).abs()).clamp(min=0), "every row sums to 1"),
        (lambda p, n: torch.nn.functional.one_hot(p.floor().long().clamp(max=n - 1), n).float(), "the nearest cell alone"),
        (lambda p, n: interpolation_weights(p, n).T, "shape|row a place"),
    ]),
    (coursework.check_kept_boxes, kept_boxes, [
        (boxes_without_greed, "throws away no other"),
        (boxes_against_the_last, "not with the last one alone"),
        (lambda b, s, t: kept_boxes(b, s, t, lowest=True), "not with the least sure"),
        (lambda b, s, t: sorted(kept_boxes(b, s, t)), "by falling score"),
        (lambda b, s, t: kept_boxes(b, s, t, over=False), "all the boxes"),
    ]),
    (coursework.check_normalise_raw, normalised, [
        (lambda r: normalised(r, dim=0), "runs over the words"),
        (lambda r: normalised(r, squash=False), "two regions|LeakyReLU comes first"),
        (lambda r: normalised(r, leak=0.0), "keeps a tenth"),
        (lambda r: torch.nn.functional.leaky_relu(r, 0.1), "not normalised"),
        (lambda r: torch.nn.functional.leaky_relu(r, 0.1) / torch.nn.functional.leaky_relu(r, 0.1).norm(dim=1, keepdim=True), "NaN"),
    ]),
    (coursework.check_attended_cosine, attended_cosine, [
        (lambda a, r, g: (a * r).sum(0), "q · a alone"),
        (lambda a, r, g: attended_cosine(a, r, g, root=False), "take its root"),
        (lambda a, r, g: attended_cosine(a, r, g, between=False), "Gram matrix belongs between"),
    ]),
    (coursework.check_lse_pooling, lse_pooling, [
        (lambda r, m, k: lse_pooling(r, torch.ones_like(m), k), "the padded word counts"),
        (lambda r, m, k: k * lse_pooling(r, m, k), "divide by λ"),
        (lambda r, m, k: lse_pooling(r, m, 1.0), "inside the exponential"),
        (lambda r, m, k: lse_pooling(r, m, k) - m.sum(1).log() / k, "not divided by the number"),
        (lse_overflowing, "use torch.logsumexp"),
    ]),
    (coursework.check_sum_max, sum_max, [
        (lambda r, w, m: sum_max(r, w, m, masked=False), "the padded word counts"),
        (lambda r, w, m: sum_max(r, w, m) / m.sum(1), "do not average"),
        (lambda r, w, m: torch.einsum("ird,cwd->icwr", r, w).masked_fill(~m[:, :, None], -torch.inf).amax(2).sum(2),
         "the other direction"),
    ]),
    (coursework.check_region_messages, region_messages, [
        (lambda v, t, m: region_messages(v, t, m, masked=False), "the padded word takes part"),
        (lambda v, t, m: (v @ t.T / v.shape[1] ** 0.5 * m).softmax(1) @ t, "exp\\(0\\) is 1"),
        (lambda v, t, m: region_messages(v, t, m, axis=0), "the softmax runs over the words"),
        (lambda v, t, m: region_messages(v, t, m, scale=False), "divide the products by √d"),
        (lambda v, t, m: t[m].mean(0).expand_as(v), "the mean of the words"),
    ]),
    (coursework.check_gates, gates, [
        (lambda b, p: (b * p).sum(1), "that is v · m"),
        (lambda b, p: torch.sigmoid((b * p).sum(0)), "add up over the words"),
        (lambda b, p: torch.sigmoid(b * p).sum(1), "σ comes last"),
        (lambda b, p: torch.sigmoid(p.sum(1)), "how much of each word"),
        (lambda b, p: (b * p).sum(1).softmax(0), "no softmax"),
    ]),
    (coursework.check_gated_fusion, gated_fusion, [
        (lambda v, m, w: gated_fusion(v, m, w, residual=False), "the residual is missing"),
        (lambda v, m, w: gated_fusion(v, m, w, gated=False), "the gate is missing"),
        (lambda v, m, w: gated_fusion(v, m, w, inside=True), "keeps its negative numbers"),
        (lambda v, m, w: torch.sigmoid((v * m).sum(1, keepdim=True)) * gated_fusion(v, m, w, gated=False), "the residual is not gated"),
        (lambda v, m, w: torch.sigmoid((v * m).sum(1, keepdim=True)) * torch.cat([v, m], 1) @ w.T + v, "ReLU is missing"),
    ]),
    (coursework.check_hardest_bce, hardest_bce, [
        (lambda s, p, e: hardest_bce(s, p, e, positive=1), "counts twice"),
        (lambda s, p, e: hardest_bce(s, p, e, reduce=torch.sum), "not their sum"),
        (lambda s, p, e: hardest_bce(s, p, e, clamped=False), "without the clamp"),
        (lambda s, p, e: hardest_bce(s, p, e, first=False), "mask the positives before"),
        (lambda s, p, e: hardest_bce(s, torch.eye(len(s), dtype=torch.bool), e), "use positive_mask"),
        (lambda s, p, e: -2 * s.diagonal().log().mean() - (1 - s.masked_fill(p, 1).amin(1)).log().mean()
         - (1 - s.masked_fill(p, 1).amin(0)).log().mean(), "the easiest negative"),
    ]),
    (coursework.check_closeness, closeness, [
        (lambda x, s: closeness(x, s, power=2), "not squared"),
        (lambda x, s: closeness(x, s, divide=False), "divide the distance by σ"),
        (lambda x, s: torch.exp(-torch.cdist(x, x) / s), "60 embeddings.*exactly 1"),
        (lambda x, s: torch.exp(-((x**2).sum(1)[:, None] + (x**2).sum(1) - 2 * x @ x.T).clamp(min=0).sqrt() / s), "60 embeddings|6 random"),
        (lambda x, s: x @ x.T, "those are dot products"),
    ]),
    (coursework.check_match_vector, match_vector, [
        (lambda c, k: match_vector(c, k, over=0), "runs over the words"),
        (lambda c, k: match_vector(c, k, best=1), "every region's best word"),
        (lambda c, k: match_vector(c, k, norm=False), "divided by its length"),
        (lambda c, k: match_vector(c, k, squash=False), "LeakyReLU comes first"),
        (lambda c, k: match_vector(c, k, fill=False), "K = 5.*the missing entries are 0"),
        (lambda c, k: match_vector(c, k).flip(0), "the largest comes first"),
    ]),
    (coursework.check_graph_step, graph_step, [
        (lambda x, a, s, w: graph_step(x, a, s, w, masked=0.0), "exp\\(0\\) is 1"),
        (lambda x, a, s, w: graph_step(x, torch.ones_like(a), s, w), "those alone that A connects"),
        (lambda x, a, s, w: graph_step(x, a, s, 1.0), "λ times"),
        (lambda x, a, s, w: graph_step(x, a, s, w, scale=False), "by √d"),
        (lambda x, a, s, w: graph_step(x, a, s, w, axis=0), "runs over the columns"),
        (lambda x, a, s, w: (x @ x.T / x.shape[1] ** 0.5 + w * s).softmax(1) * a @ x, "mask before the softmax"),
    ]),
    (coursework.check_distance_weights, negative_chances, [
        (lambda d, p, c, n: negative_chances(d, p, c, n, sign=1), "drawn more often, not less"),
        (lambda d, p, c, n: negative_chances(d, p, c, n, own=False), "the match itself"),
        (lambda d, p, c, n: negative_chances(d, p, 3.0, n), "beyond the cutoff"),
        (lambda d, p, c, n: negative_chances(d, p, c, n, stable=False), "NaN.*work with logarithms"),
        (lambda d, p, c, n: negative_chances(d, p, c, 512), "the exponents are"),
    ]),
    (coursework.check_circular_variance, variance_of_sets, [
        (lambda s: variance_of_sets(s, inverted=False), "take it from 1"),
        (lambda s: variance_of_sets(s, first=True), "each element alone has length 1"),
        (lambda s: variance_of_sets(s, squared=True), "mean cosine of all pairs"),
        (lambda s: s.var(1, unbiased=False).sum(-1), "mean cosine of all pairs|variance of each number"),
        (lambda s: 1 - s.sum(1).norm(dim=-1), "divide the sum"),
        (lambda s: torch.zeros(3) if len(s) == 3 else variance_of_sets(s, axis=0), "each element alone has length 1"),
    ]),
    (coursework.check_smooth_chamfer, soft_chamfer, [
        (lambda x, y, a: soft_chamfer(x, y, a, stable=False), r"returns (inf|NaN)|gives inf on α = 1000, where exp overflows"),
        (lambda x, y, a: soft_chamfer(x, y, a, half=False), "half of each"),
        (lambda x, y, a: soft_chamfer(x, y, 2 * a, scaled=False), "the answer is"),
        (lambda x, y, a: soft_chamfer(x, y, a, both=False), "the second half is missing"),
        (lambda x, y, a: soft_chamfer(x, y, a, inner=True), "a sum, not a mean"),
        (lambda x, y, a: soft_chamfer(x, y, a, pool=torch.sum), "a mean over the elements"),
        (lambda x, y, a: ((x @ y.T).amax(1).mean() + (x @ y.T).amax(0).mean()) / 2, "that is Chamfer"),
        (lambda x, y, a: (x @ y.T).amax(), "MIL"),
    ]),
    (coursework.check_slot_shares, slot_shares, [
        (lambda g, m: slot_shares(g, m, axis=1, late=False, shares=False), "the slots compete"),
        (lambda g, m: slot_shares(g, m, shares=False), "divide each slot's row"),
        (lambda g, m: slot_shares(g, torch.ones_like(m)), "the padded fragment takes part"),
        (lambda g, m: slot_shares(g, m, late=False, leak=True), "1/K in every slot"),
        (lambda g, m: slot_shares(g, m, late=False), "returns NaN"),
    ]),
    (coursework.check_choice, choose, [
        (lambda f, c, s: choose(f, c, s, mean=False), "one lucky seed"),
        (lambda f, c, s: choose(f, c, s, paired=False), "seed by seed"),
        (lambda f, c, s: choose(f, c, s, highest=False), "the worst candidate"),
        (lambda f, c, s: choose(f, c, s, again=True), "keep what fit returns"),
        (lambda f, c, s: choose(f, c, s[:1]), "the answer is|leaves out"),
        (lambda f, c, s: (choose(f, c, s)[0], True), "ahead on average is not clear"),
    ]),
    (coursework.check_fivefold_t2i_r1, fivefold, [
        (lambda s, o, f: t2i_r1(s, o), "its own fold alone"),
        (lambda s, o, f: fivefold(s, o, f, only=0), "the first fold alone"),
        (lambda s, o, f: fivefold(s, o, f, consecutive=False), "a block of consecutive pictures|the first fold alone"),
        (lambda s, o, f: fivefold(s, o, f, sum_of=True), "take their mean"),
        (lambda s, o, f: fivefold(s, o, f, ties_against=False), "ties count against"),
        (lambda s, o, f: fivefold(s, o, f) / 100, "that is a share"),
    ]),
    (coursework.check_recall_interval, recall_interval, [
        (lambda a, d: recall_interval(a, d, percent=1), "that is a share"),
        (lambda a, d: recall_interval(a, d, low=0.05), "half of them on each side"),
        (lambda a, d: recall_interval(a, d, axis=0), "not over the draws of a place"),
        (lambda a, d: recall_interval(a, d, low=0.0), "the smallest and the largest"),
        (lambda a, d: recall_interval(a, d)[0], "one number"),
    ]),
    (coursework.check_ensemble_t2i_r1, ensemble, [
        (lambda x, y, o: (t2i_r1(x, o) + t2i_r1(y, o)) / 2, "the mean of two recalls"),
        (lambda x, y, o: ensemble(x, y, o, of=torch.max), "the larger of the two scores|the answer is"),
        (lambda x, y, o: ensemble(x, y, o, ties_against=False), "constant scorers find nothing"),
        (lambda x, y, o: t2i_r1(y, o), "the second model alone"),
        (lambda x, y, o: ensemble(x, y, o) / 100, "that is a share"),
    ]),
    (coursework.check_chance_of_luck, luck, [
        (lambda b, w: luck(b, w, two_sided=False), "compare absolute means"),
        (lambda b, w: luck(b, w, strict=True), "never 0"),
        (lambda b, w: 1 - luck(b, w), "that it is no luck"),
        (lambda b, w: luck(b, w) * 2 ** len(b), "a number of ways"),
        (lambda b, w: sum(b) / len(b) - sum(w) / len(w), "the mean difference"),
    ]),
    (coursework.check_run_length, run_length, [
        (lambda *a: run_length(*a, all_gpus=False), "the captions of all GPUs"),
        (lambda *a: run_length(*a, whole=False), "the steps of one epoch"),
        (lambda *a: run_length(*a, up=False), "round up"),
        (lambda *a: run_length(*a, scaled=False), "lr was tuned for another batch"),
        (lambda c, p, g, e, lr, t: (run_length(c, p, g, e, lr, t)[0], lr * p / t), "the batch of all GPUs"),
        (lambda c, p, g, e, lr, t: (-(-c * e // (p * g)), lr * p * g / t), "round up before you multiply"),
    ]),
    (coursework.check_negatives, negatives, [
        (lambda *a: negatives(*a, itself=0), "its own caption is no negative"),
        (lambda *a: negatives(*a, meet=True), "accumulated do not meet"),
        (lambda *a: negatives(*a, ignore=True), "stay on their GPU"),
        (lambda p, g, n, all_: negatives(p, g, n, False), "the negatives of all GPUs count"),
    ]),
    (coursework.check_gather_backward, gather_backward, [
        (lambda g, s, r: g[r, sum(s[:r]) : sum(s[: r + 1])], "this process alone"),
        (lambda g, s, r: gather_backward(g, s, r, of=torch.mean), "DDP takes the mean"),
        (lambda g, s, r: gather_backward(g, s, r, uneven=False), "of different sizes|returns an array of shape"),
        (lambda g, s, r: g.sum(0), "returns an array of shape"),
    ]),
    (coursework.check_checkpoint, checkpoint, [
        (lambda run: {"weights": run.weights.copy()}, "momentum is not in it"),
        (lambda run: checkpoint(run, without=("rng",)), "rng is not in it"),
        (lambda run: checkpoint(run, without=("position",)), "position is not in it"),
        (lambda run: checkpoint(run, without=("order",)), "order is not in it"),
        (lambda run: checkpoint(run, without=("step",)), "step is not in it"),
        (lambda run: checkpoint(run, copied=False), "save copies"),
        (lambda run: {**checkpoint(run), "step": 0}, "another step"),
        (lambda run: [run.weights], "returns a list"),
        (lambda run: {**checkpoint(run), "speed": 3}, "a run has no 'speed'"),
    ]),
    (coursework.check_index_recall, index_recall, [
        (lambda f, e: index_recall(f, e) / 100, "in percent"),
        (lambda f, e: 100 * (f == e).float().mean(), "wherever it stands"),
        (lambda f, e: 100 * (f[:, :, None] == e[:, None]).any(2).any(1).float().mean(), "not whether any of them"),
        (lambda f, e: index_recall(f[:, :1], e), "the answer is 50"),
    ]),
    (coursework.check_table_scores, table_scores, [
        (lambda q, b, c: table_scores(q, b, c, parts=1), "add up the parts"),
        (lambda q, b, c: table_scores(q, b[:1].expand_as(b), c), "a codebook of its own"),
        (lambda q, b, c: sum((b[m][c[:, m]] - q.reshape(len(b), -1)[m]).pow(2).sum(1) for m in range(len(b))), "squared distances"),
        (lambda q, b, c: table_scores(torch.cat([book[(book - part).norm(dim=1).argmin()] for book, part in zip(b, q.reshape(len(b), -1))]), b, c),
         "the query keeps its own numbers"),
    ]),
    (coursework.check_fused_scores, fused_scores, [
        (lambda r, k: fused_scores(r, k, first=0), "has rank 1, not 0"),
        (lambda r, k: (1 / (k + 1 + r)).sum(0), "turn it round"),
        (lambda r, k: fused_scores(r, k) / len(r), "do not take the mean"),
        (lambda r, k: fused_scores(r, 0), "below the line"),
        (lambda r, k: fused_scores(r[:1], k), "the first list alone"),
    ]),
    (coursework.check_verdict, verdict, [
        (lambda b, w, t: verdict(b, w, t, paired=False), "the differences of the same seed count"),
        (lambda b, w, t: verdict(b, w, t, root=False), "by the root of the number of seeds"),
        (lambda b, w, t: verdict(b, w, t, ddof=0), "divides by n - 1"),
        (lambda b, w, t: verdict(b, w, t, times=False), "t standard errors wide"),
        (lambda b, w, t: verdict(b, w, t, interval=False), "the interval decides, not the sign"),
        (lambda b, w, t: verdict(b, w, {3: 4.303, 4: 3.182, 5: 2.776}[len(b)]), "use the t that is given"),
        (lambda b, w, t: 1, "verdict|gives 1"),
    ]),
    (coursework.check_crowd_auc, crowd_auc, [
        (lambda s, y: crowd_auc(s, y, percent=1.0), "asked is percent"),
        (lambda s, y: crowd_auc(-s, y), "how often a yes is lower"),
        (lambda s, y: crowd_auc(s, y, ties=0.0), "they count nothing here"),
        (lambda s, y: crowd_auc(s, y, ties=1.0), "they count whole here"),
    ]),
    (coursework.check_wrong_but_right, wrong_but_right, [
        (lambda *a: wrong_but_right(*a, wrong_alone=False), "answers that recall counts as right are not asked about"),
        (lambda *a: wrong_but_right(*a, whole=True), "not in the whole matrix"),
        (lambda *a: wrong_but_right(*a, turned=True), "the queries are the captions"),
        (lambda s, c, j, r: (*wrong_but_right(s, c, j, r)[:2], wrong_but_right(s, c, torch.ones_like(j), r)[2]), "nobody judged cannot be called right"),
    ]),
]
CHECKERS = {checker.__name__: (checker, answer, wrong) for checker, answer, wrong in CASES}


def test_every_checker_is_tested():
    assert set(CHECKERS) == {name for name in dir(coursework) if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKERS)
def test_right_answer(name, capsys):
    checker, answer, _ = CHECKERS[name]
    checker(answer)
    assert capsys.readouterr().out == f"{answer.__name__}: right\n"


@pytest.mark.parametrize("name", CHECKERS)
def test_stub(name):
    with pytest.raises(NotRight, match="stub is not written yet"):
        CHECKERS[name][0](stub)


@pytest.mark.parametrize("name, number", [(name, number) for name in CHECKERS for number in range(len(CHECKERS[name][2]))])
def test_wrong_answer(name, number, capsys):
    wrong, says = CHECKERS[name][2][number]
    with pytest.raises(NotRight, match=says):
        CHECKERS[name][0](wrong)
    assert "right" not in capsys.readouterr().out


# ---- what every checker is made of ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("answer, says", [
    (lambda x: None, "returns None: end it with 'return'"),
    (lambda x: ..., "returns Ellipsis"),
    (lambda x: "four", "returns a str"),
    (lambda x: torch.zeros(2), r"an array of shape \(2,\) on a case, the answer is one number"),
    (lambda x: float("nan"), "returns NaN"),
    (lambda x: 1 / 0, r"stops with ZeroDivisionError \(division by zero\) on a case"),
    (lambda x: 3.0, "gives 3 on a case, the answer is 4: you forgot one"),
    (lambda x: 7.0, "gives 7 on a case, the answer is 4$"),
])
def test_expect_says_what_is_wrong(answer, says):
    with pytest.raises(NotRight, match=says) as error:
        coursework.expect(answer, (torch.ones(4),), 4.0, "a case", {"you forgot one": 3.0})
    assert "\n" not in str(error.value)


def test_expect_compares_arrays_and_copies_arguments():
    given = torch.ones(3)
    coursework.expect(lambda x: x.add_(1), (given,), [2.0, 2.0, 2.0], "ones")
    assert given.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(NotRight, match=r"gives \[1\. 1\. 1\.\] on ones, the answer is \[2\. 2\. 2\.\]"):
        coursework.expect(lambda x: x, (given,), [2.0, 2.0, 2.0], "ones")


def test_a_notebook_shows_one_line():
    assert NotRight("no")._render_traceback_() == ["Not right yet: no"]
