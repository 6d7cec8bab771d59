"""What each method measured over our suites when this was written, by (coverage, MAE, overestimation); seeds as at small scale.

Nobody else has run these suites, so these figures are compared with later runs of our own.
"""

MEASURED: dict[str, dict[str, tuple[float, float, float]]] = {
    "digits": {
        "Dis2 logits": (1.0, 0.293, 0.0),
        "Dis2 logits w/o delta": (1.0, 0.173, 0.0),
        "Dis2 features": (1.0, 0.386, 0.0),
        "Dis2 features w/o delta": (1.0, 0.276, 0.0),
        "AC": (0.394, 0.145, 0.208),
        "DoC": (0.323, 0.147, 0.19),
        "ATC-MC": (0.404, 0.152, 0.179),
        "ATC-NE": (0.556, 0.155, 0.185),
        "COT": (0.646, 0.091, 0.081),
        "IW": (0.111, 0.233, 0.249),
    },
    "flights": {
        "Dis2 logits": (1.0, 0.132, 0.0),
        "Dis2 logits w/o delta": (0.909, 0.05, 0.005),
        "Dis2 features": (1.0, 0.182, 0.0),
        "AC": (0.364, 0.015, 0.018),
        "DoC": (0.182, 0.016, 0.016),
        "ATC-MC": (0.364, 0.011, 0.014),
        "ATC-NE": (0.364, 0.011, 0.014),
        "COT": (0.455, 0.021, 0.018),
        "IW": (0.273, 0.016, 0.018),
    },
}
