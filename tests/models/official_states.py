"""The authors' state dicts and options of each method, tiny, and the forms they are saved in."""

import torch

SCAN_OPTIONS = {"cross_attn": "i2t", "agg_func": "LogSumExp", "lambda_lse": 20.0, "lambda_softmax": 4.0,
           "raw_feature_norm": "l2norm", "no_imgnorm": True, "max_violation": True, "margin": 0.3,
                "embed_size": 12, "learning_rate": 2e-4, "data_path": "anywhere", "logger_name": "runs"}
CAMP_OPTIONS = {"measure": "gate_fusion_new", "fusion_func": "concat", "self_attention": False, "no_imgnorm": True, "no_txtnorm": True,
                "bi_gru": True, "num_layers": 1, "max_violation": True, "margin": 0.3, "loss_func": "ranking", "max_length": 9,
                "grad_clip": 2, "learning_rate": 0.01, "word_embed": False, "embed_mask": False, "val_epoc": 1,
                "optimizer": {"type": "SGD", "momentum": 0.9, "nesterov": True}}


def states(layers=1, both=True, weight_norm=False):
    """The two state dicts as SCAN's code has them."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    image = {"fc.weight_g": draw(), "fc.weight_v": draw(12, 10)} if weight_norm else {"fc.weight": draw(12, 10)}
    text = {"embed.weight": draw(30, 8)}
    for layer in range(layers):
        for suffix in ("", "_reverse") if both else ("",):
            width = 8 if layer == 0 else 12 * (1 + both)
            text |= {f"rnn.weight_ih_l{layer}{suffix}": draw(36, width), f"rnn.weight_hh_l{layer}{suffix}": draw(36, 12),
                     f"rnn.bias_ih_l{layer}{suffix}": draw(36), f"rnn.bias_hh_l{layer}{suffix}": draw(36)}
    return [{**image, "fc.bias": draw(12)}, text]


def camp_states(fusion="concat", summary=True, heads=4):
    """The three state dicts as CAMP's code has them; ``fusion="none"`` is the measure cross_attention_new."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    sim = {f"{weighted}{side}_{kind}_fc.weight": draw(12, 12) for weighted in ("", "weighted_") for side in ("img", "txt")
           for kind in ("key", "query")}
    wide = 24 if fusion == "concat" else 12
    if fusion != "none":
        sim |= {"fc_1.0.weight": draw(12, wide), "fc_2.0.weight": draw(12, wide), "fc_out.0.weight": draw(12, wide),
                "fc_out.0.bias": draw(12), "fc_out.3.weight": draw(1, 12), "fc_out.3.bias": draw(1)}
    if summary:
        for layer in ("reduce_layer_1", "reduce_layer_2") if fusion == "none" else ("final_reduce_1", "final_reduce_2"):
            sim |= {f"{layer}.linear.0.weight": draw(12, 12), f"{layer}.linear.0.bias": draw(12),
                    f"{layer}.linear.2.weight": draw(heads, 12), f"{layer}.linear.2.bias": draw(heads)}
    return [*states(), sim]


HREM_OPTIONS = {"embed_size": 12, "img_dim": 10, "nhead": 4, "dropout": 0.2, "mask_weight": 1.5, "threshold": 0.4, "topk": 7,
                "reg_loss_weight": 5, "warmup": 8000, "norm_input": 0, "cross_loss": 1, "mask_repeat": 1, "base_loss": "vse",
                "gnn_loss": "vse", "max_violation": True, "dataset": "coco", "residual_weight": 0.7, "graph_lr_factor": 2.0,
                "num_layers_enc": 2, "learning_rate": 5e-4, "data_path": "anywhere", "decay_rate": 0.1}


