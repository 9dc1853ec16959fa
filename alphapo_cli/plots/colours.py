"""Colours of the figures, which pictures and pages share. Imports nothing, so that a page needs no matplotlib.

The categories are those of Okabe and Ito, which people with any of the common colour vision deficiencies can distinguish.
"""

from __future__ import annotations

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY = "#1A1A1A", "#767676"
CHOSEN, REJECTED = BLUE, VERMILLION
BEST = "#8566C2"  # of the band at the best point, a colour that no point has
CATEGORIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK, GREY)

# Position and colour. Dark in the middle and light at the ends: on white paper a usual diverging map would hide the runs
# near alpha = 0, the baseline of every comparison. The hue changes steeply around 0, so that the sign is visible.
DIVERGING = (
    (0.0, "#7CCBF2"),
    (0.2, "#2F97DB"),
    (0.38, "#0A60AE"),
    (0.46, "#0B3C7A"),
    (0.5, "#111111"),
    (0.54, "#7C2100"),
    (0.62, "#BF3D00"),
    (0.8, "#EB7A10"),
    (1.0, "#F7B500"),
)
# Of numbers other than alpha, by their order.
ORDERED = ((0.0, "#3B2A7E"), (0.25, "#1F5FB4"), (0.5, "#0E8F8F"), (0.75, "#5F9E2E"), (1.0, "#C78A00"))
# Of which way both answers went.
QUADRANTS = {"up_down": "#2C8F6A", "up_up": "#A9D3BF", "down_down": "#D9A9A0", "down_up": "#A0374A"}
