"""Names of the scores of single pairs, for whoever checks settings without torch; `pair_scores` computes them."""

OF_TOKENS = ("edit_distance", "common_prefix", "length_ratio")
OF_STATES = ("ches", "ches_normalised", "inner_product")
OF_LOG_PROBS = ("reference_gap", "reference_gap_per_token", "start_prefers_chosen")
OF_MODEL = (*OF_STATES, *OF_LOG_PROBS)
NAMES = (*OF_TOKENS, *OF_MODEL)