def hrem_states(criterion=False, vocab=30):
    """The state dicts as HREM's code has them: a BERT of two layers; ``criterion``: the relation modules, of two layers, besides."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    pair = lambda name, rows, columns: {f"{name}.weight": draw(rows, columns), f"{name}.bias": draw(rows)}
    flat = lambda name, size: {f"{name}.weight": draw(size), f"{name}.bias": draw(size)}

    def norm(name, size):
        counts = {f"{name}.running_mean": draw(size), f"{name}.running_var": draw(size).abs(), f"{name}.num_batches_tracked": torch.tensor(3)}
        return flat(name, size) | counts

    def layer(name, wide=12):
        return {f"{name}.self_attn.in_proj_weight": draw(36, 12), f"{name}.self_attn.in_proj_bias": draw(36),
                **pair(f"{name}.self_attn.out_proj", 12, 12), **pair(f"{name}.linear1", 12, 12), **pair(f"{name}.linear2", 12, 12),
                **flat(f"{name}.norm1", 12), **flat(f"{name}.norm2", 12)}
    image = {**pair("fc.fc", 12, 10), **pair("fc.mlp.layers.0", 6, 10), **pair("fc.mlp.layers.1", 12, 6), **norm("fc.mlp.bns.0", 6),
             **norm("fc.mlp.bns.1", 12), **layer("aggr.layers.0")}
    text = {"bert.embeddings.position_ids": torch.arange(9)[None], **flat("bert.embeddings.LayerNorm", 8)}
    for kind, rows in (("word", vocab), ("position", 9), ("token_type", 2)):
        text[f"bert.embeddings.{kind}_embeddings.weight"] = draw(rows, 8)
    for name in ("bert.encoder.layer.0", "bert.encoder.layer.1"):
        for part in ("query", "key", "value"):
            text |= pair(f"{name}.attention.self.{part}", 8, 8)
        text |= {**pair(f"{name}.attention.output.dense", 8, 8), **flat(f"{name}.attention.output.LayerNorm", 8),
                 **pair(f"{name}.intermediate.dense", 16, 8), **pair(f"{name}.output.dense", 8, 16), **flat(f"{name}.output.LayerNorm", 8)}
    text |= {**pair("bert.pooler.dense", 8, 8), **pair("linear", 12, 8), **layer("aggr.layers.0")}
    if not criterion:
        return [image, text]
    graph = {**layer("gnn.layers.0"), **layer("gnn.layers.1")}
    for way in ("i2t", "t2i"):
        graph |= {**pair(f"adj_model.adj_learning.mlp_{way}.0", 7, 7), **pair(f"adj_model.adj_learning.mlp_{way}.3", 1, 7)}
    return {f"{part}.{key}": value for part, state in zip(("img_enc", "txt_enc", "criterion"), (image, text, graph))
            for key, value in state.items()}


DIVE_OPTIONS = {"heads": 2, "spm_depth": 3, "loss": "max", "temperature": 8, "margin": 0.1, "max_violation": True, "semi_hard_triplet": False,
                "txt_attention_input": "wemb", "txt_pooling": "max", "mmd_weight": 0.02, "unif_weight": 0.03, "dropout": 0.2,
                "spm_txt_pos_enc_type": "none", "caption_drop_prob": 0.1, "butd_drop_prob": 0.3, "img_pie_lr_scale": 0.5, "unif_residual": True,
                "arch": "slot", "query_slot": False, "workers": 4, "data_path": "anywhere", "lr": 1e-3}


def dive_states(copies=1, own=1, slots=(3, 2)):
    """The two state dicts as DivE's code has them: ``own`` layers, each ``copies`` times in a row."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    pair = lambda name, rows, columns: {f"{name}.weight": draw(rows, columns), f"{name}.bias": draw(rows)}
    flat = lambda name, size: {f"{name}.weight": draw(size), f"{name}.bias": draw(size)}

    def layer(wide):
        return {**{f"0.fn.to_{part}.weight": draw(8, 12 if part == "q" else wide) for part in "qkv"}, **pair("0.fn.to_out.0", 12, 8),
                **flat("0.norm", 12), **flat("0.norm_context", wide), **flat("2.norm", 12), **pair("2.fn.net.0", 24, 12),
                **pair("2.fn.net.3", 12, 24)}

    def block(wide, count):
        found = {"spm.agg_block.latents": draw(count, 12), **flat("spm.agg_block.last_layer.0", 12), **flat("spm.residual_norm", 12)}
        for number in range(own):
            weights = layer(wide)
            for copy in range(copies):
                found |= {f"spm.agg_block.layers.{number * copies + copy}.{key}": value for key, value in weights.items()}
        return found
    norm = {"mlp.bn.bn.running_mean": draw(6), "mlp.bn.bn.running_var": draw(6).abs(), "mlp.bn.bn.num_batches_tracked": torch.tensor(4)}
    image = {**pair("fc", 12, 10), **pair("mlp.fc1", 6, 12), **flat("mlp.bn.bn", 6), **norm, **pair("mlp.fc2", 12, 6), **block(12, slots[0])}
    return [image, {**states()[1], **block(8, slots[1])}]


def as_list(parts):
    return parts


def as_checkpoint(parts):
    return {"epoch": 3, "model": parts, "best_rsum": 400.0, "Eiters": 10}


def as_parallel(parts):
    return {"model": [{f"module.{key}": value for key, value in part.items()} for part in parts]}


def as_flat(parts):
    return {f"{part}/{key}": value for part, state in zip(("img_enc", "txt_enc", "sim"), parts) for key, value in state.items()}


def as_arrays(parts):
    return [{key: value.numpy() for key, value in part.items()} for part in parts]
