"""Aligning two encoders that were trained apart, with few pairs of images and captions.

`pairs.py` holds features with their captions and deals them out, `losses.py` is the contrastive objective, `heads.py` what is
trained, `dual_encoder.py` how, `aligner.py` the Lightning module for two frozen encoders. `towers.py` has the rivals that train whole
encoders, `references.py` those in closed form or with labels. `zero_shot.py` and `retrieval.py` say what an alignment is worth,
`curation.py` chooses pairs, `costs.py` counts what a training took. The encoders themselves stand in `lightning_modules/encoders`.

Source: Rosenfeld, Nakkiran, Pouransari, Tuzel, Faghri, "APE: Aligning Pretrained Encoders to Quickly Learn Aligned Multimodal
Representations", 2022, arXiv 2210.03927.
"""
