"""Every method of explanation by its name, all called in one manner.

`METHODS[name](model, images, target)` gives `Heatmaps`; what else a method takes is in its own
documentation. Those in `LAYERED` look at the features of a layer, which the argument `layer` names;
the others look at the pixels.
"""

from collections.abc import Callable
from functools import partial

from covid_lab.explain import gradcam
from covid_lab.explain.gradients import integrated_gradients, saliency, smooth_grad
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.occlusion import occlusion
from covid_lab.explain.scorecam import score_cam


def _lime(*arguments, **options) -> Heatmaps:
    """LIME; imported when it is called, as the notebooks must run without its library."""
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
    """Return the key of `METHODS` that is meant; case, "-", "_" and " " do not count.

    Raises
    ------
    ValueError : for a method that there is not; the message lists them.
    """
    plain = {_plain(key): key for key in METHODS}
    if _plain(name) not in plain:
        raise ValueError(f"Unknown method '{name}'; the methods are {', '.join(METHODS)}.")
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))
