"""Names in the table of explanation quality, importable without TensorFlow."""

LOCALISATION, FAITHFULNESS = "localisation", "faithfulness"
STABILITY, SANITY = "stability", "sanity"
TESTS = (LOCALISATION, FAITHFULNESS, STABILITY, SANITY)
COLUMNS = (
    "method", "layer", "test", "measure", "setting", "versus", "value", "low", "high", "n",
    "blank", "reference", "verdict",
)  # fmt: skip
BASELINES = ("random", "centred Gaussian", "edges")  # maps that know nothing of the model
POINTING_GAME, DELETION = "pointing game", "deletion"
MOST_FIRST = "most relevant first"


def is_lower_better(test: str, measure: str, setting: str) -> bool:
    """Whether a small value is better.

    Parameters
    ----------
    test : str
        One of `TESTS`.
    measure : str
        Measure in the table, such as `DELETION`.
    setting : str
        Setting in the table, such as `MOST_FIRST`.

    Returns
    -------
    bool
        True where a small value is in favour of the method.

    Examples
    --------
    >>> is_lower_better("faithfulness", "deletion", "to the mean")
    True
    """
    return test == SANITY or measure == DELETION or setting == MOST_FIRST
