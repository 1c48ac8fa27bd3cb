"""OpenMoji Scenes: the embedded dataset, made on this machine from drawings, a grammar and a seed."""

from __future__ import annotations

from itm_lib.data.scene_pictures import (
    BACKGROUNDS,
    COLOURS,
    NOUNS,
    OBJECT_SIZES,
    VARIANTS,
    Scene,
    SceneObject,
    render,
    sample_scene,
)

__all__ = ["BACKGROUNDS", "COLOURS", "NOUNS", "OBJECT_SIZES", "VARIANTS", "Scene", "SceneObject", "render", "sample_scene"]
