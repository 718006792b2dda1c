"""Names in the table of explanation quality, for those who read it without TensorFlow."""

LOCALISATION, FAITHFULNESS = "localisation", "faithfulness"
STABILITY, SANITY = "stability", "sanity"
TESTS = (LOCALISATION, FAITHFULNESS, STABILITY, SANITY)
COLUMNS = (
    "method",
    "layer",
    "test",
    "measure",
    "setting",
    "versus",
    "value",
    "low",
    "high",
    "n",
    "blank",
    "reference",
    "verdict",
)
BASELINES = ("random", "centred Gaussian", "edges")  # maps that know nothing of the model
POINTING_GAME, DELETION = "pointing game", "deletion"
MOST_FIRST = "most relevant first"


def is_lower_better(test: str, measure: str, setting: str) -> bool:
    """Whether a small value speaks for the method."""
    return test == SANITY or measure == DELETION or setting == MOST_FIRST
