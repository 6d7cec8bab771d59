"""Names and settings that the cells, claims and figures share."""

NAME = "ape"
IDENTITIES, TEXT, FROZEN = f"{NAME}/identities", f"{NAME}/text_encoder", f"{NAME}/frozen_encoder"
ICONS, SUBCATEGORIES, CURATION = f"{NAME}/icons", f"{NAME}/icons_subcategories", f"{NAME}/icons_curation"
DIGITS, UNSEEN, CHOSEN = f"{NAME}/digits", f"{NAME}/digits_unseen_classes", f"{NAME}/digits_curation"
DEPTH, OWN = f"{NAME}/icons_depth_and_pairs", f"{NAME}/own_pairs"
"""Experiments."""

LINEAR, TWO, FOUR, RIDGE = "linear", "2 layers", "4 layers", "ridge"
LIT, CLIP, SHUFFLED = "LiT", "CLIP from scratch", "shuffled captions"
PROBE, MEANS = "linear probe", "nearest class mean"
"""Ways to align, controls, and references that see labels."""

HEADS = {LINEAR: 1, SHUFFLED: 1, TWO: 2, FOUR: 4}
"""Layers of the heads."""

OWN_STYLE, OTHER_STYLE = "Twitter", "Google"
STYLES = {OWN_STYLE: "twitter", OTHER_STYLE: "google"}
TEST, HELD_OUT_SUBCATEGORIES = 327, 20
"""Icons of the test, and whole subcategories that the stricter split holds out."""

DOWNSTREAM = ("Animals & Nature", "Food & Drink")
ARMS = ("200 relevant", "200 irrelevant", "all irrelevant", "all", "200 by similarity")
TARGETS, BUDGET = 90, 200
"""Curation on icons: what the alignment is for, the ways to choose pairs, unseen icons of the test, pairs chosen."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten {}", "the digit {}", "a drawing of the number {}")
TEST_TEMPLATES = ("a scan of a {}", "someone wrote the number {}")
"""Captions of digits in training, and prompts of the test."""

TRAINING_DIGITS, SHIFTED_DIGITS = 1000, 400
PLAIN, SHIFTS = "digits", ("inverted", "rotated", "small", "MNIST")
UNSEEN_CLASSES = ("3 8", "7 9")
DIGIT_ARMS = ("100 relevant", "all irrelevant", "all")

STEPS, BATCH, LIT_STEPS, LIT_BATCH, CURATION_STEPS = 200, 256, 60, 128, 120
"""Parameter updates and batches."""
