"""Names of the scores of single pairs, for whoever checks settings without torch; `pair_scores` computes them."""

OF_TOKENS = ("edit_distance", "common_prefix", "length_ratio")
OF_STATES = ("ches", "ches_normalised", "inner_product", "last_inner_product")
OF_LOG_PROBS = ("reference_gap", "reference_gap_per_token", "start_prefers_chosen")
OF_MODEL = (*OF_STATES, *OF_LOG_PROBS)
NAMES = (*OF_TOKENS, *OF_MODEL)

# Where each score is from, by its number at arXiv.
SOURCES = {
    "ches": "2410.08847, definition 2",
    "ches_normalised": "2410.08847, section 6",
    "inner_product": "2410.08847",
    "last_inner_product": "2410.08847, section 5",
    "edit_distance": "2402.13228",
    "common_prefix": "2402.13228",
    "length_ratio": "2403.19159",
    "reference_gap": "2405.19534",
    "reference_gap_per_token": "2405.19534",
    "start_prefers_chosen": "2405.19534",
}
