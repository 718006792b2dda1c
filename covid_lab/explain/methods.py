"""All explanation methods by name, with one signature.

`METHODS[name](model, images, target)` returns `Heatmaps`; each method documents its further
arguments. The methods in `LAYERED` explain with the features of a layer, which the argument
`layer` names. The others explain with the pixels.
"""

from collections.abc import Callable
from functools import partial

from covid_lab.explain import gradcam
from covid_lab.explain.gradients import integrated_gradients, saliency, smooth_grad
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.occlusion import occlusion
from covid_lab.explain.scorecam import score_cam


def _lime(*arguments, **options) -> Heatmaps:
    """Call LIME; imported here because the notebooks must run without its library."""
    from covid_lab.explain.lime import lime

    return lime(*arguments, **options)


LAYERED = (*gradcam.METHODS, "score-cam")

METHODS: dict[str, Callable[..., Heatmaps]] = {
    **{name: partial(gradcam.grad_cam, method=name) for name in gradcam.METHODS},
    "score-cam": score_cam,
    "saliency": saliency,
    "smooth-grad": smooth_grad,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "lime": _lime,
}


def method_named(name: str) -> str:
    """Return the key of `METHODS` for a name in any spelling.

    Parameters
    ----------
    name : str
        Name of a method. Case, "-", "_" and spaces do not count.

    Returns
    -------
    str
        The key.

    Raises
    ------
    ValueError
        The method is unknown; the message lists the methods.

    Examples
    --------
    >>> method_named("GradCAM")
    'grad-cam'
    """
    plain = {_plain(key): key for key in METHODS}
    if _plain(name) not in plain:
        raise ValueError(f"Unknown method '{name}'; the methods are {', '.join(METHODS)}.")
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))
